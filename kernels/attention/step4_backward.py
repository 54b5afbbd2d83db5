"""The backward pass of step 4, on tensor cores: two kernels that compute the probabilities again, without atomics.

One kernel owns queries and walks over keys and values, the other owns keys and walks over queries and gradients of
the output, so each sum is made by one warp, in one order. Gradients of scores are taken without the factor 1 / sqrt(D),
which the sums get in the end. Heads of 128 go to step 3. Flat arrays: E = 3*C elements a row of qkv.
"""

from __future__ import annotations

from numba import cuda, float32, uint16, uint32

from kernels.attention import step3_flash
from kernels.attention.common import LOG2_E, inverse_root, take_backward
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
    shared_elements,
    start_stage_device,
    store_own_device,
)
from kernels.attention.step2_online_softmax import inner_product_launch
from kernels.launch import Launch, ceil_div, launcher
from kernels.ptx import cp_async_wait, exp2
from kernels.registry import kernel

SIGNATURE = "void(uint16[::1], float32[::1], uint16[::1], uint16[::1], float32[::1], int64, int64, float32)"


@cuda.jit(device=True)
def grad_scores_of_query_device(scores, grads, n_tiles, first_key, query, half, T, logsumexp, delta, factor):
    """Turn the lane's gradients of the probabilities of one row, a query, into those of the scores."""
    key = first_key + 2 * (cuda.threadIdx.x & 3)
    for n in range(n_tiles):
        for e in range(2):
            place = 2 * half + e
            probability = exp2(scores[n, place] * factor - logsumexp * LOG2_E)
            seen = query < T and key + n * 8 + e <= query
            grads[n, place] = probability * (grads[n, place] - delta) if seen else float32(0)


@cuda.jit(device=True)
def grad_scores_of_keys_device(scores, grads, n_tiles, key, first_query, T, first_item, logsumexp_I, delta_I, factor):
    """Turn scores into probabilities, and gradients of these into those of the scores; rows are keys here."""
    column = first_query + 2 * (cuda.threadIdx.x & 3)
    for n in range(n_tiles):
        for e in range(2):
            query = column + n * 8 + e
            item = first_item + min(query, T - 1)
            logsumexp, delta = logsumexp_I[item] * LOG2_E, delta_I[item]
            for half in range(2):
                place = 2 * half + e
                probability = exp2(scores[n, place] * factor - logsumexp)
                seen = query < T and key + 8 * half <= query
                scores[n, place] = probability if seen else float32(0)
                grads[n, place] = scores[n, place] * (grads[n, place] - delta)


def make_grad_query_kernel(D: int):
    """Make the kernel of the queries' gradient for one head size, which fixes how many registers hold what."""
    KEYS = 32  # of a tile
    ELEMENTS = shared_elements(KEYS, D)
    PARTS, OUT_TILES, KEY_TILES = D // 16, D // 8, KEYS // 8

    @kernel(SIGNATURE, name=f"grad_query_{D}_kernel", launch_bounds=BOUNDS)
    def grad_query_kernel(grad_qkv, delta_I, grad_out, qkv, logsumexp_I, T, H, scale):
        """A block owns 64 queries of a head at a time, a warp 16; the last queries, which see most keys, come first."""
        tiles = cuda.shared.array(ELEMENTS, uint16, 16)
        query_words = cuda.local.array((PARTS, 4), uint32)
        grad_words = cuda.local.array((PARTS, 4), uint32)
        scores = cuda.local.array((KEY_TILES, 4), float32)
        grads = cuda.local.array((KEY_TILES, 4), float32)
        sums = cuda.local.array((OUT_TILES, 4), float32)
        C, E, factor = H * D, 3 * H * D, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        index = cuda.blockIdx.x
        while index < n_heads * n_tiles:
            b, h, tile, head = place_of_block(index, n_heads, n_tiles, H)
            first = (n_tiles - 1 - tile) * OWN
            begin = b * T * E + h * D  # of the head's queries
            fetch_own_device(query_words, tiles, qkv, begin + first * E, E, T - first, D)
            fetch_own_device(grad_words, tiles, grad_out, (b * T + first) * C + h * D, C, T - first, D)
            start_stage_device(tiles, 0, KEYS, qkv, begin + C, E, qkv, begin + 2 * C, E, T, D)
            clear_device(sums, OUT_TILES)
            query = first + own_row_device()
            item, item_8 = head * T + min(query, T - 1), head * T + min(query + 8, T - 1)
            logsumexp, logsumexp_8 = logsumexp_I[item], logsumexp_I[item_8]
            delta, delta_8 = delta_I[item], delta_I[item_8]
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
                keys = stage * 2 * KEYS
                dots_device(scores, query_words, tiles, keys, KEYS, D)
                dots_device(grads, grad_words, tiles, keys + KEYS, KEYS, D)
                grad_scores_of_query_device(scores, grads, KEY_TILES, s, query, 0, T, logsumexp, delta, factor)
                grad_scores_of_query_device(scores, grads, KEY_TILES, s, query + 8, 1, T, logsumexp_8, delta_8, factor)
                add_weighted_device(sums, grads, tiles, keys, KEYS, D)
                cuda.syncthreads()  # all have read this stage: it may be copied into
                stage, s = 1 - stage, later
            store_own_device(grad_qkv, begin + first * E, E, T - first, sums, scale, scale, D)
            index += cuda.gridDim.x

    return grad_query_kernel


