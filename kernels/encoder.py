"""The embedding of tokens and positions, GPT-2's first layer.

Forward adds two table rows for each place of the text. Backward sums, for each table row, the gradients of all places
that used it, in a fixed order and without atomics: for a position the B places are known; for the tokens the host makes
a plan (`plan_token_gradient`). It sorts the places by token and cuts those of one token into segments of bounded
length, so that a frequent token does not keep one warp busy while the others wait. A warp sums a segment; where a token
has several, a second kernel adds their sums.

Letters: B batch, T time, C channels, V vocabulary; N = B*T places, M = N + 1 bounds of segments, K partial sums, L
tokens of several segments at most, P integers of the plan.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32

from kernels.elements import load, load8, load_packs, store, store8, store_packs
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.reduce import SUM_BLOCK, chunk_sum
from kernels.registry import kernel
from kernels.token_plan import SEGMENT, plan_parts, token_plan_size

BLOCK = 256
WARPS = BLOCK // WARP_SIZE
PACKS = 3  # of a lane at once: a warp moves 768 channels, a row of GPT-2 124M
OWNED = PACKS * PACK
LANE_STRIDE = WARP_SIZE * PACK  # channels between the packs of a lane
TILE = PACKS * LANE_STRIDE
SEGMENTS = 4  # of a warp, one after the other
BATCH = 4  # rows under way in the position gradient
BATCH_OWNED = BATCH * PACK
MERGE_GRID = 1056  # blocks at most; 8 on each of the 132 multiprocessors of an H100


def _most_partials(N: int) -> int:
    return 2 * ceil_div(N, SEGMENT)


def encoder_scratch_size(N: int, C: int) -> int:
    """Return the float32 elements that `encoder_backward` needs in `scratch_S`."""
    return _most_partials(N) * C


@kernel("void(real[:, ::1], int32[::1], real[:, ::1], real[:, ::1], int64, int64)", launch_bounds=(BLOCK, 3))
def encoder_forward_kernel(out_NC, tokens_N, token_weight_VC, position_weight_TC, T, whole):
    """A warp owns two neighbouring places at a time; a lane owns three packs of 8 channels of both at once.

    The number of a token and then its row are waited for one after the other, so two places are under way. Without a
    second place the first is done twice.
    """
    x_24 = cuda.local.array(OWNED, float32)
    y_24 = cuda.local.array(OWNED, float32)
    position_x_24 = cuda.local.array(OWNED, float32)
    position_y_24 = cuda.local.array(OWNED, float32)
    lane = cuda.threadIdx.x & 31
    N, C = out_NC.shape
    c = lane * PACK
    while c < whole:
        x = (cuda.grid(1) >> 5) * 2
        while x < N:
            y = min(x + 1, N - 1)
            t = x % T
            t_y = t + y - x if t + y - x < T else 0
            token_x, token_y = tokens_N[x], tokens_N[y]
            load_packs(position_x_24, position_weight_TC[t], c, LANE_STRIDE, whole, PACKS)
            load_packs(position_y_24, position_weight_TC[t_y], c, LANE_STRIDE, whole, PACKS)
            load_packs(x_24, token_weight_VC[token_x], c, LANE_STRIDE, whole, PACKS)
            load_packs(y_24, token_weight_VC[token_y], c, LANE_STRIDE, whole, PACKS)
            for j in range(OWNED):
                x_24[j] += position_x_24[j]
                y_24[j] += position_y_24[j]
            store_packs(out_NC[x], c, LANE_STRIDE, whole, x_24, PACKS)
            store_packs(out_NC[y], c, LANE_STRIDE, whole, y_24, PACKS)
            x += (cuda.gridsize(1) >> 5) * 2
        c += TILE
    n = cuda.grid(1) >> 5
    while whole < C and n < N:
        c = whole + lane
        while c < C:
            store(out_NC[n], c, load(token_weight_VC[tokens_N[n]], c) + load(position_weight_TC[n % T], c))
            c += WARP_SIZE
        n += cuda.gridsize(1) >> 5


@kernel("void(float32[::1], real[::1], int64, int64)", launch_bounds=BLOCK)
def position_gradient_kernel(grad_position_weight_X, grad_out_Y, n_elements, whole):
    """A thread owns packs of 8 elements of the T*C, and sums over the batch, four rows at once."""
    x_32 = cuda.local.array(BATCH_OWNED, float32)
    sum_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        for j in range(PACK):
            sum_8[j] = float32(0)
        at = i
        while at < grad_out_Y.size:
            load_packs(x_32, grad_out_Y, at, n_elements, grad_out_Y.size, BATCH)
            for b in range(BATCH):
                for j in range(PACK):
                    sum_8[j] += x_32[b * PACK + j]
            at += BATCH * n_elements
        load8(x_32, grad_position_weight_X, i)
        for j in range(PACK):
            sum_8[j] += x_32[j]
        store8(grad_position_weight_X, i, sum_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < n_elements:
        total = float32(0)
        at = i
        while at < grad_out_Y.size:
            total += load(grad_out_Y, at)
            at += n_elements
        grad_position_weight_X[i] += total
        i += cuda.gridsize(1)


@cuda.jit(device=True)
def add_segment_device(target_C, before_end, grad_out_NC, places_N, first, end, whole):
    """Sum the rows of a segment, two at once, and write the sum; add what was there in channels below `before_end`."""
    x_24 = cuda.local.array(OWNED, float32)
    y_24 = cuda.local.array(OWNED, float32)
    sum_24 = cuda.local.array(OWNED, float32)
    lane = cuda.threadIdx.x & 31
    c = lane * PACK
    while c < whole:
        for j in range(OWNED):
            sum_24[j] = float32(0)
        i = first
        while i < end:
            load_packs(x_24, grad_out_NC[places_N[i]], c, LANE_STRIDE, whole, PACKS)
            i_second = min(i + 1, end - 1)
            load_packs(y_24, grad_out_NC[places_N[i_second]], c, LANE_STRIDE, whole if i_second > i else 0, PACKS)
            for j in range(OWNED):
                sum_24[j] = (sum_24[j] + x_24[j]) + y_24[j]
            i += 2
        load_packs(x_24, target_C, c, LANE_STRIDE, min(before_end, whole), PACKS)
        for j in range(OWNED):
            sum_24[j] += x_24[j]
        store_packs(target_C, c, LANE_STRIDE, whole, sum_24, PACKS)
        c += TILE
    c = whole + lane
    while c < target_C.size:
        total = float32(0)
        for i in range(first, end):
            total += load(grad_out_NC[places_N[i]], c)
        target_C[c] = total + target_C[c] if c < before_end else total
        c += WARP_SIZE


@kernel(
    "void(float32[:, ::1], float32[:, ::1], real[:, ::1], int32[::1], int32[::1], int32[::1], int32[::1], int64)",
    launch_bounds=(BLOCK, 2),
)
def segment_sums_kernel(grad_token_weight_VC, partials_KC, grad_out_NC, counts_2, places_N, bounds_M, targets_N, whole):
    """A warp owns segments; a lane owns three packs of 8 channels at once."""
    segment = cuda.grid(1) >> 5
    while segment < counts_2[0]:
        target = targets_N[segment]
        target_C = grad_token_weight_VC[target] if target >= 0 else partials_KC[-1 - target]
        before_end = target_C.size if target >= 0 else 0
        first, end = bounds_M[segment], bounds_M[segment + 1]
        add_segment_device(target_C, before_end, grad_out_NC, places_N, first, end, whole)
        segment += cuda.gridsize(1) >> 5


@kernel(
    "void(float32[:, ::1], float32[::1], int32[::1], int32[::1], int32[::1])",
    launch_bounds=SUM_BLOCK,
)
def merge_partials_kernel(grad_token_weight_VC, partials_S, counts_2, bounds_L, tokens_L):
    """A block owns 32 channels of a token at a time, one a lane; its 8 warps share the token's partial sums."""
    C = grad_token_weight_VC.shape[1]
    n_tiles = (C + WARP_SIZE - 1) // WARP_SIZE
    item = cuda.blockIdx.x
    while item < counts_2[1] * n_tiles:
        which = item // n_tiles
        c = item % n_tiles * WARP_SIZE + (cuda.threadIdx.x & 31)
        first = bounds_L[which]
        total = chunk_sum(partials_S[first * C :], bounds_L[which + 1] - first, C, c)
        if cuda.threadIdx.x < WARP_SIZE and c < C:
            grad_token_weight_VC[tokens_L[which], c] += total
        item += cuda.gridDim.x


