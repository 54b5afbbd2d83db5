"""Attention, step 3: flash attention. A block shares tiles of keys and values among 32 queries.

Step 2 reads every key and value from global memory once a query; here a tile of 32 of them lies in shared memory for 32
queries, and each number read from it serves the four queries of a warp. Backward does the same for the queries, and
with the parts exchanged for the keys. Head sizes above 64 go to step 2. Letters: N = B*T rows, I = B*H*T items (a query
or key of one head), S scratch.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.attention import step2_online_softmax
from kernels.attention.common import LOG2_E, LOWEST, WORD, inverse_root, take_backward, take_forward
from kernels.attention.common import attention_scratch_size as attention_scratch_size
from kernels.attention.step2_online_softmax import inner_product_launch
from kernels.elements import load, store
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher
from kernels.ptx import exp2
from kernels.reduce import FULL_MASK, warp_max, warp_sum
from kernels.registry import kernel

TILE = 32  # queries, and keys, of a tile
OWN = 4  # of them a warp's own
BLOCK = TILE // OWN * WARP_SIZE
MAX_D = 64  # a lane keeps the elements at its number and 32 further
PITCH = MAX_D + 1  # so that lanes that read one column of 32 rows do not meet in a bank
ELEMENTS = TILE * PITCH


@cuda.jit(device=True)
def load_tile_device(tile, rows, first, n_rows, column, D):
    """Load up to 32 vectors of D elements into shared memory, zeros where there are fewer."""
    index = cuda.threadIdx.x
    while index < TILE * D:
        row, d = index // D, index % D
        tile[row * PITCH + d] = load(rows[first + row], column + d) if row < n_rows else float32(0)
        index += BLOCK


@cuda.jit(device=True)
def dots_device(dot_4, own_tile, own, other_tile, D):
    """Multiply each of the warp's four own vectors by the one of the lane's number."""
    lane = cuda.threadIdx.x & 31
    for r in range(OWN):
        dot_4[r] = float32(0)
    for d in range(D):
        x = other_tile[lane * PITCH + d]
        for r in range(OWN):
            dot_4[r] += own_tile[(own + r) * PITCH + d] * x


@cuda.jit(device=True)
def add_tile_device(sums, weight_4, tile):
    """Add the 32 vectors of a tile to four sums; each lane brings the weights of the vector of its number."""
    lane = cuda.threadIdx.x & 31
    for row in range(TILE):
        left, right = tile[row * PITCH + lane], tile[row * PITCH + lane + WARP_SIZE]
        for r in range(OWN):
            factor = cuda.shfl_sync(FULL_MASK, weight_4[r], row)
            sums[r, 0] += factor * left
            sums[r, 1] += factor * right


@cuda.jit(device=True)
def store_sums_device(rows, first, n_rows, column, sums, factor_4, D):
    """Store the warp's four sums, times a factor each, as far as there are rows."""
    lane = cuda.threadIdx.x & 31
    for r in range(OWN):
        for e in range(2):
            d = lane + e * WARP_SIZE
            if r < n_rows and d < D:
                store(rows[first + r], column + d, sums[r, e] * factor_4[r])


@cuda.jit(device=True)
def clear_device(sums, factor_4):
    """Set four sums to zero and their factors to one."""
    for r in range(OWN):
        factor_4[r] = float32(1)
        sums[r, 0] = float32(0)
        sums[r, 1] = float32(0)


@cuda.jit(device=True)
def place_of_tile(index, T, H):
    """Return of a tile the first row of its sequence, its first time, its head and its first item."""
    n_tiles = (T + TILE - 1) // TILE
    b_and_h = (index & WORD) // (n_tiles & WORD)
    first_time = (index - b_and_h * n_tiles) * TILE
    b = b_and_h // (H & WORD)
    return b * T, first_time, b_and_h - b * H, b_and_h * T + first_time


