"""Attention of one new token a sequence to all tokens before it, for sampling.

The cache of keys and values is the fused `qkv` buffer itself: row t of a sequence is written when its token is known,
and stays. There is only one query a head, so nothing can be tiled over queries, and the time goes into reading the
cache once. To keep a whole GPU busy with few heads, the keys of a head are split among blocks, 128 each:

    part of 128 keys: scores (a thread a key), weights, sums of weighted values (a thread 8 columns of every 16th key)
    combine:          the parts of a head, each shrunk to the greatest score of all, are added in their order

Keys and values are asked for before anything is computed, so that a block waits for memory once. Where the new token
stands is read from the device: one captured graph of launches serves every position.

Letters: B sequences, T positions of the cache, H heads, D head size, C = H*D, E = 3C, S scratch.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.attention.common import LOG2_E, LOWEST, WORD, inverse_root
from kernels.elements import load, load_packs, store
from kernels.launch import PACK, Launch, ceil_div, launcher, n_packs, take
from kernels.ptx import exp2
from kernels.reduce import block_max, block_sum
from kernels.registry import kernel

KEYS = 128  # of a part: a thread each
MAX_HEAD_SIZE = 128
PACKS = 8  # of a thread at once: a key of 64 elements, or 8 columns of 8 values
OWNED = PACKS * PACK
SUMS = KEYS * PACK
NUMBERS = 2  # of a part beside its sums: the greatest score and the total of the weights


@cuda.jit(device=True)
def score_device(query, key_64, qkv, first, end):
    """Multiply the query in shared memory by a key, of which the first 64 elements are loaded, in two sums."""
    even, odd = float32(0), float32(0)
    for j in range(0, OWNED, 2):
        even += query[j] * key_64[j]
        odd += query[j + 1] * key_64[j + 1]
    if first + OWNED < end:
        load_packs(key_64, qkv, first + OWNED, PACK, end, PACKS)
        for j in range(0, OWNED, 2):
            even += query[OWNED + j] * key_64[j]
            odd += query[OWNED + j + 1] * key_64[j + 1]
    return even + odd


@cuda.jit(device=True)
def add_values_device(sums, weights, value_64, qkv, first, key, groups, E, n_keys, D):
    """Sum the weighted values of a part, of which the thread's first eight are loaded: each group, then all groups."""
    sum_8 = cuda.local.array(PACK, float32)
    for j in range(PACK):
        sum_8[j] = float32(0)
    while key < n_keys:
        for r in range(PACKS):
            weight = weights[key + r * groups] if key + r * groups < n_keys else float32(0)
            for j in range(PACK):
                sum_8[j] += weight * value_64[r * PACK + j]
        key += PACKS * groups
        load_packs(value_64, qkv, first + key * E, groups * E, first + n_keys * E, PACKS)
    for j in range(PACK):
        sums[cuda.threadIdx.x * PACK + j] = sum_8[j]
    cuda.syncthreads()  # all groups have written their sums
    total = float32(0)
    if cuda.threadIdx.x < D:
        for group in range(groups):
            total += sums[group * D + cuda.threadIdx.x]
    return total


@kernel("void(float32[::1], real[::1], int32[::1], int64, int64, int64, int64, float32)", launch_bounds=KEYS)
def decode_part_kernel(scratch_S, qkv, position_1, n_heads, T, H, D, factor):
    """A block attends from the newest query of a head to up to 128 keys, and stores what `combine` needs."""
    query = cuda.shared.array(MAX_HEAD_SIZE, float32, 16)
    weights = cuda.shared.array(KEYS, float32)
    sums = cuda.shared.array(SUMS, float32, 16)
    key_64 = cuda.local.array(OWNED, float32)
    value_64 = cuda.local.array(OWNED, float32)
    thread, E, t = cuda.threadIdx.x, 3 * H * D, position_1[0]
    n_parts, packs = t // KEYS + 1, D >> 3
    groups = KEYS // (packs & WORD)  # of threads: a thread has 8 columns of the values of every so many-th key
    group = (thread & WORD) // (packs & WORD)
    index = cuda.blockIdx.x
    while index < n_heads * n_parts:
        head = (index & WORD) // (n_parts & WORD)
        part = index - head * n_parts
        b = (head & WORD) // (H & WORD)
        begin = b * T * E + (head - b * H) * D
        n_keys = min(t + 1 - part * KEYS, KEYS)
        keys = begin + part * KEYS * E + H * D
        key = keys + thread * E
        end_of_key = key + D if thread < n_keys else key
        values = keys + H * D + (thread - group * packs) * PACK
        first_value = group if group < groups else n_keys
        load_packs(key_64, qkv, key, PACK, end_of_key, PACKS)
        load_packs(value_64, qkv, values + first_value * E, groups * E, values + n_keys * E, PACKS)
        query[thread] = load(qkv, begin + t * E + thread) if thread < D else float32(0)
        cuda.syncthreads()  # the query is there
        score = score_device(query, key_64, qkv, key, end_of_key) * factor if thread < n_keys else LOWEST
        greatest = block_max(score)
        weights[thread] = exp2(score - greatest) if thread < n_keys else float32(0)
        total = block_sum(weights[thread])
        value = add_values_device(sums, weights, value_64, qkv, values, first_value, groups, E, n_keys, D)
        place = index * (D + NUMBERS)
        if thread == 0:
            scratch_S[place], scratch_S[place + 1] = greatest, total
        if thread < D:
            scratch_S[place + NUMBERS + thread] = value
        index += cuda.gridDim.x