@launcher
def encoder_forward(out_BTC, tokens_BT, token_weight_VC, position_weight_SC, stream=0):
    """Add the embedding of each token to that of its position.

    Reads    tokens_BT: int32, from 0 to V-1 (not checked); token_weight_VC, position_weight_SC (S >= T): float32 or
             bfloat16; all C-contiguous, on the device.
    Writes   out_BTC (=), of the dtype of the tables.
    Work     B*T*C flop, about 3*B*T*C*itemsize bytes, the tables partly from the cache: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_encoder.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Radford et al. 2019, section 2.3; compare llm.c llmc/encoder.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(
        real={"out_BTC": out_BTC, "token_weight_VC": token_weight_VC, "position_weight_SC": position_weight_SC},
        int32={"tokens_BT": tokens_BT},
    )
    B, T, C = sizes.B, sizes.T, sizes.C
    if T > sizes.S:
        raise ValueError(f"T is {T} but position_weight_SC has {sizes.S} positions")
    out_NC = arrays.out_BTC.reshape(B * T, C)
    whole = n_packs(C, out_NC, arrays.token_weight_VC, arrays.position_weight_SC) * PACK
    tokens_N = arrays.tokens_BT.reshape(B * T)
    arguments = (out_NC, tokens_N, arrays.token_weight_VC, arrays.position_weight_SC, T, whole)
    return [Launch(encoder_forward_kernel, ceil_div(B * T, 2 * WARPS), BLOCK, arguments, stream)]


@launcher
def encoder_backward(grad_token_weight_VC, grad_position_weight_SC, scratch_R, grad_out_BTC, plan_P, stream=0):
    """Add to the gradients of both tables, deterministically.

    Reads    grad_out_BTC: float32 or bfloat16; plan_P: int32, what `plan_token_gradient` gave for the batch's tokens;
             all C-contiguous, on the device.
    Writes   grad_token_weight_VC (+=), grad_position_weight_SC (+=), with S >= T: float32; scratch_R float32 (=), at
             least `encoder_scratch_size(B * T, C)`.
    Work     2*B*T*C flop, 2*B*T*C*itemsize bytes read, 8 bytes for each element of a row used: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_encoder.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   the transpose of the table look-up; compare llm.c llmc/encoder.cuh @ f1e2ace, which sorts as well.
    Book     Chapter 04.
    """
    arrays, sizes = take(
        real={"grad_out_BTC": grad_out_BTC},
        float32={
            "grad_token_weight_VC": grad_token_weight_VC,
            "grad_position_weight_SC": grad_position_weight_SC,
            "scratch_R": scratch_R,
        },
        int32={"plan_P": plan_P},
    )
    B, T, C = sizes.B, sizes.T, sizes.C
    N = B * T
    wanted = token_plan_size(N), encoder_scratch_size(N, C)
    if sizes.P != wanted[0] or sizes.R < wanted[1] or T > sizes.S:
        raise ValueError(
            f"B*T = {N} places need plan_P of {wanted[0]}, scratch_R of {wanted[1]} elements and at least {T} "
            f"positions, not {sizes.P}, {sizes.R} and {sizes.S}"
        )
    grad_out_Y, grad_position_X = (
        arrays.grad_out_BTC.reshape(N * C),
        arrays.grad_position_weight_SC.reshape(sizes.S * C),
    )
    grad_out_NC = arrays.grad_out_BTC.reshape(N, C)
    whole = T * C if n_packs(C, arrays.grad_position_weight_SC, grad_out_NC) * PACK == C else 0
    position_grid = ceil_div(T * C, BLOCK * PACK)
    ends = np.cumsum(plan_parts(N)).tolist()
    counts, places, bounds, targets, merge_bounds, merge_tokens = (
        arrays.plan_P[begin:end] for begin, end in zip([0, *ends], ends, strict=False)
    )
    partials_S = arrays.scratch_R[: wanted[1]]
    partials_KC = partials_S.reshape(_most_partials(N), C)
    token_weight_VC = arrays.grad_token_weight_VC
    row_whole = n_packs(C, token_weight_VC, partials_KC, grad_out_NC) * PACK
    segments = (token_weight_VC, partials_KC, grad_out_NC, counts, places, bounds, targets, row_whole)
    merge_grid = min(MERGE_GRID, ceil_div(N, SEGMENT) * ceil_div(C, WARP_SIZE))
    merge = (token_weight_VC, partials_S, counts, merge_bounds, merge_tokens)
    return [
        Launch(position_gradient_kernel, position_grid, BLOCK, (grad_position_X, grad_out_Y, T * C, whole), stream),
        Launch(segment_sums_kernel, ceil_div(N, WARPS * SEGMENTS), BLOCK, segments, stream),
        Launch(merge_partials_kernel, merge_grid, SUM_BLOCK, merge, stream),
    ]