@kernel("void(real[:, ::1], float32[::1], real[:, ::1], int64, int64, float32)", launch_bounds=BLOCK)
def attention_forward_kernel(out_NC, logsumexp_I, qkv_NE, T, H, scale):
    """A block owns 32 queries of a head at a time, a warp 4 of them; a lane one of 32 keys."""
    query_tile = cuda.shared.array(ELEMENTS, float32)
    key_tile = cuda.shared.array(ELEMENTS, float32)
    value_tile = cuda.shared.array(ELEMENTS, float32)
    sums = cuda.local.array((OWN, 2), float32)
    weight_4 = cuda.local.array(OWN, float32)
    greatest_4 = cuda.local.array(OWN, float32)
    total_4 = cuda.local.array(OWN, float32)
    lane, own = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) * OWN
    C = out_NC.shape[1]
    D = C // H
    index = cuda.blockIdx.x
    while index < logsumexp_I.size // T * ((T + TILE - 1) // TILE):
        first, t, h, item = place_of_tile(index, T, H)
        n_queries = min(TILE, T - t)
        load_tile_device(query_tile, qkv_NE, first + t, n_queries, h * D, D)
        clear_device(sums, total_4)
        for r in range(OWN):
            greatest_4[r] = LOWEST
            total_4[r] = float32(0)
        for s in range(0, t + n_queries, TILE):
            load_tile_device(key_tile, qkv_NE, first + s, min(TILE, T - s), C + h * D, D)
            load_tile_device(value_tile, qkv_NE, first + s, min(TILE, T - s), 2 * C + h * D, D)
            cuda.syncthreads()  # the tiles are complete
            dots_device(weight_4, query_tile, own, key_tile, D)
            for r in range(OWN):
                seen = s + lane <= t + own + r
                score = weight_4[r] * scale if seen else LOWEST
                greatest = max(greatest_4[r], warp_max(score))
                shrink = exp2((greatest_4[r] - greatest) * LOG2_E)
                weight_4[r] = exp2((score - greatest) * LOG2_E) if seen else float32(0)
                greatest_4[r] = greatest
                total_4[r] = total_4[r] * shrink + warp_sum(weight_4[r])
                sums[r, 0] *= shrink
                sums[r, 1] *= shrink
            add_tile_device(sums, weight_4, value_tile)
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
        for r in range(OWN):
            if lane == 0 and own + r < n_queries:
                logsumexp_I[item + own + r] = greatest_4[r] + math.log(total_4[r])
            total_4[r] = float32(1) / total_4[r]
        store_sums_device(out_NC, first + t + own, n_queries - own, h * D, sums, total_4, D)
        index += cuda.gridDim.x


@kernel(
    "void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], int64, int64, float32)",
    launch_bounds=BLOCK,
)
def grad_query_kernel(grad_qkv_NE, delta_I, grad_out_NC, qkv_NE, logsumexp_I, T, H, scale):
    """A block owns 32 queries of a head at a time, a warp 4 of them; a lane one of 32 keys."""
    query_tile = cuda.shared.array(ELEMENTS, float32)
    grad_out_tile = cuda.shared.array(ELEMENTS, float32)
    key_tile = cuda.shared.array(ELEMENTS, float32)
    value_tile = cuda.shared.array(ELEMENTS, float32)
    sums = cuda.local.array((OWN, 2), float32)
    one_4 = cuda.local.array(OWN, float32)
    score_4 = cuda.local.array(OWN, float32)
    grad_4 = cuda.local.array(OWN, float32)
    lane, own = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) * OWN
    C = grad_out_NC.shape[1]
    D = C // H
    index = cuda.blockIdx.x
    while index < logsumexp_I.size // T * ((T + TILE - 1) // TILE):
        first, t, h, item = place_of_tile(index, T, H)
        n_queries = min(TILE, T - t)
        load_tile_device(query_tile, qkv_NE, first + t, n_queries, h * D, D)
        load_tile_device(grad_out_tile, grad_out_NC, first + t, n_queries, h * D, D)
        clear_device(sums, one_4)
        for s in range(0, t + n_queries, TILE):
            load_tile_device(key_tile, qkv_NE, first + s, min(TILE, T - s), C + h * D, D)
            load_tile_device(value_tile, qkv_NE, first + s, min(TILE, T - s), 2 * C + h * D, D)
            cuda.syncthreads()  # the tiles are complete
            dots_device(score_4, query_tile, own, key_tile, D)
            dots_device(grad_4, grad_out_tile, own, value_tile, D)
            for r in range(OWN):
                seen = s + lane <= t + own + r and own + r < n_queries
                query = item + own + r if seen else item
                probability = exp2((score_4[r] * scale - logsumexp_I[query]) * LOG2_E)
                grad = probability * (grad_4[r] - delta_I[query]) * scale
                grad_4[r] = grad if seen else float32(0)
            add_tile_device(sums, grad_4, key_tile)
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
        store_sums_device(grad_qkv_NE, first + t + own, n_queries - own, h * D, sums, one_4, D)
        index += cuda.gridDim.x


