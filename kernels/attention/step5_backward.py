"""The backward pass of step 5: two kernels that compute the probabilities again, without atomics.

One kernel owns queries and walks over keys and values, the other owns keys and values and walks over queries and
gradients of the output; so there are seven products instead of five, but each sum is made by one warp, in one order,
and nothing passes through shared memory between two products. The gradient of a probability less the row's delta, the
inner product of the output and its gradient, costs nothing: the product that makes it starts at minus delta. The first
kernel computes delta for both. Gradients of scores are taken without the factor 1 / sqrt(D), which the sums get in the
end. Words and letters are those of step 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from numba import cuda, float32, uint16

from kernels.attention import step4_tensor_cores
from kernels.attention.common import LOG2_E, take_backward
from kernels.attention.fragments import are_aligned_bf16
from kernels.attention.swizzled_tiles import (
    BLOCK,
    WARPS,
    TiledKernel,
    add_dots_device,
    add_weighted_device,
    as_words,
    clear_device,
    hide_earlier_queries_device,
    hide_later_keys_device,
    int32,
    place_of_block,
    quad_sum,
    scale_device,
    start_copy_device,
    start_stage_device,
    store_rows_device,
)
from kernels.launch import launcher
from kernels.ptx import cp_async_wait, exp2, shared_address, unpack_bf16x2
from kernels.registry import kernel

# ---- queries -------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def start_rows_device(sums, start_R):
    """Let the sums of each row start at a value."""
    for m in range(sums.shape[0]):
        for n in range(sums.shape[1]):
            for e in range(4):
                sums[m, n, e] = start_R[2 * m + (e >> 1)]


@cuda.jit(device=True)
def inner_products_device(product_R, x, y, place, stride, n_inside, WORDS):
    """Multiply each of the warp's rows of x, which begin at word `place`, by the same row of y."""
    g, column = cuda.threadIdx.x >> 2 & 7, cuda.threadIdx.x & 3
    for r in range(product_R.shape[0]):
        row = g + 8 * r
        total = float32(0)
        if row < n_inside:
            for i in range(WORDS >> 2):
                word = place + row * stride + column + 4 * i
                a, b = unpack_bf16x2(x[word]), unpack_bf16x2(y[word])
                total += a[0] * b[0] + a[1] * b[1]
        product_R[r] = quad_sum(total)


@cuda.jit(device=True)
def start_queries_device(logsumexp_R, delta_R, logsumexp_I, delta_I, first_item, first_query, T):
    """Store the delta of the warp's queries; keep minus delta, and the log-sum-exp to base 2."""
    lane = cuda.threadIdx.x & 31
    for r in range(delta_R.shape[0]):
        query = first_query + (lane >> 2) + 8 * r
        if lane & 3 == 0 and query < T:
            delta_I[first_item + query] = delta_R[r]
        delta_R[r] = -delta_R[r]
        logsumexp_R[r] = logsumexp_I[first_item + min(query, T - 1)] * LOG2_E


def make_visit_of_keys(D: int, M: int, KEYS: int) -> Callable:
    """Make the function in which a warp's queries meet a tile of keys and values."""
    TILES = KEYS // 8

    @cuda.jit(device=True)
    def visit_keys_device(sums, queries, grads_out, keys, values, logsumexp_R, start_R, s, mine, factor):
        scores = cuda.local.array((M, TILES, 4), float32)
        grads = cuda.local.array((M, TILES, 4), float32)
        clear_device(scores)
        add_dots_device(scores, queries, keys, D)
        start_rows_device(grads, start_R)
        add_dots_device(grads, grads_out, values, D)
        if int32(s + KEYS) > int32(mine + 1):  # the warp's first query does not see all of them
            hide_later_keys_device(scores, s, mine)
        for m in range(M):
            for n in range(TILES):
                for e in range(4):
                    grads[m, n, e] *= exp2(scores[m, n, e] * factor - logsumexp_R[2 * m + (e >> 1)])
        add_weighted_device(sums, grads, keys, D)

    return visit_keys_device


