"""Attention on tensor cores: how tiles come into shared memory and from there into registers.

A block of 4 warps owns 64 vectors (queries, or keys), a warp 16 of them, and meets the others tile by tile. Two tiles
at a time lie in one of two stages of shared memory: while one stage is used, the next is copied. A row of a tile
takes 16 bytes more than its D elements, so that the 8 rows that `ldmatrix` reads lie in different banks.

What a lane holds of a 16 x 8 tile of sums, with g = lane // 4 and q = 2 * (lane % 4): element e is at row
g + 8 * (e // 2), column q + e % 2. Two such tiles side by side, rounded to bfloat16, are just what the tensor core
takes as the left operand of the next product, so the weights never leave the registers.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.attention.common import WORD
from kernels.elements import store
from kernels.launch import WARP_SIZE, address
from kernels.ptx import (
    cp_async_16,
    cp_async_commit,
    cp_async_wait,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_m16n8k16_bf16,
    pack_bf16x2,
    shared_address,
)
from kernels.reduce import FULL_MASK

OWN = 64  # vectors of a block
WARP_OWN = 16  # of a warp
BLOCK = OWN // WARP_OWN * WARP_SIZE
BOUNDS = (BLOCK, 2)  # two blocks a multiprocessor are enough: a thread may have all its 255 registers


def shared_elements(rows: int, D: int) -> int:
    """Return the elements of two stages of two tiles; the block's own vectors pass through the same memory."""
    return max(4 * rows, OWN) * (D + 8)


def are_aligned_bf16(*arrays) -> bool:
    """Tell whether arrays of one dtype are bfloat16 and can be copied 16 bytes at a time."""
    return str(arrays[0].dtype) == "uint16" and all(address(array) % 16 == 0 for array in arrays)


@cuda.jit(device=True)
def own_row_device():
    """Return which of the block's vectors is the lane's upper row; its lower is 8 further."""
    return (cuda.threadIdx.x >> 5) * WARP_OWN + (cuda.threadIdx.x >> 2 & 7)


@cuda.jit(device=True)
def place_of_block(index, n_heads_in_all, n_tiles, H):
    """Return the sequence, the head and the tile of a block's work: first tile 0 of all heads, then tile 1, ..."""
    tile = (index & WORD) // (n_heads_in_all & WORD)
    b_and_h = index - tile * n_heads_in_all
    b = b_and_h // (H & WORD)
    return b, b_and_h - b * H, tile, b_and_h


@cuda.jit(device=True)
def start_copy_device(tiles, to_row, n_rows, source, first, stride, n_inside, D):
    """Start copying `n_rows` vectors, which begin `stride` elements apart, to shared memory; zeros after the last."""
    piece = cuda.threadIdx.x
    while piece < n_rows * (D >> 3):
        row, d = piece // (D >> 3), piece % (D >> 3) * 8
        inside = row < n_inside
        target = shared_address(tiles, (to_row + row) * (D + 8) + d)
        cp_async_16(target, source, first + row * stride + d if inside else 0, 16 if inside else 0)
        piece += BLOCK


@cuda.jit(device=True)
def start_stage_device(tiles, stage, n_rows, x, x_first, x_stride, y, y_first, y_stride, n_inside, D):
    """Start copying a tile of x, and after it one of y, to a stage of shared memory, as one group."""
    start_copy_device(tiles, stage * 2 * n_rows, n_rows, x, x_first, x_stride, n_inside, D)
    start_copy_device(tiles, stage * 2 * n_rows + n_rows, n_rows, y, y_first, y_stride, n_inside, D)
    cp_async_commit()


@cuda.jit(device=True)
def fetch_own_device(own, tiles, source, first, stride, n_inside, D):
    """Fetch the warp's 16 vectors as left operands, by way of shared memory: 4 words for each 16 elements."""
    start_copy_device(tiles, 0, OWN, source, first, stride, n_inside, D)
    cp_async_commit()
    cp_async_wait(0)
    cuda.syncthreads()  # the vectors of the block are there
    lane = cuda.threadIdx.x & 31
    row = (cuda.threadIdx.x >> 5) * WARP_OWN + (lane & 15)
    for part in range(D >> 4):
        words = ldmatrix_x4(shared_address(tiles, row * (D + 8) + part * 16 + (lane >> 4) * 8))
        for w in range(4):
            own[part, w] = words[w]
    cuda.syncthreads()  # all have read theirs: other vectors may take their place


