"""Attention, step 2: softmax "online", so that no T x T matrix is ever in memory.

A warp owns a query and walks over its keys, 32 at a time. It keeps the greatest score so far, the sum of exponentials
and the weighted sum of values relative to it, and scales both when a greater score comes. Backward computes the
probabilities again from the log-sum-exp: one kernel goes over the keys of each query, one over the queries of each
key, so nothing is added atomically. Letters: N = B*T rows, I = B*H*T items (a query or key of one head), S scratch.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

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
from kernels.attention.common import attention_scratch_size as attention_scratch_size
from kernels.elements import load, store
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher
from kernels.ptx import exp2
from kernels.reduce import FULL_MASK, warp_max, warp_sum
from kernels.registry import kernel

BLOCK = 128
BOUNDS = (BLOCK, 4)  # with fewer registers than four blocks a multiprocessor allow, it spills
MAX_D = 4 * WARP_SIZE  # a lane keeps four elements of a vector, those at every 32nd place


@cuda.jit(device=True)
def clear_device(sum_4):
    """Set a lane's four elements of a vector to zero."""
    for e in range(4):
        sum_4[e] = float32(0)


@cuda.jit(device=True)
def add_rows_device(sum_4, weight, rows, first, n_rows, column, D):
    """Add up to 32 rows to a vector that the warp keeps; each lane brings the weight of one row."""
    lane = cuda.threadIdx.x & 31
    for row in range(n_rows):
        factor = cuda.shfl_sync(FULL_MASK, weight, row)
        for e in range(4):
            d = lane + e * WARP_SIZE
            if d < D:
                sum_4[e] += factor * load(rows[first + row], column + d)


@cuda.jit(device=True)
def store_vector_device(row, column, sum_4, factor, D):
    """Store a vector that the warp keeps, times a factor."""
    lane = cuda.threadIdx.x & 31
    for e in range(4):
        d = lane + e * WARP_SIZE
        if d < D:
            store(row, column + d, sum_4[e] * factor)


@kernel("void(real[:, ::1], float32[::1], real[:, ::1], int64, int64, float32)", launch_bounds=BOUNDS)
def attention_forward_kernel(out_NC, logsumexp_I, qkv_NE, T, H, scale):
    """A warp owns queries; a lane one key of 32 at a time, and four elements of the output."""
    sum_4 = cuda.local.array(4, float32)
    lane = cuda.threadIdx.x & 31
    C = out_NC.shape[1]
    D = C // H
    item = cuda.grid(1) >> 5
    while item < logsumexp_I.size:
        first, t, h = place_of_item(item, T, H)
        clear_device(sum_4)
        greatest = LOWEST
        total = float32(0)
        s = 0
        while s <= t:
            score = LOWEST
            if s + lane <= t:
                score = dot_device(qkv_NE[first + t], h * D, qkv_NE[first + s + lane], C + h * D, D) * scale
            before = greatest
            greatest = max(greatest, warp_max(score))
            weight = exp2((score - greatest) * LOG2_E) if s + lane <= t else float32(0)
            shrink = exp2((before - greatest) * LOG2_E)
            total = total * shrink + warp_sum(weight)
            for e in range(4):
                sum_4[e] *= shrink
            add_rows_device(sum_4, weight, qkv_NE, first + s, min(WARP_SIZE, t + 1 - s), 2 * C + h * D, D)
            s += WARP_SIZE
        store_vector_device(out_NC[first + t], h * D, sum_4, float32(1) / total, D)
        if lane == 0:
            logsumexp_I[item] = greatest + math.log(total)
        item += cuda.gridsize(1) >> 5


@cuda.jit(device=True)
def grad_score_device(grad_out_C, query_E, key_E, h, C, D, logsumexp, delta, scale):
    """Return the probability of a query and a key, and the gradient of their score."""
    score = dot_device(query_E, h * D, key_E, C + h * D, D) * scale
    probability = exp2((score - logsumexp) * LOG2_E)
    grad_probability = dot_device(grad_out_C, h * D, key_E, 2 * C + h * D, D)
    return probability, probability * (grad_probability - delta) * scale


@kernel("void(float32[::1], real[:, ::1], real[:, ::1], int64, int64)", launch_bounds=BLOCK)
def inner_product_kernel(delta_I, grad_out_NC, out_NC, T, H):
    """A warp owns queries: the inner product of the output and its gradient, which every key's gradient needs."""
    lane = cuda.threadIdx.x & 31
    D = out_NC.shape[1] // H
    item = cuda.grid(1) >> 5
    while item < out_NC.shape[0] * H:
        first, t, h = place_of_item(item, T, H)
        delta = float32(0)
        d = lane
        while d < D:
            delta += load(grad_out_NC[first + t], h * D + d) * load(out_NC[first + t], h * D + d)
            d += WARP_SIZE
        delta = warp_sum(delta)
        if lane == 0:
            delta_I[item] = delta
        item += cuda.gridsize(1) >> 5


