"""Sums and maxima over a warp or a block, in a fixed order: the same bits at every run and in every launch.

Every lane of a warp gets the result, because both sides of each exchange add the same two numbers.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.launch import WARP_SIZE

FULL_MASK = 0xFFFFFFFF
MAX_WARPS = 32  # of a block


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
