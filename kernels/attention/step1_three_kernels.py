"""Attention, step 1: three kernels for scores, softmax and weighted mean, through T x T matrices in memory.

Letters: N = B*T rows, I = B*H*T items (a query or key of one head), S scratch.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.attention.common import (
    LOG2_E,
    LOWEST,
    dot_device,
    inverse_root,
    place_of_item,
    take_backward,
    take_forward,
)
from kernels.elements import load, store
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher
from kernels.ptx import exp2
from kernels.reduce import warp_max, warp_sum
from kernels.registry import kernel

BLOCK = 256


@kernel("void(float32[::1], real[:, ::1], int64, int64, float32)", launch_bounds=BLOCK)
def scores_kernel(scratch_S, qkv_NE, T, H, scale):
    """A thread owns scores of one query with one key up to it."""
    C = qkv_NE.shape[1] // 3
    D = C // H
    index = cuda.grid(1)
    while index < qkv_NE.shape[0] * H * T:
        item, s = index // T, index % T
        first, t, h = place_of_item(item, T, H)
        if s <= t:
            scratch_S[index] = dot_device(qkv_NE[first + t], h * D, qkv_NE[first + s], C + h * D, D) * scale
        index += cuda.gridsize(1)


@kernel("void(float32[::1], float32[::1], int64)", launch_bounds=BLOCK)
def softmax_kernel(logsumexp_I, scratch_S, T):
    """A warp owns queries; a lane every 32nd key."""
    lane = cuda.threadIdx.x & 31
    item = cuda.grid(1) >> 5
    while item < logsumexp_I.size:
        t = item % T
        greatest = LOWEST
        s = lane
        while s <= t:
            greatest = max(greatest, scratch_S[item * T + s])
            s += WARP_SIZE
        greatest = warp_max(greatest)
        total = float32(0)
        s = lane
        while s <= t:
            total += exp2((scratch_S[item * T + s] - greatest) * LOG2_E)
            s += WARP_SIZE
        total = warp_sum(total)
        s = lane
        while s <= t:
            scratch_S[item * T + s] = exp2((scratch_S[item * T + s] - greatest) * LOG2_E) / total
            s += WARP_SIZE
        if lane == 0:
            logsumexp_I[item] = greatest + math.log(total)
        item += cuda.gridsize(1) >> 5


@kernel("void(real[:, ::1], float32[::1], real[:, ::1], int64, int64)", launch_bounds=BLOCK)
def weighted_mean_kernel(out_NC, scratch_S, qkv_NE, T, H):
    """A thread owns output elements."""
    C = out_NC.shape[1]
    D = C // H
    index = cuda.grid(1)
    while index < out_NC.size:
        item, d = index // D, index % D
        first, t, h = place_of_item(item, T, H)
        total = float32(0)
        for s in range(t + 1):
            total += scratch_S[item * T + s] * load(qkv_NE[first + s], 2 * C + h * D + d)
        store(out_NC[first + t], h * D + d, total)
        index += cuda.gridsize(1)


@kernel(
    "void(float32[::1], real[:, ::1], real[:, ::1], real[:, ::1], float32[::1], int64, int64, float32)",
    launch_bounds=BLOCK,
)
def grad_scores_kernel(scratch_S, grad_out_NC, out_NC, qkv_NE, logsumexp_I, T, H, scale):
    """A thread owns pairs of a query and a key up to it: the probability, and the gradient of the score."""
    C = out_NC.shape[1]
    D = C // H
    n_pairs = logsumexp_I.size * T
    index = cuda.grid(1)
    while index < n_pairs:
        item, s = index // T, index % T
        first, t, h = place_of_item(item, T, H)
        if s <= t:
            query, key, grad_out = qkv_NE[first + t], qkv_NE[first + s], grad_out_NC[first + t]
            score = dot_device(query, h * D, key, C + h * D, D) * scale
            probability = exp2((score - logsumexp_I[item]) * LOG2_E)
            delta = dot_device(grad_out, h * D, out_NC[first + t], h * D, D)
            grad_probability = dot_device(grad_out, h * D, key, 2 * C + h * D, D)
            scratch_S[index] = probability
            scratch_S[n_pairs + index] = probability * (grad_probability - delta) * scale
        index += cuda.gridsize(1)


@kernel("void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], int64, int64)", launch_bounds=BLOCK)
def grad_qkv_kernel(grad_qkv_NE, scratch_S, grad_out_NC, qkv_NE, T, H):
    """A thread owns the same element of a query, a key and a value."""
    C = grad_out_NC.shape[1]
    D = C // H
    n_pairs = grad_out_NC.shape[0] * H * T
    index = cuda.grid(1)
    while index < grad_out_NC.size:
        item, d = index // D, index % D
        first, t, h = place_of_item(item, T, H)
        column = h * D + d
        grad_query = float32(0)
        for s in range(t + 1):
            grad_query += scratch_S[n_pairs + item * T + s] * load(qkv_NE[first + s], C + column)
        grad_key = float32(0)
        grad_value = float32(0)
        for later in range(T - t):  # the queries from this time on
            pair = (item + later) * T + t
            grad_key += scratch_S[n_pairs + pair] * load(qkv_NE[first + t + later], column)
            grad_value += scratch_S[pair] * load(grad_out_NC[first + t + later], column)
        store(grad_qkv_NE[first + t], column, grad_query)
        store(grad_qkv_NE[first + t], C + column, grad_key)
        store(grad_qkv_NE[first + t], 2 * C + column, grad_value)
        index += cuda.gridsize(1)


def attention_scratch_size(B: int, T: int, H: int) -> int:
    """Return the float32 elements that this step needs in `scratch_S`: two T x T matrices a head."""
    return 2 * B * H * T * T


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 (=).
    Work     2*B*T*T*C flop (half of the square), 16*B*H*T*T bytes of scores: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Vaswani et al. 2017, eq. 1 (arXiv:1706.03762); compare llm.c llmc/attention.cuh @ f1e2ace.
    Book     Chapter 07, step 1.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, attention_scratch_size)
    T, H = sizes.T, sizes.H
    items, pairs = a.logsumexp_I.size, a.logsumexp_I.size * T
    scale = inverse_root(sizes.C // H)
    mean = (a.out_NC, a.scratch_S, a.qkv_NE, T, H)
    return [
        Launch(scores_kernel, ceil_div(pairs, BLOCK), BLOCK, (a.scratch_S, a.qkv_NE, T, H, scale), stream),
        Launch(softmax_kernel, ceil_div(items * WARP_SIZE, BLOCK), BLOCK, (a.logsumexp_I, a.scratch_S, T), stream),
        Launch(weighted_mean_kernel, ceil_div(a.out_NC.size, BLOCK), BLOCK, mean, stream),
    ]


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     5*B*T*T*C flop (half of the square) and more, 16*B*H*T*T bytes of scores: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Vaswani et al. 2017, eq. 1, differentiated; compare llm.c llmc/attention.cuh @ f1e2ace.
    Book     Chapter 07, step 1.
    """
    a, sizes = take_backward(
        grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, attention_scratch_size
    )
    T, H = sizes.T, sizes.H
    scale = inverse_root(sizes.C // H)
    pairs = (a.scratch_S, a.grad_out_NC, a.out_NC, a.qkv_NE, a.logsumexp_I, T, H, scale)
    elements = (a.grad_qkv_NE, a.scratch_S, a.grad_out_NC, a.qkv_NE, T, H)
    return [
        Launch(grad_scores_kernel, ceil_div(a.logsumexp_I.size * T, BLOCK), BLOCK, pairs, stream),
        Launch(grad_qkv_kernel, ceil_div(a.grad_out_NC.size, BLOCK), BLOCK, elements, stream),
    ]
