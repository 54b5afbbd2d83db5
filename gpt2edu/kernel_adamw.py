"""AdamW by the hand-written kernels, for a rank that keeps the whole optimizer state or, with ZeRO-1, its shards.

Every rank owns a slice of each layer of each tensor. With several ranks its slices of the gradients are packed one
after another; with ZeRO-1 m, v and the master weights lie so as well, and one launch updates them all.

Shape suffix legend: n all parameters, k those of this rank's shards.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, P_os
(arXiv:1910.02054); compare llm.c train_gpt2.cu, gpt2_update @ f1e2ace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.distributed import Communicator
from gpt2edu.optimizer import BETAS, EPSILON, Span, merge_shards
from gpt2edu.parameters import Shard, n_parameters, parameter_layout, shards_of_rank
from gpt2edu.state_file import ROUNDING_SEED
from kernels.adamw import adamw_update, round_weights
from kernels.global_norm import squared_norm, sum_scratch_size
from kernels.launch import Launch, Prepared
from kernels.memory import cast


def vector_spans(shards: Iterable[Shard]) -> list[Span]:
    """Return the runs of layernorms and biases among the shards."""
    return [span for span in merge_shards(shards) if not span.decayed]


class Pieces:
    """A rank's shards of a flat buffer (n,), and the same values packed one after another (k,)."""

    def __init__(self, shards: list[Shard]) -> None:
        self._flat = [shard.own for shard in shards]
        self._packed = [slice(shard.state_offset, shard.state_offset + shard.size) for shard in shards]

    def pack(self, packed: Tensor, flat: Tensor) -> None:
        """Copy the shards out of `flat`."""
        torch._foreach_copy_([packed[s] for s in self._packed], [flat[s] for s in self._flat])

    def unpack(self, flat: Tensor, packed: Tensor) -> None:
        """Copy the shards back to their places in `flat`."""
        torch._foreach_copy_([flat[s] for s in self._flat], [packed[s] for s in self._packed])


