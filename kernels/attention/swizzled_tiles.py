"""Attention with `mma.sync` at its best: how step 5 moves tiles through shared memory and multiplies them.

A row of D bfloat16 elements is D / 2 words of two. In global memory all arrays are words. In shared memory a row is
D / 8 pieces of 16 bytes without padding, and piece p of row r lies at place p ^ (r % 8): so the pieces that `ldmatrix`
reads together, the same one of 8 rows, lie in different banks, and so do those that a warp copies. Since a row is 128
or 256 bytes long and a tile is aligned, going to piece p + 2 * part is one exclusive or of the address.

A block of 4 warps owns rows (queries, or keys) that stay in shared memory; a warp has 16 or 32 of them. They meet other
rows tile by tile. What a lane holds of a 16 x 8 tile of sums, with g = lane // 4 and q = 2 * (lane % 4): element e is
at row g + 8 * (e // 2), column q + e % 2. So it holds parts of 2 or 4 rows, 8 apart, numbered r in arrays of one value
a row. Two such tiles side by side, rounded to bfloat16, are just what the tensor core takes as the left operand of the
next product: weights never leave the registers. Sums are arrays of (rows / 16, columns / 8, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numba
import numpy as np
from numba import cuda, float32, uint32

from kernels import SIMULATED
from kernels.attention.common import LOWEST, WORD, inverse_root
from kernels.launch import WARP_SIZE, Launch, ceil_div
from kernels.ptx import (
    cp_async_16,
    cp_async_commit,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_m16n8k16_bf16,
    pack_bf16x2,
)
from kernels.reduce import FULL_MASK

WARPS = 4
BLOCK = WARPS * WARP_SIZE

TOGETHER = 48 * 1024
"""Queries of the heads that are worked on at the same time, so that tiles come from the L2 cache."""

int32 = int if SIMULATED else numba.int32
"""Half the registers of Python's integers, which have 64 bits in a kernel."""