@kernel(
    "void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], int64, int64, float32)",
    launch_bounds=BLOCK,
)
def grad_key_value_kernel(grad_qkv_NE, delta_I, grad_out_NC, qkv_NE, logsumexp_I, T, H, scale):
    """A block owns 32 keys of a head at a time, a warp 4 of them; a lane one of 32 queries."""
    query_tile = cuda.shared.array(ELEMENTS, float32)
    grad_out_tile = cuda.shared.array(ELEMENTS, float32)
    key_tile = cuda.shared.array(ELEMENTS, float32)
    value_tile = cuda.shared.array(ELEMENTS, float32)
    key_sums = cuda.local.array((OWN, 2), float32)
    value_sums = cuda.local.array((OWN, 2), float32)
    one_4 = cuda.local.array(OWN, float32)
    score_4 = cuda.local.array(OWN, float32)
    grad_4 = cuda.local.array(OWN, float32)
    lane, own = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) * OWN
    C = grad_out_NC.shape[1]
    D = C // H
    index = cuda.blockIdx.x
    while index < logsumexp_I.size // T * ((T + TILE - 1) // TILE):
        first, s, h, item = place_of_tile(index, T, H)
        n_keys = min(TILE, T - s)
        load_tile_device(key_tile, qkv_NE, first + s, n_keys, C + h * D, D)
        load_tile_device(value_tile, qkv_NE, first + s, n_keys, 2 * C + h * D, D)
        clear_device(key_sums, one_4)
        clear_device(value_sums, one_4)
        for t in range(s, T, TILE):
            load_tile_device(query_tile, qkv_NE, first + t, min(TILE, T - t), h * D, D)
            load_tile_device(grad_out_tile, grad_out_NC, first + t, min(TILE, T - t), h * D, D)
            cuda.syncthreads()  # the tiles are complete
            dots_device(score_4, key_tile, own, query_tile, D)
            dots_device(grad_4, value_tile, own, grad_out_tile, D)
            inside = t + lane < T
            query = item - s + t + lane if inside else item
            logsumexp, delta = logsumexp_I[query], delta_I[query]
            for r in range(OWN):
                seen = inside and s + own + r <= t + lane
                probability = exp2((score_4[r] * scale - logsumexp) * LOG2_E) if seen else float32(0)
                score_4[r] = probability
                grad_4[r] = probability * (grad_4[r] - delta) * scale
            add_tile_device(key_sums, grad_4, query_tile)
            add_tile_device(value_sums, score_4, grad_out_tile)
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
        store_sums_device(grad_qkv_NE, first + s + own, n_keys - own, C + h * D, key_sums, one_4, D)
        store_sums_device(grad_qkv_NE, first + s + own, n_keys - own, 2 * C + h * D, value_sums, one_4, D)
        index += cuda.gridDim.x


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 is not used.
    Work     2*B*T*T*C flop (half of the square), a key and value read once for 32 queries.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, algorithm 1 (arXiv:2205.14135); Dao 2023 (arXiv:2307.08691).
    Book     Chapter 07, step 3.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE)
    D = sizes.C // sizes.H
    if D > MAX_D:
        return step2_online_softmax.attention_forward.prepare(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream)
    grid = sizes.B * sizes.H * ceil_div(sizes.T, TILE)
    arguments = (a.out_NC, a.logsumexp_I, a.qkv_NE, sizes.T, sizes.H, inverse_root(D))
    return [Launch(attention_forward_kernel, grid, BLOCK, arguments, stream)]


@launcher
def attention_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT, stream=0):
    """Take the gradient of the queries, keys and values.

    Reads    grad_out_BTC, out_BTC, qkv_BTE: float32 or bfloat16; logsumexp_BHT float32; what forward read and
             wrote; all C-contiguous, on the device.
    Writes   grad_qkv_BTE (=), of the same dtype; scratch_S float32 (=), at least `attention_scratch_size(B, T, H)`.
    Work     5*B*T*T*C flop (half of the square) and more, a row read once for 32 pairs.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Dao et al. 2022, appendix B.4 (arXiv:2205.14135); Dao 2023 (arXiv:2307.08691).
    Book     Chapter 07, step 3.
    """
    a, sizes = take_backward(grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
    D = sizes.C // sizes.H
    if D > MAX_D:
        arrays = (grad_qkv_BTE, scratch_S, grad_out_BTC, out_BTC, qkv_BTE, logsumexp_BHT)
        return step2_online_softmax.attention_backward.prepare(*arrays, stream)
    grid = sizes.B * sizes.H * ceil_div(sizes.T, TILE)
    tensors = (a.grad_qkv_NE, a.scratch_S, a.grad_out_NC, a.qkv_NE, a.logsumexp_I)
    arguments = (*tensors, sizes.T, sizes.H, inverse_root(D))
    return [
        inner_product_launch(a, sizes, stream),
        Launch(grad_query_kernel, grid, BLOCK, arguments, stream),
        Launch(grad_key_value_kernel, grid, BLOCK, arguments, stream),
    ]
