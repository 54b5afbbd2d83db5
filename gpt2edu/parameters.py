"""The 16 parameter tensors of GPT-2, their shapes, and their place in one flat buffer.

Both engines, the checkpoints and the optimizer shards share this layout; it is llm.c's
(train_gpt2.cu, fill_in_parameter_sizes): the tensors one after another, each (L, ...) tensor with
its layers stacked.

Shape suffix legend: P padded vocabulary, T max context, L layers, C channels, E = 3C, F = 4C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt2edu.config import ModelConfig
from gpt2edu.errors import UsageError


@dataclass(frozen=True)
class ParameterTensor:
    """One of the 16 tensors: its name, shape (layers first where stacked), and place in the flat buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int
    stacked: bool  # the first axis is the layer
    decayed: bool  # AdamW decays it: the six matrices, not biases nor layernorms

    @property
    def size(self) -> int:
        """Elements in all layers together."""
        return math.prod(self.shape)

    @property
    def n_slices(self) -> int:
        """Layers of a stacked tensor, otherwise 1."""
        return self.shape[0] if self.stacked else 1

    @property
    def slice_size(self) -> int:
        """Elements of one layer (of the whole tensor where it is not stacked)."""
        return self.size // self.n_slices

    def view(self, flat: Any) -> Any:
        """Return this tensor as a view of a flat buffer (NumPy array or torch tensor)."""
        return flat[self.offset : self.offset + self.size].reshape(self.shape)


def parameter_layout(config: ModelConfig) -> tuple[ParameterTensor, ...]:
    """Return the 16 tensors in llm.c's order."""
    L, C, P, T = config.n_layers, config.channels, config.padded_vocab_size, config.max_seq_len
    E, F = 3 * C, 4 * C
    table = [
        ("wte", (P, C), False, True),
        ("wpe", (T, C), False, True),
        ("ln1w", (L, C), True, False),
        ("ln1b", (L, C), True, False),
        ("qkvw", (L, E, C), True, True),
        ("qkvb", (L, E), True, False),
        ("attprojw", (L, C, C), True, True),
        ("attprojb", (L, C), True, False),
        ("ln2w", (L, C), True, False),
        ("ln2b", (L, C), True, False),
        ("fcw", (L, F, C), True, True),
        ("fcb", (L, F), True, False),
        ("fcprojw", (L, C, F), True, True),
        ("fcprojb", (L, C), True, False),
        ("lnfw", (C,), False, False),
        ("lnfb", (C,), False, False),
    ]
    tensors, offset = [], 0
    for name, shape, stacked, decayed in table:
        tensors.append(ParameterTensor(name, shape, offset, stacked, decayed))
        offset += math.prod(shape)
    return tuple(tensors)


def n_parameters(config: ModelConfig) -> int:
    """Return the elements of the flat buffer, padding rows included (124,475,904 for GPT-2 124M)."""
    last = parameter_layout(config)[-1]
    return last.offset + last.size


@dataclass(frozen=True)
class Shard:
    """A contiguous run of the flat buffer that one rank owns, and its place in that rank's own state buffer."""

    tensor: ParameterTensor
    offset: int
    size: int
    state_offset: int

    @property
    def layer(self) -> int | None:
        """The layer it is a slice of; None for a tensor that belongs to no layer."""
        return (self.offset - self.tensor.offset) // self.tensor.slice_size if self.tensor.stacked else None

    @property
    def own(self) -> slice:
        """Its place in the flat buffer."""
        return slice(self.offset, self.offset + self.size)

    @property
    def all_ranks(self) -> slice:
        """The place of the tensor's whole layer, which all ranks share."""
        start = self.tensor.offset + (self.layer or 0) * self.tensor.slice_size
        return slice(start, start + self.tensor.slice_size)


def shards_of_rank(config: ModelConfig, rank: int, world_size: int) -> Iterator[Shard]:
    """Yield what `rank` of `world_size` owns: an equal slice of each layer of each tensor, as llm.c's ZeRO-1 cuts.

    Raises:
        UsageError: a tensor's layer cannot be cut into `world_size` equal slices.
    """
    state_offset = 0
    for tensor in parameter_layout(config):
        size, rest = divmod(tensor.slice_size, world_size)
        if rest:
            raise UsageError(
                f"{world_size} ranks cannot share the {tensor.slice_size} elements of {tensor.name} evenly; "
                f"start a number of ranks that divides the model's {config.channels} channels (mpiexec -n)"
            )
        for layer in range(tensor.n_slices):
            yield Shard(tensor, tensor.offset + layer * tensor.slice_size + rank * size, size, state_offset)
            state_offset += size