class TiledKernel(NamedTuple):
    """A kernel of which each block owns some rows of one head, and the shared memory that it needs."""

    kernel: Callable
    own_rows: int
    shared_bytes: int

    def launch(self, arguments: tuple, sizes: SimpleNamespace, stream: object) -> Launch:
        """Prepare its launch with one block for each tile of each head."""
        grid = sizes.B * sizes.H * ceil_div(sizes.T, self.own_rows)
        group = max(1, TOGETHER // sizes.T)
        scale = inverse_root(sizes.C // sizes.H)
        return Launch(self.kernel, grid, BLOCK, (*arguments, sizes.T, sizes.H, group, scale), stream, self.shared_bytes)


def as_words(*arrays) -> list:
    """Return bfloat16 arrays as flat arrays of uint32, two elements each."""
    return [array.reshape(array.size).view(np.uint32) for array in arrays]


@cuda.jit(device=True)
def place_of_block(n_heads, n_tiles, group, H):
    """Return the sequence, the head in it, the head of all, and the tile of this block's work.

    Heads come in groups that fit the L2 cache together: of a group first tile 0 of all heads, then tile 1, ...
    """
    index = cuda.blockIdx.x
    first_head = index // (group * n_tiles & WORD) * group
    index -= first_head * n_tiles
    n_members = min(group, n_heads - first_head)
    tile = (index & WORD) // (n_members & WORD)
    head = first_head + index - tile * n_members
    b = (head & WORD) // (H & WORD)
    return b, head - b * H, head, tile


# ---- memory --------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def start_copy_device(tile, source, place, stride, n_inside, ROWS, D):
    """Start copying rows, `stride` words apart from word `place` on, to a tile; from row `n_inside` on zeros."""
    row, piece = cuda.threadIdx.x // (D >> 3), cuda.threadIdx.x % (D >> 3)
    address = tile + row * 2 * D + ((piece ^ (row & 7)) << 4)
    offset, left = int32(row * stride + piece * 4), int32(n_inside - row)
    step = BLOCK // (D >> 3)  # rows that the block copies at once
    for i in range(ROWS // step):
        n_bytes = 16 if i * step < left else 0
        cp_async_16(address + i * step * 2 * D, source, place + offset + i * step * stride, n_bytes)


@cuda.jit(device=True)
def start_stage_device(stage, x, x_place, x_stride, y, y_place, y_stride, n_inside, ROWS, D):
    """Start copying a tile of x, and after it one of y, to a stage of shared memory."""
    start_copy_device(stage, x, x_place, x_stride, n_inside, ROWS, D)
    start_copy_device(stage + ROWS * 2 * D, y, y_place, y_stride, n_inside, ROWS, D)
    cp_async_commit()


@cuda.jit(device=True)
def store_rows_device(target, place, stride, n_inside, sums):
    """Store the warp's sums as rows from word `place` on."""
    g, column = cuda.threadIdx.x >> 2 & 7, cuda.threadIdx.x & 3
    left = int32(n_inside - g)
    for r in range(2 * sums.shape[0]):
        if 8 * r < left:
            m, e, word = r >> 1, 2 * (r & 1), place + (g + 8 * r) * stride + column
            for n in range(sums.shape[1]):
                target[word + n * 4] = pack_bf16x2(sums[m, n, e], sums[m, n, e + 1])


# ---- products ------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def multiply_device(sums, m, n, a, b0, b1):
    """Add a 16 x 16 by 16 x 8 product to a tile of the sums."""
    total = mma_m16n8k16_bf16(a, b0, b1, (sums[m, n, 0], sums[m, n, 1], sums[m, n, 2], sums[m, n, 3]))
    for e in range(4):
        sums[m, n, e] = total[e]


@cuda.jit(device=True)
def clear_device(sums):
    """Set sums to zero."""
    for m in range(sums.shape[0]):
        for n in range(sums.shape[1]):
            for e in range(4):
                sums[m, n, e] = float32(0)


@cuda.jit(device=True)
def scale_device(sums, factor):
    """Multiply sums by a factor."""
    for m in range(sums.shape[0]):
        for n in range(sums.shape[1]):
            for e in range(4):
                sums[m, n, e] *= factor


@cuda.jit(device=True)
def add_dots_device(dots, own, tile, D):
    """Add the products of each of the warp's own rows, at a shared address, and each row of a tile."""
    a = cuda.local.array((8, 2, 4), uint32)  # by part too: a loop whose index picks registers is unrolled
    lane = cuda.threadIdx.x & 31
    own += (lane & 15) * 2 * D + ((lane >> 4 ^ lane & 7) << 4)  # (row, piece) from (0, 0), (8, 0), (0, 1), (8, 1)
    row = (lane & 7) + (lane >> 4) * 8  # from (0, 0), (0, 1), (8, 0), (8, 1)
    tile += row * 2 * D + ((lane >> 3 & 1 ^ lane & 7) << 4)
    for part in range(D >> 4):
        for m in range(dots.shape[0]):
            words = ldmatrix_x4((own ^ (part << 5)) + m * 32 * D)
            for w in range(4):
                a[part, m, w] = words[w]
        for pair in range(dots.shape[1] >> 1):
            b = ldmatrix_x4((tile ^ (part << 5)) + pair * 32 * D)
            for m in range(dots.shape[0]):
                words = (a[part, m, 0], a[part, m, 1], a[part, m, 2], a[part, m, 3])
                multiply_device(dots, m, 2 * pair, words, b[0], b[1])
                multiply_device(dots, m, 2 * pair + 1, words, b[2], b[3])


@cuda.jit(device=True)
def add_weighted_device(sums, weights, tile, D):
    """Add to each of the warp's sums the rows of a tile, weighted."""
    a = cuda.local.array((2, 4), uint32)
    lane = cuda.threadIdx.x & 31
    tile += (lane & 15) * 2 * D + ((lane >> 4 ^ lane & 7) << 4)  # (row, piece) from (0, 0), (8, 0), (0, 1), (8, 1)
    for pair in range(weights.shape[1] >> 1):
        for m in range(weights.shape[0]):
            for w in range(4):
                n, e = 2 * pair + (w >> 1), 2 * (w & 1)
                a[m, w] = pack_bf16x2(weights[m, n, e], weights[m, n, e + 1])
        for part in range(D >> 4):
            b = ldmatrix_x4_trans((tile ^ (part << 5)) + pair * 32 * D)
            for m in range(weights.shape[0]):
                words = (a[m, 0], a[m, 1], a[m, 2], a[m, 3])
                multiply_device(sums, m, 2 * part, words, b[0], b[1])
                multiply_device(sums, m, 2 * part + 1, words, b[2], b[3])


# ---- rows of sums --------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def hide_later_keys_device(scores, first_key, first_query):
    """Set the scores of keys after their query, whose row it is, so low that their weights are zero."""
    limit = int32(first_query + (cuda.threadIdx.x >> 2 & 7) - first_key - 2 * (cuda.threadIdx.x & 3))
    for m in range(scores.shape[0]):
        for n in range(scores.shape[1]):
            for e in range(4):
                if n * 8 + (e & 1) - m * 16 - (e >> 1) * 8 > limit:
                    scores[m, n, e] = LOWEST


@cuda.jit(device=True)
def hide_earlier_queries_device(scores, first_query, first_key):
    """Set the scores of queries before their key, whose row it is, so low that their weights are zero."""
    limit = int32(first_key + (cuda.threadIdx.x >> 2 & 7) - first_query - 2 * (cuda.threadIdx.x & 3))
    for m in range(scores.shape[0]):
        for n in range(scores.shape[1]):
            for e in range(4):
                if n * 8 + (e & 1) - m * 16 - (e >> 1) * 8 < limit:
                    scores[m, n, e] = LOWEST


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
