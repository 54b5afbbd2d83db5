"""Attention, step 4: bfloat16 tensor cores with `mma.sync`, fed by `cp.async` and `ldmatrix`.

The tiles of step 3, but a warp multiplies 16 x 16 by 16 x 8 elements at once, and the softmax works on the sums where
the tensor core leaves them. Weights are rounded to bfloat16 for the second product; sums stay float32. Other dtypes and
head sizes, and arrays that do not begin at a multiple of 16 bytes, go to step 3. Flat arrays: E = 3*C elements a
row of qkv.
"""

from __future__ import annotations

import math

from numba import cuda, float32, uint16, uint32

from kernels.attention import step3_flash
from kernels.attention.common import LOG2_E, LOWEST, inverse_root, take_forward
from kernels.attention.common import attention_scratch_size as attention_scratch_size
from kernels.attention.fragments import (
    BLOCK,
    BOUNDS,
    OWN,
    add_weighted_device,
    are_aligned_bf16,
    clear_device,
    dots_device,
    fetch_own_device,
    own_row_device,
    place_of_block,
    quad_max,
    quad_sum,
    shared_elements,
    start_stage_device,
    store_own_device,
)
from kernels.attention.step4_backward import attention_backward as attention_backward
from kernels.launch import Launch, ceil_div, launcher
from kernels.ptx import cp_async_wait, exp2
from kernels.registry import kernel


@cuda.jit(device=True)
def softmax_device(scores, n_tiles, first_key, query, half, greatest, factor):
    """Turn the lane's scores of one row into weights; return the new greatest score, their sum and what shrinks sums.

    `half` is 0 for the lane's upper row and 1 for its lower; keys after the query get the weight 0.
    """
    key = first_key + 2 * (cuda.threadIdx.x & 3)
    before = greatest
    for n in range(n_tiles):
        for e in range(2):
            if key + n * 8 + e > query:
                scores[n, 2 * half + e] = LOWEST
            greatest = max(greatest, scores[n, 2 * half + e])
    greatest = quad_max(greatest)
    total = float32(0)
    for n in range(n_tiles):
        for e in range(2):
            weight = exp2((scores[n, 2 * half + e] - greatest) * factor)
            scores[n, 2 * half + e] = weight
            total += weight
    return greatest, total, exp2((before - greatest) * factor)


@cuda.jit(device=True)
def scale_device(sums, n_tiles, top, bottom):
    """Multiply the lane's upper row of sums by one factor and its lower row by another."""
    for n in range(n_tiles):
        sums[n, 0] *= top
        sums[n, 1] *= top
        sums[n, 2] *= bottom
        sums[n, 3] *= bottom


@cuda.jit(device=True)
def store_logsumexp_device(logsumexp_I, first_item, query, T, greatest, total, scale):
    """Store the log-sum-exp of a row, by one of the four lanes that share it."""
    if cuda.threadIdx.x & 3 == 0 and query < T:
        logsumexp_I[first_item + query] = greatest * scale + math.log(total)


def make_forward_kernel(D: int):
    """Make the forward kernel for one head size, which fixes how many registers hold what."""
    KEYS = min(64, 4096 // D)  # of a tile
    ELEMENTS = shared_elements(KEYS, D)
    PARTS, OUT_TILES, KEY_TILES = D // 16, D // 8, KEYS // 8

    @kernel(
        "void(uint16[::1], float32[::1], uint16[::1], int64, int64, float32)",
        name=f"attention_forward_{D}_kernel",
        launch_bounds=BOUNDS,
    )
    def attention_forward_kernel(out, logsumexp_I, qkv, T, H, scale):
        """A block owns 64 queries of a head at a time, a warp 16; the last queries, which see most keys, come first."""
        tiles = cuda.shared.array(ELEMENTS, uint16, 16)
        query_words = cuda.local.array((PARTS, 4), uint32)
        scores = cuda.local.array((KEY_TILES, 4), float32)
        sums = cuda.local.array((OUT_TILES, 4), float32)
        C, E, factor = H * D, 3 * H * D, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        index = cuda.blockIdx.x
        while index < n_heads * n_tiles:
            b, h, tile, head = place_of_block(index, n_heads, n_tiles, H)
            first = (n_tiles - 1 - tile) * OWN
            begin = b * T * E + h * D  # of the head's queries
            fetch_own_device(query_words, tiles, qkv, begin + first * E, E, T - first, D)
            start_stage_device(tiles, 0, KEYS, qkv, begin + C, E, qkv, begin + 2 * C, E, T, D)
            clear_device(sums, OUT_TILES)
            query = first + own_row_device()
            greatest, greatest_8 = LOWEST, LOWEST  # of the lane's upper row, and of its lower, 8 further
            total, total_8 = float32(0), float32(0)
            stage, s = 0, 0
            while s < min(T, first + OWN):
                later = s + KEYS
                if later < min(T, first + OWN):
                    start = begin + C + later * E
                    start_stage_device(tiles, 1 - stage, KEYS, qkv, start, E, qkv, start + C, E, T - later, D)
                    cp_async_wait(1)
                else:
                    cp_async_wait(0)
                cuda.syncthreads()  # the copies of all threads are there
                dots_device(scores, query_words, tiles, stage * 2 * KEYS, KEYS, D)
                greatest, added, shrink = softmax_device(scores, KEY_TILES, s, query, 0, greatest, factor)
                greatest_8, added_8, shrink_8 = softmax_device(scores, KEY_TILES, s, query + 8, 1, greatest_8, factor)
                total, total_8 = total * shrink + added, total_8 * shrink_8 + added_8
                scale_device(sums, OUT_TILES, shrink, shrink_8)
                add_weighted_device(sums, scores, tiles, stage * 2 * KEYS + KEYS, KEYS, D)
                cuda.syncthreads()  # all have read this stage: it may be copied into
                stage, s = 1 - stage, later
            total, total_8 = quad_sum(total), quad_sum(total_8)
            start = (b * T + first) * C + h * D
            store_own_device(out, start, C, T - first, sums, float32(1) / total, float32(1) / total_8, D)
            store_logsumexp_device(logsumexp_I, head * T, query, T, greatest, total, scale)
            store_logsumexp_device(logsumexp_I, head * T, query + 8, T, greatest_8, total_8, scale)
            index += cuda.gridDim.x

    return attention_forward_kernel


HEAD_SIZES = (16, 32, 64, 128)
FORWARD_KERNELS = {D: make_forward_kernel(D) for D in HEAD_SIZES}


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 is not used.
    Work     2*B*T*T*C flop (half of the square), a key and value read once for 64 queries: bound by the arithmetic.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao 2023, algorithm 1 (arXiv:2307.08691); PTX ISA 9.0, Matrix Fragments for mma.m16n8k16.
    Book     Chapter 07, step 4.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE)
    D = sizes.C // sizes.H
    if D not in HEAD_SIZES or not are_aligned_bf16(a.qkv_NE):
        return step3_flash.attention_forward.prepare(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream)
    arguments = (a.out_NC.reshape(a.out_NC.size), a.logsumexp_I, a.qkv_NE.reshape(a.qkv_NE.size))
    grid = sizes.B * sizes.H * ceil_div(sizes.T, OWN)
    return [Launch(FORWARD_KERNELS[D], grid, BLOCK, (*arguments, sizes.T, sizes.H, inverse_root(D)), stream)]
