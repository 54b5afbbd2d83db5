"""Attention, step 5: the most that `mma.sync` gives, on an A100 and every GPU after it.

The products are those of step 4. What is new is how little happens between them. A warp owns 32 rows, so that what
`ldmatrix` brings is multiplied twice. Swizzled tiles need no padding, one barrier a tile is enough, only tiles on the
diagonal are masked, scale and base of the exponential are one multiplication and one subtraction fused, and whatever
does not change is computed before the loop, in 32 bits. Blocks that run at the same time read the same few heads, which
the L2 cache holds. Other dtypes and head sizes, and arrays that do not begin at a multiple of 16 bytes, go to step 4.
Flat arrays of words of two elements: E = 3*C words a row of qkv, C = H * WORDS.
"""

from __future__ import annotations

import math

from numba import cuda, float32, uint16

from kernels.attention import step4_tensor_cores
from kernels.attention.common import LOG2_E, LOWEST, take_forward
from kernels.attention.common import attention_scratch_size as attention_scratch_size
from kernels.attention.fragments import are_aligned_bf16
from kernels.attention.step5_backward import attention_backward as attention_backward
from kernels.attention.swizzled_tiles import (
    BLOCK,
    WARPS,
    TiledKernel,
    add_dots_device,
    add_weighted_device,
    as_words,
    clear_device,
    hide_later_keys_device,
    int32,
    place_of_block,
    quad_max,
    quad_sum,
    start_copy_device,
    start_stage_device,
    store_rows_device,
)
from kernels.launch import launcher
from kernels.ptx import cp_async_wait, exp2, shared_address
from kernels.registry import kernel


@cuda.jit(device=True)
def softmax_device(scores, sums, greatest_R, total_R, factor):
    """Turn scores into weights, and bring the rows' totals and sums to their new greatest scores."""
    for r in range(2 * scores.shape[0]):
        m, e = r >> 1, 2 * (r & 1)
        greatest = greatest_R[r]
        for n in range(scores.shape[1]):
            greatest = max(greatest, max(scores[m, n, e], scores[m, n, e + 1]))
        greatest = quad_max(greatest)
        shrink, shift = exp2((greatest_R[r] - greatest) * factor), greatest * factor
        greatest_R[r] = greatest
        total = total_R[r] * shrink
        for n in range(scores.shape[1]):
            for i in range(2):
                weight = exp2(scores[m, n, e + i] * factor - shift)
                scores[m, n, e + i] = weight
                total += weight
        total_R[r] = total
        for n in range(sums.shape[1]):
            sums[m, n, e] *= shrink
            sums[m, n, e + 1] *= shrink


@cuda.jit(device=True)
def finish_rows_device(sums, logsumexp_I, first_item, first_query, T, greatest_R, total_R, scale):
    """Store the log-sum-exp of the warp's rows, and divide their sums by the totals of the weights."""
    lane = cuda.threadIdx.x & 31
    for r in range(2 * sums.shape[0]):
        m, e = r >> 1, 2 * (r & 1)
        total = quad_sum(total_R[r])
        query = first_query + (lane >> 2) + 8 * r
        if lane & 3 == 0 and query < T:
            logsumexp_I[first_item + query] = greatest_R[r] * scale + math.log(total)
        factor = float32(1) / total
        for n in range(sums.shape[1]):
            sums[m, n, e] *= factor
            sums[m, n, e + 1] *= factor


def make_forward_kernel(D: int, M: int, KEYS: int, blocks: int) -> TiledKernel:
    """Make the forward kernel for heads of D, 16 * M rows a warp, KEYS of a tile, and blocks a multiprocessor."""
    OWN, ROWS, WORDS = WARPS * 16 * M, 2 * M, D // 2
    OUT_TILES, KEY_TILES = D // 8, KEYS // 8
    OWN_BYTES, TILE_BYTES, WARP_BYTES = OWN * 2 * D, KEYS * 2 * D, 16 * M * 2 * D

    @kernel(
        "void(uint32[::1], float32[::1], uint32[::1], int64, int64, int64, float32)",
        name=f"attention_forward_{D}_kernel",
        launch_bounds=(BLOCK, blocks),
    )
    def attention_forward_kernel(out, logsumexp_I, qkv, T, H, group, scale):
        """A block owns queries of a head; the last, which see most keys, come first."""
        scores = cuda.local.array((M, KEY_TILES, 4), float32)
        sums = cuda.local.array((M, OUT_TILES, 4), float32)
        greatest_R = cuda.local.array(ROWS, float32)
        total_R = cuda.local.array(ROWS, float32)
        own = shared_address(cuda.shared.array(0, uint16, 256), 0)
        tiles = own + OWN_BYTES
        C, E, factor = H * WORDS, 3 * H * WORDS, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        if cuda.blockIdx.x >= n_heads * n_tiles:
            return
        b, h, head, tile = place_of_block(n_heads, n_tiles, group, H)
        first = int32((n_tiles - 1 - tile) * OWN)
        end = int32(min(T, first + OWN))
        queries = b * T * E + h * WORDS
        keys, values = queries + C, queries + 2 * C
        start_copy_device(own, qkv, queries + first * E, E, T - first, OWN, D)
        start_stage_device(tiles, qkv, keys, E, qkv, values, E, T, KEYS, D)
        warp = cuda.threadIdx.x >> 5
        own, mine = own + warp * WARP_BYTES, int32(first + warp * 16 * M)  # the warp's first row
        clear_device(sums)
        for r in range(ROWS):
            greatest_R[r], total_R[r] = LOWEST, float32(0)
        s = int32(0)
        while s < end:
            cp_async_wait(0)
            cuda.syncthreads()  # this stage is there, and all have left the other one
            later = int32(s + KEYS)
            now, ahead = tiles + (s & KEYS) * 4 * D, tiles + (later & KEYS) * 4 * D  # two stages in turn
            if later < end:
                start_stage_device(ahead, qkv, keys + later * E, E, qkv, values + later * E, E, T - later, KEYS, D)
            if s <= int32(mine + 16 * M - 1):  # the warp's last query sees these keys
                clear_device(scores)
                add_dots_device(scores, own, now, D)
                if later > int32(mine + 1):  # and its first does not see all
                    hide_later_keys_device(scores, s, mine)
                softmax_device(scores, sums, greatest_R, total_R, factor)
                add_weighted_device(sums, scores, now + TILE_BYTES, D)
            s = later
        finish_rows_device(sums, logsumexp_I, head * T, mine, T, greatest_R, total_R, scale)
        store_rows_device(out, (b * T + mine) * C + h * WORDS, C, T - mine, sums)

    return TiledKernel(attention_forward_kernel, OWN, OWN_BYTES + 4 * TILE_BYTES)


FORWARD_KERNELS = {64: make_forward_kernel(64, 2, 64, 2), 128: make_forward_kernel(128, 1, 64, 2)}
HEAD_SIZES = tuple(FORWARD_KERNELS)


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 is not used.
    Work     2*B*T*T*C flop (half of the square), a key and value read once for 128 queries (64 if D = 128).
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao 2023, algorithm 1 (arXiv:2307.08691); PTX ISA 9.0, Matrix Fragments for mma.m16n8k16.
    Book     Chapter 07, step 5.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE)
    D = sizes.C // sizes.H
    if D not in HEAD_SIZES or not are_aligned_bf16(a.qkv_NE, a.out_NC):
        return step4_tensor_cores.attention_forward.prepare(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream)
    out, qkv = as_words(a.out_NC, a.qkv_NE)
    return [FORWARD_KERNELS[D].launch((out, a.logsumexp_I, qkv), sizes, stream)]