def make_grad_query_kernel(D: int, M: int, KEYS: int, blocks: int) -> TiledKernel:
    """Make the kernel of the queries' gradient, for the same arguments as forward's."""
    OWN, ROWS, WORDS, OUT_TILES = WARPS * 16 * M, 2 * M, D // 2, D // 8
    OWN_BYTES, TILE_BYTES, WARP_BYTES = OWN * 2 * D, KEYS * 2 * D, 16 * M * 2 * D
    visit_keys_device = make_visit_of_keys(D, M, KEYS)

    @kernel(
        "void(uint32[::1], float32[::1], uint32[::1], uint32[::1], uint32[::1], float32[::1], "
        "int64, int64, int64, float32)",
        name=f"grad_query_{D}_kernel",
        launch_bounds=(BLOCK, blocks),
    )
    def grad_query_kernel(grad_qkv, delta_I, grad_out, out, qkv, logsumexp_I, T, H, group, scale):
        """A block owns queries of a head; the last, which see most keys, come first."""
        sums = cuda.local.array((M, OUT_TILES, 4), float32)
        logsumexp_R = cuda.local.array(ROWS, float32)
        delta_R = cuda.local.array(ROWS, float32)
        own = shared_address(cuda.shared.array(0, uint16, 256), 0)
        tiles = own + 2 * OWN_BYTES
        C, E, factor = H * WORDS, 3 * H * WORDS, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        if cuda.blockIdx.x >= n_heads * n_tiles:
            return
        b, h, head, tile = place_of_block(n_heads, n_tiles, group, H)
        first = int32((n_tiles - 1 - tile) * OWN)
        end = int32(min(T, first + OWN))
        queries, grads_out = b * T * E + h * WORDS, b * T * C + h * WORDS
        keys = queries + C
        start_copy_device(own, qkv, queries + first * E, E, T - first, OWN, D)
        start_copy_device(own + OWN_BYTES, grad_out, grads_out + first * C, C, T - first, OWN, D)
        start_stage_device(tiles, qkv, keys, E, qkv, keys + C, E, T, KEYS, D)
        warp = cuda.threadIdx.x >> 5
        own, mine = own + warp * WARP_BYTES, int32(first + warp * 16 * M)  # the warp's first row
        inner_products_device(delta_R, grad_out, out, grads_out + mine * C, C, T - mine, WORDS)
        start_queries_device(logsumexp_R, delta_R, logsumexp_I, delta_I, head * T, mine, T)
        clear_device(sums)
        s = int32(0)
        while s < end:
            cp_async_wait(0)
            cuda.syncthreads()  # this stage is there, and all have left the other one
            later = int32(s + KEYS)
            now, ahead = tiles + (s & KEYS) * 4 * D, tiles + (later & KEYS) * 4 * D  # two stages in turn
            if later < end:
                place = keys + later * E
                start_stage_device(ahead, qkv, place, E, qkv, place + C, E, T - later, KEYS, D)
            if s <= int32(mine + 16 * M - 1):  # the warp's last query sees these keys
                visit_keys_device(
                    sums, own, own + OWN_BYTES, now, now + TILE_BYTES, logsumexp_R, delta_R, s, mine, factor
                )
            s = later
        scale_device(sums, scale)
        store_rows_device(grad_qkv, queries + mine * E, E, T - mine, sums)

    return TiledKernel(grad_query_kernel, OWN, 2 * OWN_BYTES + 4 * TILE_BYTES)


# ---- keys and values -----------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def start_columns_device(sums, starts, first):
    """Let the sums of each column start at a value, those of the first column at value `first`."""
    column = first + 2 * (cuda.threadIdx.x & 3)
    for n in range(sums.shape[1]):
        for e in range(2):
            start = starts[column + n * 8 + e]
            for m in range(sums.shape[0]):
                sums[m, n, e], sums[m, n, e + 2] = start, start


