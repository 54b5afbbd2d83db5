"""What a model is made of (`ModelConfig`) and how a run trains it (`TrainConfig`).

Sizes carry the letters of the book: B batch, T time, C channels, H heads, D head size, F = 4C,
E = 3C, V vocabulary, P padded vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from gpt2edu.errors import UsageError

GPT2_VOCAB_SIZE = 50257
VOCAB_PADDING = 128  # the head's matrix product wants a multiple of its tile

# depth -> (channels, heads); compare llm.c train_gpt2.cu, gpt2_set_hyperparameters
GPT2_SIZES = {
    6: (384, 6),
    12: (768, 12),
    24: (1024, 16),
    36: (1280, 20),
    48: (1600, 25),
    60: (1920, 30),
    72: (2880, 30),
    84: (3456, 36),
}
# channels -> (depth, head size); compare llm.c train_gpt2.cu, gpt3_set_hyperparameters.
# The paper's 13B model has 5140 channels, which 128 does not divide: llm.c refuses it, and so do we.
GPT3_SIZES = {
    384: (6, 64),
    768: (12, 64),
    1024: (24, 64),
    1536: (24, 96),
    2048: (24, 128),
    2560: (32, 80),
    4096: (32, 128),
    12288: (96, 128),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2 model; the header of llm.c's `model_*.bin` holds the same six numbers."""

    max_seq_len: int = 1024
    vocab_size: int = GPT2_VOCAB_SIZE
    padded_vocab_size: int = 50304
    n_layers: int = 12
    n_heads: int = 12
    channels: int = 768

    def __post_init__(self) -> None:
        """Refuse a shape that no model can have."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise UsageError(f"model: {field.name} is {getattr(self, field.name)}, it must be at least 1")
        if self.channels % self.n_heads:
            raise UsageError(f"model: {self.channels} channels cannot be split over {self.n_heads} heads evenly")
        if self.padded_vocab_size < self.vocab_size:
            raise UsageError(
                f"model: the padded vocabulary {self.padded_vocab_size} is below the vocabulary {self.vocab_size}"
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head (D)."""
        return self.channels // self.n_heads

    @classmethod
    def from_descriptor(cls, descriptor: str) -> ModelConfig:
        """Return the model that a descriptor names.

        `dN` or `gpt2:dN` (GPT-2 of depth N), `gpt3:cN` (GPT-3 of N channels), as llm.c has them; then, with
        commas, any of `hN` heads, `cN` channels, `tN` context, `vN` vocabulary: `d4,h4,c256,t256,v1024`.

        Raises:
            UsageError: the descriptor cannot be read, or names a size that does not exist.
        """
        head, *changes = descriptor.split(",")
        match = re.fullmatch(r"(?:gpt2:)?d(\d+)|gpt3:c(\d+)", head)
        numbers = [re.fullmatch(r"([hctv])(\d+)", change) for change in changes]
        if not match or not all(numbers):
            raise UsageError(
                f"model {descriptor!r} is neither a .bin file, a checkpoint folder nor a descriptor "
                "such as d12, gpt2:d48, gpt3:c768 or d4,h4,c256,t256,v1024"
            )
        own = {number[1]: int(number[2]) for number in numbers if number}
        if match[1]:
            depth, context = int(match[1]), 1024
            channels, heads = GPT2_SIZES.get(depth, (0, 0))
        else:
            context = 2048
            channels = int(match[2])
            depth, head_size = GPT3_SIZES.get(channels, (0, 1))
            heads = channels // head_size
        channels, heads = own.get("c", channels), own.get("h", heads)
        if not (depth and channels and heads):
            raise UsageError(
                f"model {descriptor!r}: no such size; depths are {sorted(GPT2_SIZES)}, GPT-3 channels "
                f"{sorted(GPT3_SIZES)}, and any other depth needs its own h and c, as in d4,h4,c256"
            )
        vocab_size = own.get("v", GPT2_VOCAB_SIZE)
        return cls(
            max_seq_len=own.get("t", context),
            vocab_size=vocab_size,
            padded_vocab_size=-(-vocab_size // VOCAB_PADDING) * VOCAB_PADDING,
            n_layers=depth,
            n_heads=heads,
            channels=channels,
        )


@dataclass
class TrainConfig:
    """Every setting of `python -m gpt2edu.train`; names and defaults are those of `gpt2edu.cli`.

    The comment behind a field is llm.c's short flag. None means "decided at start", and what was decided is printed.
    """

    # files
    train_pattern: str = "dev/data/tinyshakespeare/tiny_shakespeare_train.bin"  # -i
    val_pattern: str = "dev/data/tinyshakespeare/tiny_shakespeare_val.bin"  # -j
    model: str = "gpt2_124M_bf16.bin"  # -e
    output_dir: str | None = None  # -o
    log_gpu_every: int = -1  # -lg
    checkpoint_every: int = 0  # -n
    checkpoints_keep: int = 0  # -nk
    checkpoint_major_every: int = 0  # -nm
    resume: int = 0  # -y
    overwrite: bool = False
    hellaswag_path: str | None = None
    tokenizer: str | None = None
    # batch
    micro_batch: int | None = None  # -b; None is chosen from free memory
    seq_len: int = 1024  # -t
    total_batch: int | None = None  # -d, tokens
    order_ranks: int | None = None
    order_batch: int | None = None
    # length and optimization
    max_steps: int = -1  # -x
    scheduler: str = "cosine"  # -k
    learning_rate: float = 3e-4  # -l
    warmup_steps: int = 0  # -u
    final_lr_fraction: float = 1.0  # -q
    weight_decay: float = 0.0  # -c
    skip_loss_z: float = 0.0  # -sl
    skip_grad_z: float = 0.0  # -sg
    max_bad_steps: int = 3
    # evaluation
    val_every: int = 20  # -v
    val_max_batches: int | None = None  # -m; None: 10,485,760 tokens or the whole split
    sample_every: int = 20  # -s
    sample_length: int = 64  # -g
    hellaswag: int = 0  # -h
    overfit_one_batch: int = 0  # -a
    # numerics, memory, machine
    num_processes: int | None = None  # -pn; only checked, MPI decides
    tf32: int = 1  # -f
    master_weights: int = 1  # -w
    zero_stage: int = 0  # -z
    recompute: int = 1  # -r
    backend: str | None = None  # None is chosen by the device
    arch: str | None = None  # of the numba engine
    device: str | None = None
    hang_timeout: float = 600.0
    dtype: str | None = None
    grad_dtype: str = "fp32"  # of the gradients that ranks send
    compile: int | None = None
    deterministic: bool = False
    seed: int = 42