@cuda.jit(device=True)
def multiply_device(sums, n, a, b0, b1):
    """Add a 16 x 16 by 16 x 8 product to tile n of the sums."""
    total = mma_m16n8k16_bf16(a, b0, b1, (sums[n, 0], sums[n, 1], sums[n, 2], sums[n, 3]))
    for e in range(4):
        sums[n, e] = total[e]


@cuda.jit(device=True)
def clear_device(sums, n_tiles):
    """Set tiles of sums to zero."""
    for n in range(n_tiles):
        for e in range(4):
            sums[n, e] = float32(0)


@cuda.jit(device=True)
def dots_device(dots, own, tiles, first_row, n_rows, D):
    """Multiply each of the warp's 16 vectors by each vector of a tile."""
    lane = cuda.threadIdx.x & 31
    row = first_row + (lane & 7) + (lane >> 4) * 8  # matrices (row, d) = (0, 0), (0, 8), (8, 0), (8, 8)
    clear_device(dots, n_rows >> 3)
    for part in range(D >> 4):
        a = (own[part, 0], own[part, 1], own[part, 2], own[part, 3])
        for pair in range(n_rows >> 4):
            where = (row + pair * 16) * (D + 8) + part * 16 + (lane >> 3 & 1) * 8
            b = ldmatrix_x4(shared_address(tiles, where))
            multiply_device(dots, 2 * pair, a, b[0], b[1])
            multiply_device(dots, 2 * pair + 1, a, b[2], b[3])


@cuda.jit(device=True)
def add_weighted_device(sums, weights, tiles, first_row, n_rows, D):
    """Add to each of the warp's 16 sums the vectors of a tile, weighted."""
    lane = cuda.threadIdx.x & 31
    row = first_row + (lane & 15)  # matrices (row, d) = (0, 0), (8, 0), (0, 8), (8, 8), transposed
    for pair in range(n_rows >> 4):
        left, right = 2 * pair, 2 * pair + 1
        a = (
            pack_bf16x2(weights[left, 0], weights[left, 1]),
            pack_bf16x2(weights[left, 2], weights[left, 3]),
            pack_bf16x2(weights[right, 0], weights[right, 1]),
            pack_bf16x2(weights[right, 2], weights[right, 3]),
        )
        for part in range(D >> 4):
            where = (row + pair * 16) * (D + 8) + part * 16 + (lane >> 4) * 8
            b = ldmatrix_x4_trans(shared_address(tiles, where))
            multiply_device(sums, 2 * part, a, b[0], b[1])
            multiply_device(sums, 2 * part + 1, a, b[2], b[3])


@cuda.jit(device=True)
def store_own_device(target, first, stride, n_inside, sums, factor_top, factor_bottom, D):
    """Store the warp's 16 sums, the lane's upper row times one factor and its lower times another."""
    column = 2 * (cuda.threadIdx.x & 3)
    for n in range(D >> 3):
        for e in range(4):
            row = own_row_device() + (e >> 1) * 8
            if row < n_inside:
                factor = factor_bottom if e >> 1 else factor_top
                store(target, first + row * stride + n * 8 + column + (e & 1), sums[n, e] * factor)


@cuda.jit(device=True)
def quad_max(x):
    """Take the greatest of the four lanes that share a row."""
    x = max(x, cuda.shfl_xor_sync(FULL_MASK, x, 1))
    return max(x, cuda.shfl_xor_sync(FULL_MASK, x, 2))


@cuda.jit(device=True)
def quad_sum(x):
    """Sum over the four lanes that share a row."""
    x += cuda.shfl_xor_sync(FULL_MASK, x, 1)
    return x + cuda.shfl_xor_sync(FULL_MASK, x, 2)