def inner_product_launch(a: SimpleNamespace, sizes: SimpleNamespace, stream: object) -> Launch:
    """Prepare the launch of that kernel, whose result goes to the scratch memory, for what `take_backward` gave."""
    grid = ceil_div(a.logsumexp_I.size * WARP_SIZE, BLOCK)
    return Launch(inner_product_kernel, grid, BLOCK, (a.scratch_S, a.grad_out_NC, a.out_NC, sizes.T, sizes.H), stream)


@kernel(
    "void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], int64, int64, float32)",
    launch_bounds=BLOCK,
)
def grad_query_kernel(grad_qkv_NE, delta_I, grad_out_NC, qkv_NE, logsumexp_I, T, H, scale):
    """A warp owns queries; a lane one key of 32 at a time."""
    sum_4 = cuda.local.array(4, float32)
    lane = cuda.threadIdx.x & 31
    C = grad_out_NC.shape[1]
    D = C // H
    item = cuda.grid(1) >> 5
    while item < logsumexp_I.size:
        first, t, h = place_of_item(item, T, H)
        grad_out_C, query_E = grad_out_NC[first + t], qkv_NE[first + t]
        logsumexp, delta = logsumexp_I[item], delta_I[item]
        clear_device(sum_4)
        s = 0
        while s <= t:
            grad_score = float32(0)
            if s + lane <= t:
                key_E = qkv_NE[first + s + lane]
                _, grad_score = grad_score_device(grad_out_C, query_E, key_E, h, C, D, logsumexp, delta, scale)
            add_rows_device(sum_4, grad_score, qkv_NE, first + s, min(WARP_SIZE, t + 1 - s), C + h * D, D)
            s += WARP_SIZE
        store_vector_device(grad_qkv_NE[first + t], h * D, sum_4, float32(1), D)
        item += cuda.gridsize(1) >> 5


@kernel(
    "void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], int64, int64, float32)",
    launch_bounds=BLOCK,
)
def grad_key_value_kernel(grad_qkv_NE, delta_I, grad_out_NC, qkv_NE, logsumexp_I, T, H, scale):
    """A warp owns keys; a lane one of 32 queries at a time, from the key's own time on."""
    grad_key_4 = cuda.local.array(4, float32)
    grad_value_4 = cuda.local.array(4, float32)
    lane = cuda.threadIdx.x & 31
    C = grad_out_NC.shape[1]
    D = C // H
    item = cuda.grid(1) >> 5
    while item < logsumexp_I.size:
        first, s, h = place_of_item(item, T, H)
        clear_device(grad_key_4)
        clear_device(grad_value_4)
        t = s
        while t < T:
            probability = float32(0)
            grad_score = float32(0)
            if t + lane < T:
                row, query = first + t + lane, item - s + t + lane
                probability, grad_score = grad_score_device(
                    grad_out_NC[row], qkv_NE[row], qkv_NE[first + s], h, C, D,
                    logsumexp_I[query], delta_I[query], scale,
                )  # fmt: skip
            n_rows = min(WARP_SIZE, T - t)
            add_rows_device(grad_key_4, grad_score, qkv_NE, first + t, n_rows, h * D, D)
            add_rows_device(grad_value_4, probability, grad_out_NC, first + t, n_rows, h * D, D)
            t += WARP_SIZE
        store_vector_device(grad_qkv_NE[first + s], C + h * D, grad_key_4, float32(1), D)
        store_vector_device(grad_qkv_NE[first + s], 2 * C + h * D, grad_value_4, float32(1), D)
        item += cuda.gridsize(1) >> 5


def _check_head_size(D: int) -> None:
    if D > MAX_D:
        raise ValueError(f"the head size is {D}; at most {MAX_D} is possible")


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 is not used.
    Work     2*B*T*T*C flop (half of the square), every key and value read once a query: bound by the cache.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Milakov and Gimelshein 2018, algorithm 3 (arXiv:1805.02867); Dao et al. 2022 (arXiv:2205.14135).
    Book     Chapter 07, step 2.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE)
    D = sizes.C // sizes.H
    _check_head_size(D)
    grid = ceil_div(a.logsumexp_I.size * WARP_SIZE, BLOCK)
    arguments = (a.out_NC, a.logsumexp_I, a.qkv_NE, sizes.T, sizes.H, inverse_root(D))
    return [Launch(attention_forward_kernel, grid, BLOCK, arguments, stream)]


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     5*B*T*T*C flop (half of the square) and more, every row read once a pair: bound by the cache.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, appendix B.4 (arXiv:2205.14135).
    Book     Chapter 07, step 2.
    """
    a, sizes = take_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
    D = sizes.C // sizes.H
    _check_head_size(D)
    grid = ceil_div(a.logsumexp_I.size * WARP_SIZE, BLOCK)
    tensors = (a.grad_qkv_NE, a.scratch_S, a.grad_out_NC, a.qkv_NE, a.logsumexp_I)
    arguments = (*tensors, sizes.T, sizes.H, inverse_root(D))
    return [
        inner_product_launch(a, sizes, stream),
        Launch(grad_query_kernel, grid, BLOCK, arguments, stream),
        Launch(grad_key_value_kernel, grid, BLOCK, arguments, stream),
    ]
