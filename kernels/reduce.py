"""Sums and maxima over a warp, a block or chunks, in a fixed order: the same bits at every run and in every launch.

Every lane of a warp gets the result of its warp, because both sides of each exchange add the same two numbers.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.launch import WARP_SIZE

FULL_MASK = 0xFFFFFFFF
MAX_WARPS = 32  # of a block
SUM_WARPS = 8  # of a block that sums chunks
SUM_BLOCK = SUM_WARPS * WARP_SIZE
UNDER_WAY = 8  # loads of a thread that sums chunks


@cuda.jit(device=True)
def warp_sum(x):
    """Sum a float32 over the 32 lanes of a warp."""
    distance = WARP_SIZE // 2
    while distance > 0:
        x += cuda.shfl_xor_sync(FULL_MASK, x, distance)
        distance //= 2
    return x


@cuda.jit(device=True)
def warp_max(x):
    """Take the greatest float32 of the 32 lanes of a warp."""
    distance = WARP_SIZE // 2
    while distance > 0:
        x = max(x, cuda.shfl_xor_sync(FULL_MASK, x, distance))
        distance //= 2
    return x


@cuda.jit(device=True)
def block_sum(x):
    """Sum a float32 over a block of whole warps, along x; every thread gets the result."""
    warp_sums = cuda.shared.array(MAX_WARPS, float32)
    lane = cuda.threadIdx.x & 31
    x = warp_sum(x)
    if lane == 0:
        warp_sums[cuda.threadIdx.x >> 5] = x
    cuda.syncthreads()  # all warps have written their sum
    x = warp_sum(warp_sums[lane] if lane < cuda.blockDim.x >> 5 else float32(0))
    cuda.syncthreads()  # all have read: the next reduction may overwrite
    return x


@cuda.jit(device=True)
def block_max(x):
    """Take the greatest float32 of a block of whole warps, along x; every thread gets the result."""
    warp_maxima = cuda.shared.array(MAX_WARPS, float32)
    lane = cuda.threadIdx.x & 31
    x = warp_max(x)
    if lane == 0:
        warp_maxima[cuda.threadIdx.x >> 5] = x
    cuda.syncthreads()  # all warps have written their maximum
    x = warp_max(warp_maxima[lane] if lane < cuda.blockDim.x >> 5 else x)
    cuda.syncthreads()  # all have read: the next reduction may overwrite
    return x


@cuda.jit(device=True)
def chunk_sum(chunks_S, n_chunks, width, i):
    """Sum element i of each of `n_chunks` chunks of `width` elements, for a block of 8 warps whose lanes own elements.

    Every 8th chunk is a warp's, eight of them under way at once. Only warp 0 gets the result; an i of `width` or more
    gives 0.
    """
    partial = cuda.shared.array((SUM_WARPS, WARP_SIZE), float32)
    x_8 = cuda.local.array(UNDER_WAY, float32)
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    step = SUM_WARPS * width
    end = n_chunks * width if i < width else 0
    total = float32(0)
    at = warp * width + i
    while at < end:
        for k in range(UNDER_WAY):
            x_8[k] = chunks_S[at + k * step] if at + k * step < end else float32(0)
        for k in range(UNDER_WAY):
            total += x_8[k]
        at += UNDER_WAY * step
    partial[warp, lane] = total
    cuda.syncthreads()  # all warps have written their sums
    if warp == 0:
        for w in range(1, SUM_WARPS):
            total += partial[w, lane]
    cuda.syncthreads()  # the sums have been read: the next elements may overwrite them
    return total