def make_grad_key_value_kernel(D: int):
    """Make the kernel of the keys' and values' gradients for one head size."""
    QUERIES = 32 if D < 64 else 16  # of a tile; more would spill registers
    ELEMENTS = shared_elements(QUERIES, D)
    PARTS, OUT_TILES, QUERY_TILES = D // 16, D // 8, QUERIES // 8

    @kernel(SIGNATURE, name=f"grad_key_value_{D}_kernel", launch_bounds=BOUNDS)
    def grad_key_value_kernel(grad_qkv, delta_I, grad_out, qkv, logsumexp_I, T, H, scale):
        """A block owns 64 keys of a head at a time, a warp 16; the first keys, which most queries see, come first."""
        tiles = cuda.shared.array(ELEMENTS, uint16, 16)
        key_words = cuda.local.array((PARTS, 4), uint32)
        value_words = cuda.local.array((PARTS, 4), uint32)
        scores = cuda.local.array((QUERY_TILES, 4), float32)
        grads = cuda.local.array((QUERY_TILES, 4), float32)
        key_sums = cuda.local.array((OUT_TILES, 4), float32)
        value_sums = cuda.local.array((OUT_TILES, 4), float32)
        C, E, factor = H * D, 3 * H * D, scale * LOG2_E
        n_heads, n_tiles = logsumexp_I.size // T, (T + OWN - 1) // OWN
        index = cuda.blockIdx.x
        while index < n_heads * n_tiles:
            b, h, tile, head = place_of_block(index, n_heads, n_tiles, H)
            first = tile * OWN
            begin, begin_out = b * T * E + h * D, b * T * C + h * D  # of the head's queries, and gradients
            own = begin + C + first * E
            fetch_own_device(key_words, tiles, qkv, own, E, T - first, D)
            fetch_own_device(value_words, tiles, qkv, own + C, E, T - first, D)
            t = first  # earlier queries do not see these keys
            start, start_out = begin + t * E, begin_out + t * C
            start_stage_device(tiles, 0, QUERIES, qkv, start, E, grad_out, start_out, C, T - t, D)
            clear_device(key_sums, OUT_TILES)
            clear_device(value_sums, OUT_TILES)
            key = first + own_row_device()
            stage = 0
            while t < T:
                later = t + QUERIES
                if later < T:
                    start, start_out = begin + later * E, begin_out + later * C
                    start_stage_device(tiles, 1 - stage, QUERIES, qkv, start, E, grad_out, start_out, C, T - later, D)
                    cp_async_wait(1)
                else:
                    cp_async_wait(0)
                cuda.syncthreads()  # the copies of all threads are there
                row = stage * 2 * QUERIES
                dots_device(scores, key_words, tiles, row, QUERIES, D)
                dots_device(grads, value_words, tiles, row + QUERIES, QUERIES, D)
                grad_scores_of_keys_device(
                    scores, grads, QUERY_TILES, key, t, T, head * T, logsumexp_I, delta_I, factor
                )
                add_weighted_device(value_sums, scores, tiles, row + QUERIES, QUERIES, D)
                add_weighted_device(key_sums, grads, tiles, row, QUERIES, D)
                cuda.syncthreads()  # all have read this stage: it may be copied into
                stage, t = 1 - stage, later
            store_own_device(grad_qkv, own, E, T - first, key_sums, scale, scale, D)
            store_own_device(grad_qkv, own + C, E, T - first, value_sums, float32(1), float32(1), D)
            index += cuda.gridDim.x

    return grad_key_value_kernel


HEAD_SIZES = (16, 32, 64)  # 128 would spill registers
GRAD_QUERY_KERNELS = {D: make_grad_query_kernel(D) for D in HEAD_SIZES}
GRAD_KEY_VALUE_KERNELS = {D: make_grad_key_value_kernel(D) for D in HEAD_SIZES}


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     7*B*T*T*C flop (half of the square; two products are made twice), a row read once for 64 pairs.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, appendix B.4 (arXiv:2205.14135); Dao 2023, algorithm 2 (arXiv:2307.08691).
    Book     Chapter 07, step 4.
    """
    a, sizes = take_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
    D = sizes.C // sizes.H
    if D not in HEAD_SIZES or not are_aligned_bf16(a.qkv_NE, a.grad_out_NC):
        arrays = (grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
        return step3_flash.attention_backward.prepare(*arrays, stream)
    grid = sizes.B * sizes.H * ceil_div(sizes.T, OWN)
    grad_qkv, grad_out, qkv = (x.reshape(x.size) for x in (a.grad_qkv_NE, a.grad_out_NC, a.qkv_NE))
    arguments = (grad_qkv, a.scratch_S, grad_out, qkv, a.logsumexp_I, sizes.T, sizes.H, inverse_root(D))
    return [
        inner_product_launch(a, sizes, stream),
        Launch(GRAD_QUERY_KERNELS[D], grid, BLOCK, arguments, stream),
        Launch(GRAD_KEY_VALUE_KERNELS[D], grid, BLOCK, arguments, stream),
    ]