@cuda.jit(device=True)
def grad_scores_of_keys_device(scores, grads, logsumexps, first, factor):
    """Turn scores into probabilities, and gradients of these, less delta, into those of the scores."""
    column = first + 2 * (cuda.threadIdx.x & 3)
    for n in range(scores.shape[1]):
        for e in range(2):
            logsumexp = logsumexps[column + n * 8 + e]
            for m in range(scores.shape[0]):
                for i in range(e, 4, 2):
                    probability = exp2(scores[m, n, i] * factor - logsumexp)
                    scores[m, n, i] = probability
                    grads[m, n, i] *= probability


def make_visit_of_queries(D: int, M: int, QUERIES: int) -> Callable:
    """Make the function in which a warp's keys and values meet a tile of queries and gradients of the output."""
    TILES = QUERIES // 8

    @cuda.jit(device=True)
    def visit_queries_device(
        key_sums, value_sums, keys, values, queries, grads_out, logsumexps, starts, first, t, mine, factor
    ):
        scores = cuda.local.array((M, TILES, 4), float32)
        grads = cuda.local.array((M, TILES, 4), float32)
        clear_device(scores)
        add_dots_device(scores, keys, queries, D)
        start_columns_device(grads, starts, first)
        add_dots_device(grads, values, grads_out, D)
        if t < int32(mine + 16 * M - 1):  # the first of them does not see all the warp's keys
            hide_earlier_queries_device(scores, t, mine)
        grad_scores_of_keys_device(scores, grads, logsumexps, first, factor)
        add_weighted_device(value_sums, scores, grads_out, D)
        add_weighted_device(key_sums, grads, queries, D)

    return visit_queries_device


@cuda.jit(device=True)
def fetch_query_device(logsumexp_I, delta_I, first_item, query, T):
    """Return the log-sum-exp of a query to base 2, and minus its delta; past the last its weights shall be zero."""
    if query >= T:
        return float32(math.inf), float32(0)
    return logsumexp_I[first_item + query] * LOG2_E, -delta_I[first_item + query]