@kernel("void(real[::1], float32[::1], int32[::1], int64)", launch_bounds=MAX_HEAD_SIZE)
def decode_combine_kernel(out, scratch_S, position_1, D):
    """A block adds up the parts of a head, a thread one column of them, shrunk to the greatest score so far."""
    d, n_parts = cuda.threadIdx.x, position_1[0] // KEYS + 1
    head = cuda.blockIdx.x
    while d < D and head * D < out.size:
        greatest, total, value = LOWEST, float32(0), float32(0)
        for part in range(n_parts):
            place = (head * n_parts + part) * (D + NUMBERS)
            of_part, of_both = scratch_S[place], max(greatest, scratch_S[place])
            shrink, shrink_part = exp2(greatest - of_both), exp2(of_part - of_both)
            total = total * shrink + scratch_S[place + 1] * shrink_part
            value = value * shrink + scratch_S[place + NUMBERS + d] * shrink_part
            greatest = of_both
        store(out, head * D + d, value / total)
        head += cuda.gridDim.x


def attention_decode_scratch_size(B: int, T: int, H: int, D: int) -> int:
    """Return the float32 elements that `scratch_S` needs."""
    return B * H * ceil_div(T, KEYS) * (D + NUMBERS)


@launcher
def attention_decode(out_BC, scratch_S, qkv_BTE, H, position_1, stream=0):
    """Attend from one position of each sequence to it and all before it, whose rows are in the buffer.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device; position_1 int32, from 0 to
             T-1 (not checked), the same for all sequences; of qkv_BTE the rows up to it.
    Writes   out_BC (=), `B (H D)`, of the same dtype; scratch_S float32 (=), at least
             `attention_decode_scratch_size(B, T, H, D)`.
    Work     4*B*t*C flop for 2*B*t*C elements read: bound by reading the keys and values.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention_decode.py).
    Raises   ValueError if a shape or dtype disagrees, D is no multiple of 8 or more than 128, or qkv_BTE does not begin
             at a multiple of 16 bytes; nothing is launched then.
    Source   Dao et al. 2023, Flash-Decoding (https://pytorch.org/blog/flash-decoding/).
    Book     Chapter 07, sampling.
    """
    a, sizes = take(
        real={"out_BC": out_BC, "qkv_BTE": qkv_BTE},
        float32={"scratch_S": scratch_S},
        int32={"position_1": position_1},
    )
    B, T, C, E = sizes.B, sizes.T, sizes.C, sizes.E
    if C % H or E != 3 * C:
        raise ValueError(f"{C} channels and a qkv of {E} do not belong to {H} heads")
    D = C // H
    if D > MAX_HEAD_SIZE or D % PACK:
        raise ValueError(f"the head size is {D}; a multiple of {PACK} is needed, at most {MAX_HEAD_SIZE}")
    needed = attention_decode_scratch_size(B, T, H, D)
    if sizes.S < needed:
        raise ValueError(f"scratch_S has {sizes.S} elements; {needed} are needed")
    qkv = a.qkv_BTE.reshape(B * T * E)
    if not n_packs(D, qkv):
        raise ValueError("qkv_BTE does not begin at a multiple of 16 bytes; give it memory of its own")
    numbers = (B * H, T, H, D, float(inverse_root(D) * LOG2_E))
    parts = (a.scratch_S, qkv, a.position_1, *numbers)
    return [
        Launch(decode_part_kernel, B * H * ceil_div(T, KEYS), KEYS, parts, stream),
        Launch(
            decode_combine_kernel, B * H, MAX_HEAD_SIZE, (a.out_BC.reshape(B * C), a.scratch_S, a.position_1, D), stream
        ),
    ]