class KernelAdamW:
    """Gradients, weights and optimizer state of one rank.

    Args:
        config: the model's shape.
        bf16: whether the kernels read bfloat16 weights; then there are fp32 master weights beside them.
        communicator: the ranks.
        zero_stage: 1 shards m, v and the master weights.
        squared_1: where `take_mean` puts the sum of the squares of this rank's shards of the mean gradients; on the
            device where the kernels run.

    Attributes:
        parameters: (n,) what forward and backward read, bfloat16 or fp32; equal on all ranks.
        master: fp32 weights that AdamW updates: (k,) with ZeRO-1, otherwise (n,), in fp32 `parameters` themselves.
        gradients: (n,) fp32.
        shards: what this rank owns.
    """

    def __init__(
        self, config: ModelConfig, bf16: bool, communicator: Communicator, zero_stage: int, squared_1: Tensor
    ) -> None:
        device = squared_1.device
        self._bf16, self._communicator, self._config = bf16, communicator, config
        n_ranks = communicator.world_size
        self.sharded = zero_stage == 1 and n_ranks > 1
        self.shards = list(shards_of_rank(config, communicator.rank, n_ranks))
        self._pieces = Pieces(self.shards)
        n = n_parameters(config)
        n_state = n // n_ranks if self.sharded else n

        def zeros(size: int) -> Tensor:
            return torch.zeros(size, device=device)

        self.gradients, self._m, self._v = zeros(n), zeros(n_state), zeros(n_state)
        self._own_gradients = zeros(n // n_ranks) if n_ranks > 1 else self.gradients
        self.parameters = torch.zeros(n, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
        self._rounded = torch.zeros_like(self.parameters[:n_state]) if self.sharded and bf16 else self.parameters
        self.master = zeros(n_state) if bf16 or self.sharded else self.parameters
        self._update_bounds, self._rounding_pieces = self._places(n, n_ranks, device)
        self._decay: dict[float, Tensor] = {}  # of each tensor, by the weight decay of the run
        self._sum_squares = squared_norm.prepare(squared_1, zeros(sum_scratch_size(n)), self._own_gradients)
        self._round_vectors = self._prepare_vectors() if bf16 else Prepared([])
        self._rounding_seed: int | None = None  # of the last update
        self._published_version = -1

    def _prepare_vectors(self) -> Prepared:
        """Return the launches that round the master weights of layernorms and biases to nearest.

        A layernorm's weight is near 1, where bfloat16 has steps of 1/128, and scales a whole channel: its noise would
        be the largest in the model. With the master weights at hand nothing is lost by rounding to nearest.
        """
        spans = vector_spans(self.shards if self.sharded else shards_of_rank(self._config, 0, 1))
        places = [slice(span.state_offset, span.state_offset + span.size) for span in spans]
        return Prepared(itertools.chain(*(cast.prepare(self._rounded[s], self.master[s]) for s in places)))

    def _places(self, n: int, n_ranks: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return where each tensor starts in the state, and where each piece of it starts there and in the model."""
        parts = n_ranks if self.sharded else 1  # each tensor is cut evenly, so its start is too
        bounds = [*(tensor.offset // parts for tensor in parameter_layout(self._config)), n // parts]
        starts, places = [0], [0]
        if self.sharded:
            starts, places = [s.state_offset for s in self.shards], [s.offset for s in self.shards]
        pieces = torch.tensor([*starts, n // parts], device=device), torch.tensor(places, device=device)
        return torch.tensor(bounds, device=device), pieces

    # ------------------------------------------------------------------------------------------------
    # a step

    def take_mean(self) -> None:
        """Take over the mean of this rank's shards of the gradients, and sum its squares."""
        if self._own_gradients is not self.gradients:
            self._pieces.pack(self._own_gradients, self.gradients)
        self._sum_squares()

    def update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> None:
        """Take an AdamW step, one launch for all tensors; an element's rounding depends on its place and the step."""
        self._rounding_seed = ROUNDING_SEED + step
        self._prepare_update(learning_rate, weight_decay, grad_scale, step)()
        if self.sharded:
            self._publish_shards()
        else:
            self._round_vectors()

    def _prepare_update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> Prepared:
        return adamw_update.prepare(
            self.parameters if self._bf16 and not self.sharded else None,
            self.master,
            self._m,
            self._v,
            self._own_gradients if self.sharded else self.gradients,
            self._update_bounds,
            self._decay_of_tensors(weight_decay),
            learning_rate,
            *BETAS,
            EPSILON,
            grad_scale,
            step,
            ROUNDING_SEED + step,
        )

    def launches(self) -> list[Launch]:
        """Return a step's launches, to be compiled; they are not to be launched."""
        return [*self._sum_squares, *self._prepare_update(0.0, 0.0, 1.0, 1), *self._round_vectors]

    def _decay_of_tensors(self, weight_decay: float) -> Tensor:
        """Return each tensor's weight decay on the device; it is sent there once."""
        if weight_decay not in self._decay:
            decay = [weight_decay * t.decayed for t in parameter_layout(self._config)]
            self._decay[weight_decay] = torch.tensor(decay, dtype=torch.float32, device=self.gradients.device)
        return self._decay[weight_decay]

    # ------------------------------------------------------------------------------------------------
    # from the master weights to those that the kernels read

    def publish(self) -> None:
        """Make `parameters` anew if the master weights were filled from outside: new, or from a checkpoint.

        With ZeRO-1 every rank calls this at the same place of the program.
        """
        if self._published_version == self.master._version:
            return  # kernels write without torch's count of versions; their rounding is done
        if self.sharded:
            self._publish_shards()
        elif self._bf16:
            self._round()
        self._published_version = self.master._version

    def _publish_shards(self) -> None:
        """Bring this rank's weights to all ranks."""
        if self._bf16:
            self._round()
        self._pieces.unpack(self.parameters, self._rounded if self._bf16 else self.master)
        self._communicator.all_gather(self.parameters, self.shards)

    def _round(self) -> None:
        """Round the master weights to bfloat16 as the last update did, before the first one to nearest."""
        if self._rounding_seed is None:
            cast(self._rounded, self.master)
        else:
            round_weights(self._rounded, self.master, *self._rounding_pieces, self._rounding_seed)
            self._round_vectors()

    def fill(self, flat: Tensor) -> None:
        """Take over weights (n,) fp32, on any device; every rank has the same."""
        if self.sharded:
            self._pieces.pack(self.master, flat.to(self.master.device))
        else:
            self.master.copy_(flat)

    def whole(self) -> Tensor:
        """Return all master weights (n,), on the host if they are gathered from the ranks; every rank calls this."""
        if not self.sharded:
            return self.master
        flat = torch.zeros(len(self.gradients), device=self.gradients.device)
        self._pieces.unpack(flat, self.master)
        self._communicator.all_gather(flat, self.shards)
        return flat.cpu()

    # ------------------------------------------------------------------------------------------------
    # state

    def state_arrays(self) -> dict[str, Tensor]:
        """Return m and v, and in bf16 the fp32 master weights: everything, or this rank's shards."""
        return {"m": self._m, "v": self._v} | ({"master": self.master} if self._bf16 else {})

    def load_state_arrays(self, arrays: dict[str, Any]) -> None:
        """Copy what is there of m, v and master weights (NumPy arrays or tensors of the same size)."""
        for name, own in self.state_arrays().items():
            if name in arrays:  # a run in fp32 saved no master weights: its weights are
                own.copy_(torch.as_tensor(arrays[name]))

    def extra_state(self) -> dict[str, Any]:
        """Return the seed that the last update rounded with, None before the first or in fp32."""
        return {"rounding_seed": self._rounding_seed if self._bf16 else None}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore the seed, so that the bfloat16 weights are rounded again as they were."""
        self._rounding_seed = extra.get("rounding_seed")
        self._published_version = -1
