"""Attention of one new token a sequence to all tokens before it, for sampling.

The cache of keys and values is the fused `qkv` buffer itself: row t of a sequence is written when its token is known,
and stays. There is only one query a head, so nothing can be tiled over queries, and the time goes into reading the
cache once. To keep a whole GPU busy with few heads, the keys of a head are split among blocks, 128 each:

    part of 128 keys: scores (a thread a key), weights, sum of weighted values (a warp 32 keys, a lane some columns)
    combine:          the parts of a head, each shrunk to the greatest score of all, are added in their order
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.attention.common import LOG2_E, LOWEST, WORD, inverse_root
from kernels.elements import load, load_pack, store
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.ptx import exp2
from kernels.reduce import block_max, block_sum
from kernels.registry import kernel

KEYS = 128  # of a part: a thread each
WARPS = KEYS // WARP_SIZE
MAX_HEAD_SIZE = 128
WARP_SUMS = WARPS * MAX_HEAD_SIZE
NUMBERS = 2  # of a part beside its sums: the greatest score and the total of the weights


@cuda.jit(device=True)
def score_device(query, key, D, packs):
    """Multiply the query in shared memory by a key, a row of D elements, in two sums: a long one loses more digits."""
    key_8 = cuda.local.array(8, float32)
    even, odd = float32(0), float32(0)
    for pack in range((D + 7) >> 3):
        load_pack(key_8, key, pack, packs)
        for j in range(0, 8, 2):
            even += query[pack * 8 + j] * key_8[j]
            odd += query[pack * 8 + j + 1] * key_8[j + 1]
    return even + odd


@cuda.jit(device=True)
def add_values_device(sums, weights, qkv, first, E, n_keys, D):
    """Sum the weighted values of a part: each warp those of its 32 keys, then over the warps in their order."""
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    for d in range(lane, D, WARP_SIZE):
        total = float32(0)
        for key in range(warp * WARP_SIZE, min(warp * WARP_SIZE + WARP_SIZE, n_keys)):
            total += weights[key] * load(qkv, first + key * E + d)
        sums[warp * MAX_HEAD_SIZE + d] = total
    cuda.syncthreads()  # all warps have written their sums
    total = float32(0)
    if cuda.threadIdx.x < D:
        for w in range(WARPS):
            total += sums[w * MAX_HEAD_SIZE + cuda.threadIdx.x]
    return total


@kernel("void(float32[::1], real[::1], int64, int64, int64, int64, int64, int64, float32)", launch_bounds=KEYS)
def decode_part_kernel(scratch_S, qkv, n_heads, T, H, D, t, packs, factor):
    """A block attends from the query at time t of a head to up to 128 keys, and stores what `combine` needs."""
    query = cuda.shared.array(MAX_HEAD_SIZE, float32)
    weights = cuda.shared.array(KEYS, float32)
    sums = cuda.shared.array(WARP_SUMS, float32)
    thread, E, n_parts = cuda.threadIdx.x, 3 * H * D, t // KEYS + 1
    index = cuda.blockIdx.x
    while index < n_heads * n_parts:
        head = (index & WORD) // (n_parts & WORD)
        part = index - head * n_parts
        b = (head & WORD) // (H & WORD)
        begin = b * T * E + (head - b * H) * D
        query[thread] = load(qkv, begin + t * E + thread) if thread < D else float32(0)
        cuda.syncthreads()  # the query is there
        n_keys = min(t + 1 - part * KEYS, KEYS)
        first = begin + part * KEYS * E + H * D
        score = LOWEST
        if thread < n_keys:
            score = score_device(query, qkv[first + thread * E : first + thread * E + D], D, packs) * factor
        greatest = block_max(score)
        weights[thread] = exp2(score - greatest) if thread < n_keys else float32(0)
        total = block_sum(weights[thread])
        value = add_values_device(sums, weights, qkv, first + H * D, E, n_keys, D)
        place = index * (D + NUMBERS)
        if thread == 0:
            scratch_S[place], scratch_S[place + 1] = greatest, total
        if thread < D:
            scratch_S[place + NUMBERS + thread] = value
        cuda.syncthreads()  # all have read: the next part may take the place
        index += cuda.gridDim.x


@kernel("void(real[::1], float32[::1], int64, int64)", launch_bounds=MAX_HEAD_SIZE)
def decode_combine_kernel(out, scratch_S, n_parts, D):
    """A block adds up the parts of a head, a thread one column of them."""
    d = cuda.threadIdx.x
    head = cuda.blockIdx.x
    while d < D and head * D < out.size:
        first = head * n_parts * (D + NUMBERS)
        greatest = LOWEST
        for part in range(n_parts):
            greatest = max(greatest, scratch_S[first + part * (D + NUMBERS)])
        total, value = float32(0), float32(0)
        for part in range(n_parts):
            place = first + part * (D + NUMBERS)
            shrink = exp2(scratch_S[place] - greatest)
            total += shrink * scratch_S[place + 1]
            value += shrink * scratch_S[place + NUMBERS + d]
        store(out, head * D + d, value / total)
        head += cuda.gridDim.x


def attention_decode_scratch_size(B: int, T: int, H: int, D: int) -> int:
    """Return the float32 elements that `scratch_S` needs for any position of T."""
    return B * H * ceil_div(T, KEYS) * (D + NUMBERS)


@launcher
def attention_decode(out_BC, scratch_S, qkv_BTE, H, t, stream=0):
    """Attend from position t of each sequence to positions 0 to t, whose queries, keys and values are in the buffer.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device; rows 0 to t.
    Writes   out_BC (=), `B (H D)`, of the same dtype; scratch_S float32 (=), at least
             `attention_decode_scratch_size(B, T, H, D)`.
    Work     4*B*t*C flop for 2*B*t*C elements read: bound by reading the keys and values.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention_decode.py).
    Raises   ValueError if a shape or dtype disagrees, D > 128, or t is no position; nothing is launched then.
    Source   Dao et al. 2023, Flash-Decoding (https://pytorch.org/blog/flash-decoding/).
    Book     Chapter 07, sampling.
    """
    a, sizes = take(real={"out_BC": out_BC, "qkv_BTE": qkv_BTE}, float32={"scratch_S": scratch_S})
    B, T, C, E = sizes.B, sizes.T, sizes.C, sizes.E
    if C % H or E != 3 * C:
        raise ValueError(f"{C} channels and a qkv of {E} do not belong to {H} heads")
    D = C // H
    if D > MAX_HEAD_SIZE:
        raise ValueError(f"the head size is {D}; at most {MAX_HEAD_SIZE} is possible")
    if not 0 <= t < T:
        raise ValueError(f"position {t} is not one of the {T} of qkv_BTE")
    needed = attention_decode_scratch_size(B, t + 1, H, D)
    if sizes.S < needed:
        raise ValueError(f"scratch_S has {sizes.S} elements; {needed} are needed")
    qkv = a.qkv_BTE.reshape(B * T * E)
    packs = n_packs(D, qkv) if D % 8 == 0 else 0
    n_parts = t // KEYS + 1
    numbers = (B * H, T, H, D, t, packs, float(inverse_root(D) * LOG2_E))
    return [
        Launch(decode_part_kernel, B * H * n_parts, KEYS, (a.scratch_S, qkv, *numbers), stream),
        Launch(decode_combine_kernel, B * H, MAX_HEAD_SIZE, (a.out_BC.reshape(B * C), a.scratch_S, n_parts, D), stream),
    ]