def make_grad_key_value_kernel(D: int, M: int, QUERIES: int, blocks: int) -> TiledKernel:
    """Make the kernel of the keys' and values' gradients, for the same arguments as forward's."""
    OWN, WORDS, OUT_TILES, IN_STAGES = WARPS * 16 * M, D // 2, D // 8, 2 * QUERIES
    OWN_BYTES, TILE_BYTES, WARP_BYTES = OWN * 2 * D, QUERIES * 2 * D, 16 * M * 2 * D
    visit_queries_device = make_visit_of_queries(D, M, QUERIES)

    @kernel(
        "void(uint32[::1], float32[::1], uint32[::1], uint32[::1], float32[::1], int64, int64, int64, float32)",
        name=f"grad_key_value_{D}_kernel",
        launch_bounds=(BLOCK, blocks),
    )
    def grad_key_value_kernel(grad_qkv, delta_I, grad_out, qkv, logsumexp_I, T, H, group, scale):
        """A block owns keys and values of a head; the first, which most queries see, come first."""
        logsumexps = cuda.shared.array(IN_STAGES, float32, 16)
        starts = cuda.shared.array(IN_STAGES, float32, 16)
        key_sums = cuda.local.array((M, OUT_TILES, 4), float32)
        value_sums = cuda.local.array((M, OUT_TILES, 4), float32)
        own = shared_address(cuda.shared.array(0, uint16, 256), 0)
        tiles = own + 2 * OWN_BYTES
        C, E, factor = H * WORDS, 3 * H * WORDS, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        if cuda.blockIdx.x >= n_heads * n_tiles:
            return
        b, h, head, tile = place_of_block(n_heads, n_tiles, group, H)
        t = int32(tile * OWN)  # earlier queries do not see these keys
        queries, grads_out = b * T * E + h * WORDS, b * T * C + h * WORDS
        keys, first_item, thread = queries + C, int32(head * T), cuda.threadIdx.x
        start_copy_device(own, qkv, keys + t * E, E, T - t, OWN, D)
        start_copy_device(own + OWN_BYTES, qkv, keys + C + t * E, E, T - t, OWN, D)
        now, x, y = tiles + (t & QUERIES) * 4 * D, queries + t * E, grads_out + t * C
        start_stage_device(now, qkv, x, E, grad_out, y, C, T - t, QUERIES, D)
        own, mine = own + (thread >> 5) * WARP_BYTES, int32(t + (thread >> 5) * 16 * M)  # the warp's first row
        if thread < QUERIES:
            place = (t & QUERIES) + thread
            logsumexps[place], starts[place] = fetch_query_device(logsumexp_I, delta_I, first_item, t + thread, T)
        clear_device(key_sums)
        clear_device(value_sums)
        while t < T:
            cp_async_wait(0)
            cuda.syncthreads()  # this stage is there, and all have left the other one
            later = int32(t + QUERIES)
            now, ahead = tiles + (t & QUERIES) * 4 * D, tiles + (later & QUERIES) * 4 * D  # two stages in turn
            if later < T:
                x, y = queries + later * E, grads_out + later * C
                start_stage_device(ahead, qkv, x, E, grad_out, y, C, T - later, QUERIES, D)
            logsumexp, start = fetch_query_device(logsumexp_I, delta_I, first_item, later + thread, T)
            if later > mine:  # the last of these queries sees the warp's first key
                visit_queries_device(
                    key_sums, value_sums, own, own + OWN_BYTES, now, now + TILE_BYTES, logsumexps, starts, t & QUERIES,
                    t, mine, factor,
                )  # fmt: skip
            if thread < QUERIES:
                place = (later & QUERIES) + thread
                logsumexps[place], starts[place] = logsumexp, start
            t = later
        scale_device(key_sums, scale)
        store_rows_device(grad_qkv, keys + mine * E, E, T - mine, key_sums)
        store_rows_device(grad_qkv, keys + C + mine * E, E, T - mine, value_sums)

    return TiledKernel(grad_key_value_kernel, OWN, 2 * OWN_BYTES + 4 * TILE_BYTES)


GRAD_QUERY_KERNELS = {64: make_grad_query_kernel(64, 2, 64, 2), 128: make_grad_query_kernel(128, 1, 32, 3)}
GRAD_KEY_VALUE_KERNELS = {64: make_grad_key_value_kernel(64, 2, 32, 2), 128: make_grad_key_value_kernel(128, 1, 32, 2)}
HEAD_SIZES = tuple(GRAD_QUERY_KERNELS)


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     7*B*T*T*C flop (half of the square; two products are made twice), a row read once for 128 others.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, appendix B.4 (arXiv:2205.14135); Dao 2023, algorithm 2 (arXiv:2307.08691).
    Book     Chapter 07, step 5.
    """
    a, sizes = take_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
    D = sizes.C // sizes.H
    if D not in HEAD_SIZES or not are_aligned_bf16(a.qkv_NE, a.grad_out_NC, a.out_NC, a.grad_qkv_NE):
        arrays = (grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
        return step4_tensor_cores.attention_backward.prepare(*arrays, stream)
    grad_qkv, grad_out, out, qkv = as_words(a.grad_qkv_NE, a.grad_out_NC, a.out_NC, a.qkv_NE)
    of_queries = (grad_qkv, a.scratch_S, grad_out, out, qkv, a.logsumexp_I)
    of_keys = (grad_qkv, a.scratch_S, grad_out, qkv, a.logsumexp_I)
    return [
        GRAD_QUERY_KERNELS[D].launch(of_queries, sizes, stream),
        GRAD_KEY_VALUE_KERNELS[D].launch(of_keys, sizes, stream),
    ]
