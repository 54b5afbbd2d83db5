"""The buffers between the layers of the numba engine: their names, shapes and bytes, cut from one arena.

Shape suffix legend: L layers, B batch, T time, C channels, H heads, E = 3C, F = 4C, P padded vocabulary, X plan,
S scratch; K layers kept: L, or 1 where backward computes the layer's again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from kernels.attention import attention_scratch_size
from kernels.encoder import encoder_scratch_size
from kernels.layernorm import layernorm_scratch_size
from kernels.matmul import bias_scratch_size
from kernels.token_plan import token_plan_size

ALIGNMENT = 256  # bytes, as cudaMalloc gives


@dataclass(frozen=True)
class Buffer:
    """One buffer: its name, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes in the arena."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT


def activation_buffers(config: ModelConfig, B: int, T: int, real: torch.dtype, recompute: int) -> tuple[Buffer, ...]:
    """Return every buffer that a micro-batch of B sequences of T tokens needs.

    Args:
        config: the model's shape.
        B: sequences.
        T: tokens of a sequence.
        real: bfloat16 or float32.
        recompute: 0 keeps all, 1 makes GELU's output again in backward, 2 the layernorms' too.
    """
    L, C, H, P = config.n_layers, config.channels, config.n_heads, config.padded_vocab_size
    N, E, F = B * T, 3 * C, 4 * C
    ln_layers, gelu_layers = (1 if recompute >= 2 else L), (1 if recompute >= 1 else L)
    scratch = max(layernorm_scratch_size(N, C), bias_scratch_size(N, F), attention_scratch_size(B, T, H))
    scratch = max(scratch, bias_scratch_size(N, E), bias_scratch_size(N, C), encoder_scratch_size(N, C))
    table = [
        ("inputs_BT", (B, T), torch.int32),
        ("targets_BT", (B, T), torch.int32),
        ("plan_X", (token_plan_size(N),), torch.int32),  # for the gradient of the token embedding
        ("residual_LBTC", (L + 1, B, T, C), real),  # before each layer, and after the last
        ("ln1_KBTC", (ln_layers, B, T, C), real),
        ("ln1_mean_LBT", (L, B, T), torch.float32),
        ("ln1_rstd_LBT", (L, B, T), torch.float32),
        ("qkv_LBTE", (L, B, T, E), real),
        ("mixed_LBTC", (L, B, T, C), real),  # what attention gives
        ("logsumexp_LBHT", (L, B, H, T), torch.float32),
        ("middle_LBTC", (L, B, T, C), real),  # the residual stream between attention and MLP
        ("ln2_KBTC", (ln_layers, B, T, C), real),
        ("ln2_mean_LBT", (L, B, T), torch.float32),
        ("ln2_rstd_LBT", (L, B, T), torch.float32),
        ("expanded_LBTF", (L, B, T, F), real),  # before GELU
        ("activated_KBTF", (gelu_layers, B, T, F), real),  # after it
        ("lnf_BTC", (B, T, C), real),
        ("lnf_mean_BT", (B, T), torch.float32),
        ("lnf_rstd_BT", (B, T), torch.float32),
        ("logits_BTP", (B, T, P), real),  # in backward their gradient
        ("losses_BT", (B, T), torch.float32),
        ("branch_BTC", (B, T, C), real),  # what a layer adds to the stream; in backward a gradient beside the stream
        ("grad_residual_BTC", (B, T, C), real),
        ("grad_wide_BTF", (B, T, F), real),  # of GELU's input, and of the queries, keys and values
        ("scratch_S", (scratch,), torch.float32),
    ]
    return tuple(Buffer(*row) for row in table)


def arena_bytes(buffers: Iterable[Buffer]) -> int:
    """Return the bytes of all `buffers` together."""
    return sum(buffer.n_bytes for buffer in buffers)


def cut_arena(arena_X: Tensor, buffers: Iterable[Buffer]) -> SimpleNamespace:
    """Return views of the arena (uint8) by the names of the buffers, without their shape suffixes."""
    views, start = {}, 0
    for buffer in buffers:
        size = math.prod(buffer.shape) * buffer.dtype.itemsize
        views[buffer.name.rpartition("_")[0]] = arena_X[start : start + size].view(buffer.dtype).view(buffer.shape)
        start += buffer.n_bytes
    wide = views["grad_wide"]  # of its memory the gradient of qkv takes three quarters
    B, T, F = wide.shape
    views["grad_qkv"] = wide.view(-1)[: wide.numel() // 4 * 3].view(B, T, F // 4 * 3)
    return SimpleNamespace(**views)
