"""What the steps of attention share: the launchers' checks, sizes, and where the heads lie.

In the kernels an item is one query (or key) of one head of one sequence: item = (b * H + h) * T + t. Row n = b * T + t
of the fused `qkv_NE` holds q, k and v of all heads one after the other: those of head h begin at column h * D,
C + h * D and 2 * C + h * D, where C = H * D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from numba import cuda, float32

from kernels.elements import load
from kernels.launch import take

WORD = 0xFFFFFFFF
LOG2_E = np.float32(math.log2(math.e))
LOWEST = np.float32(np.finfo(np.float32).min)
"""Where a running maximum starts: below any score, but finite, so that no difference is inf - inf."""


@cuda.jit(device=True)
def place_of_item(item, T, H):
    """Return of an item the first row of its sequence, its time and its head."""
    b_and_h = (item & WORD) // (T & WORD)  # known to fit 32 bits: a 64-bit division is a slow function call
    b = b_and_h // (H & WORD)
    return b * T, item - b_and_h * T, b_and_h - b * H


@cuda.jit(device=True)
def dot_device(x_row, x_first, y_row, y_first, D):
    """Multiply two vectors of D elements that begin somewhere in a row, in two sums: a long one loses more digits."""
    even, odd = float32(0), float32(0)
    for d in range(0, D - 1, 2):
        even += load(x_row, x_first + d) * load(y_row, y_first + d)
        odd += load(x_row, x_first + d + 1) * load(y_row, y_first + d + 1)
    if D & 1:
        even += load(x_row, x_first + D - 1) * load(y_row, y_first + D - 1)
    return even + odd


def attention_scratch_size(B: int, T: int, H: int) -> int:
    """Return the float32 elements that a step needs in `scratch_S`: one a query; step 1 has its own."""
    return B * H * T


def _check_sizes(sizes: SimpleNamespace, scratch_size: Callable[[int, int, int], int]) -> None:
    H = sizes.H
    if sizes.C % H or sizes.E != 3 * sizes.C:
        raise ValueError(f"{sizes.C} channels and a qkv of {sizes.E} do not belong to {H} heads")
    needed = scratch_size(sizes.B, sizes.T, H)
    if sizes.S < needed:
        raise ValueError(f"scratch_S has {sizes.S} elements; {needed} are needed")


def take_forward(
    out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, scratch_size=attention_scratch_size
) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Take the arrays of a forward pass: `out_NC`, `logsumexp_I` (flat), `scratch_S`, `qkv_NE`, and their sizes."""
    arrays, sizes = take(
        real={"out_BTC": out_BTC, "qkv_BTE": qkv_BTE},
        float32={"logsumexp_BHT": logsumexp_BHT, "scratch_S": scratch_S},
    )
    _check_sizes(sizes, scratch_size)
    N, items = sizes.B * sizes.T, sizes.B * sizes.H * sizes.T
    flat = SimpleNamespace(
        out_NC=arrays.out_BTC.reshape(N, sizes.C),
        logsumexp_I=arrays.logsumexp_BHT.reshape(items),
        scratch_S=arrays.scratch_S,
        qkv_NE=arrays.qkv_BTE.reshape(N, sizes.E),
    )
    return flat, sizes


def take_backward(
    grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, scratch_size=attention_scratch_size
) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Take the arrays of a backward pass in the same way."""
    arrays, sizes = take(
        real={"grad_qkv_BTE": grad_qkv_BTE, "grad_out_BTC": grad_out_BTC, "out_BTC": out_BTC, "qkv_BTE": qkv_BTE},
        float32={"logsumexp_BHT": logsumexp_BHT, "scratch_S": scratch_S},
    )
    _check_sizes(sizes, scratch_size)
    N, items = sizes.B * sizes.T, sizes.B * sizes.H * sizes.T
    flat = SimpleNamespace(
        grad_qkv_NE=arrays.grad_qkv_BTE.reshape(N, sizes.E),
        scratch_S=arrays.scratch_S,
        grad_out_NC=arrays.grad_out_BTC.reshape(N, sizes.C),
        out_NC=arrays.out_BTC.reshape(N, sizes.C),
        qkv_NE=arrays.qkv_BTE.reshape(N, sizes.E),
        logsumexp_I=arrays.logsumexp_BHT.reshape(items),
    )
    return flat, sizes


def inverse_root(D: int) -> float:
    """Return 1 / sqrt(D), the factor of the scores."""
    return 1 / math.sqrt(D)
