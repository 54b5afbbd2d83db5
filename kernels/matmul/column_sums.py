"""The gradient of the bias beside that of the weight on Hopper: two warps sum what lies in shared memory anyway.

The gradient of the bias is the sum of the output's gradient over the rows, and the gradient of the weight reads that
array. So while the consumers multiply a stage, two warps of the producer's group, which have nothing else to do, read
its rows of `a` and add them up: one warp 64 columns of the output's gradient. Tiles side by side read the same rows, so
they share them: of every stage each takes some groups of four rows, and has its own row of sums in the scratch memory.
The ring does not reuse a stage before these warps have read it, too.
"""

from __future__ import annotations

from numba import cuda, int32

from kernels.accumulators import zero_accumulators
from kernels.launch import ceil_div
from kernels.matmul.bias import bias_scratch_size
from kernels.matmul.common import Product
from kernels.matmul.hopper import BOX, BOX_BYTES, ROW_BYTES, TERMS
from kernels.matmul.pipeline import (
    EMPTY_AT,
    FULL_AT,
    IN_RING,
    ROUNDS,
    STAGE_BYTES,
    TILE_I,
    TILE_J,
    divide_device,
    n_tiles_device,
    slice_start_device,
    tile_place_device,
)
from kernels.ptx import load_shared_128, unpack_bf16x2
from kernels.ptx_hopper import mbarrier_arrive_if, mbarrier_wait
from kernels.tuples import each, each_pair

SUMMERS = TILE_I // BOX
"""Warps that sum; their first thread is number 32 of the producer's group."""
FULL_WARP = 0xFFFFFFFF
ROWS_AT_ONCE = 4  # that a warp reads with one instruction, 8 lanes a row
MOST_PARTS = TERMS // ROWS_AT_ONCE

zeros = zero_accumulators(8)


@cuda.jit(device=True)
def add_pair_device(place, sums, word):
    """Add the two numbers of a word to two sums."""
    left, right = unpack_bf16x2(word)
    return sums[0] + left, sums[1] + right


@cuda.jit(device=True)
def add_box_device(sums, box, lane, part, parts):
    """Add one of `parts` parts of a box to a lane's sums: 8 columns of some rows."""
    row = int32((lane >> 3) + part * ROWS_AT_ONCE)
    while row < TERMS:
        chunk = (lane & 7) ^ (row & 7)  # where the swizzle put the lane's 16 bytes
        sums = each_pair(add_pair_device, (sums, load_shared_128(box + row * ROW_BYTES + chunk * 16)))
        row = int32(row + parts * ROWS_AT_ONCE)
    return sums


@cuda.jit(device=True)
def add_lanes_device(place, x):
    """Add what the lanes with the same columns hold."""
    x += cuda.shfl_xor_sync(FULL_WARP, x, 8)
    return x + cuda.shfl_xor_sync(FULL_WARP, x, 16)


@cuda.jit(device=True)
def store_sum_device(place, x, sums_S, first):
    """Store one of a lane's sums."""
    sums_S[first + place] = x
    return x


@cuda.jit(device=True)
def sum_columns_device(base, sums_S, I, J, K, slices, parts):  # noqa: E741
    """Walk along all stages of this block; store the sums of each slice and part, in rows of I sums."""
    lane, warp = int32(cuda.threadIdx.x & 31), int32((cuda.threadIdx.x >> 5) - 1)
    pieces = int32(n_tiles_device(I, J) * slices)
    used = int32(0)
    item = int32(cuda.blockIdx.x)
    while item < pieces:
        index = divide_device(item, n_tiles_device(I, J))
        i, j = tile_place_device(item - index * n_tiles_device(I, J), I, J)
        left = int32(slice_start_device(index + 1, slices, K) - slice_start_device(index, slices, K))
        part = int32(divide_device(j, TILE_J))
        sums = zeros()
        while left > 0:
            stage = used & IN_RING
            mbarrier_wait(base + FULL_AT + 8 * stage, used >> ROUNDS & 1)
            if part < parts:
                sums = add_box_device(sums, base + stage * STAGE_BYTES + warp * BOX_BYTES, lane, part, parts)
            cuda.syncwarp()  # all lanes have read
            mbarrier_arrive_if(base + EMPTY_AT + 8 * stage, 1 if lane == 0 else 0)
            used = int32(used + 1)
            left = int32(left - 1)
        if part < parts:
            sums = each(add_lanes_device, (sums,))
            i += warp * BOX + lane * 8
            if lane < 8 and i < I:  # I is a multiple of 8, or TMA could not read `a`
                each(store_sum_device, (sums, sums_S, (index * parts + part) * I + i))
        item = int32(item + cuda.gridDim.x)


def parts_of(product: Product, slices: int) -> int:
    """Return how many tiles side by side share the rows of a stage; the scratch memory limits them."""
    scratch_rows = bias_scratch_size(product.K, product.I) // product.I
    return min(ceil_div(product.J, TILE_J), MOST_PARTS, scratch_rows // slices)
