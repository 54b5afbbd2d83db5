"""Tiles of bfloat16 operands in shared memory and in the registers of a warp, as the tensor-core steps keep them.

A tile holds some rows (i of operand a, j of b) and 64 terms, in the order that they have in global memory: lines of 64
terms of one row, or lines of all rows of one term. A line is cut in pieces of 16 bytes, the unit of `cp.async` and
`ldmatrix`, and piece p of line l lies at place p ^ (l % 8) of that line. So the eight pieces that `ldmatrix` reads at
once, one of each of eight lines, lie in different banks, and so do those that eight neighbouring threads copy: nothing
is padded. What a lane reads later differs from what it reads first in bits that the swizzle leaves alone, or by an
exclusive or: a lane computes one address for all.

A warp owns 64 x 64 outputs: of 16 terms, 4 fragments of 16 rows of each operand serve 32 products of 16 x 8 outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numba import cuda, float32, int32

from kernels.ptx import cp_async_16, ldmatrix_x4, ldmatrix_x4_trans, mma_m16n8k16_bf16

TERMS = 64  # of a tile
STEPS = TERMS // 16
WARP = 64  # outputs of a warp in each direction
FRAGMENTS = 4  # of 16 rows
COLUMNS = 8  # of tensor-core tiles
PIECE_BYTES = 16


class Operand(NamedTuple):
    """The device functions for tiles of one operand, made by `make_operand`."""

    first_piece: Callable
    start_copy: Callable
    load_fragments: Callable


@cuda.jit(device=True)
def swizzle_device(line, offset, line_bytes):
    """Return where in a tile the piece lies that is `offset` bytes into a line."""
    return line * line_bytes + (offset ^ (line & 7) * PIECE_BYTES)


@cuda.jit(device=True)
def lane_offset_device(row, line_bytes, k_contiguous, is_a):
    """Return where in a tile this lane points `ldmatrix` for the fragment whose rows start at `row`.

    Lanes 0 to 7 name the lines of the first 8 x 8 matrix, 8 to 15 those of the second, and so on. The tensor core takes
    the matrices of `a` rows first, (row, term) = (0, 0), (8, 0), (0, 8), (8, 8), and those of `b` terms first, so that
    the two words it needs of 8 rows of `b` lie in neighbouring registers.
    """
    lane = cuda.threadIdx.x & 31
    if is_a == k_contiguous:  # the second matrix has the next lines
        line, along = lane & 15, lane >> 4 << 3
    else:  # the second matrix has the same lines
        line, along = (lane & 7) + (lane >> 4 << 3), lane & 8
    if k_contiguous:
        return swizzle_device(row + line, along * 2, line_bytes)
    return swizzle_device(line, (row + along) * 2, line_bytes)


def make_operand(rows: int, threads: int, k_contiguous: bool, is_a: bool) -> Operand:
    """Make the device functions for tiles of `rows` rows of an operand that `threads` threads copy together."""
    line_bytes = 2 * (TERMS if k_contiguous else rows)
    pieces = line_bytes // PIECE_BYTES  # of a line
    lines = threads // pieces  # that are copied at a time
    parts = 2 * rows * TERMS // PIECE_BYTES // threads

    @cuda.jit(device=True)
    def first_piece_device(first, k, end, size, K):
        """Return the element that this thread's first piece starts with, and how many rows and terms are left there."""
        line, along = cuda.threadIdx.x // pieces, cuda.threadIdx.x % pieces * 8
        if k_contiguous:
            return (first + line) * K + k + along, int32(size - first - line), int32(end - k - along)
        return (k + line) * size + first + along, int32(size - first - along), int32(end - k - line)

    @cuda.jit(device=True)
    def start_copy_device(tile, source, index, rows_left, terms_left, size, K):
        """Start copying this thread's pieces, every `lines` lines one; what hangs over an edge becomes zeros."""
        to = tile + swizzle_device(cuda.threadIdx.x // pieces, cuda.threadIdx.x % pieces * PIECE_BYTES, line_bytes)
        pitch = K if k_contiguous else size
        for part in range(parts):
            if k_contiguous:
                inside = rows_left > part * lines and terms_left > 0
            else:
                inside = rows_left > 0 and terms_left > part * lines
            where = index + part * lines * pitch
            cp_async_16(to + part * lines * line_bytes, source, where, PIECE_BYTES if inside else 0)

    @cuda.jit(device=True)
    def load_fragments_device(words, buffer, tile, row, step):
        """Load 64 rows from `row` on at 16 terms, number `step` of the tile, as `words[buffer]`: 4 words a fragment."""
        address = tile + lane_offset_device(row, line_bytes, k_contiguous, is_a)
        for m in range(FRAGMENTS):
            if k_contiguous:
                four = ldmatrix_x4((address ^ step * 32) + m * 16 * line_bytes)
            else:
                four = ldmatrix_x4_trans((address ^ m * 32) + step * 16 * line_bytes)
            for e in range(4):
                words[buffer, m, e] = four[e]

    return Operand(first_piece_device, start_copy_device, load_fragments_device)


@cuda.jit(device=True)
def clear_device(sums):
    """Set the warp's sums to zero."""
    for m in range(FRAGMENTS):
        for n in range(COLUMNS):
            for e in range(4):
                sums[m, n, e] = float32(0)


@cuda.jit(device=True)
def multiply_device(sums, a_words, b_words, buffer):
    """Add the products of 16 terms to the warp's sums; the loops are written out, so all of this is in registers."""
    for m in range(FRAGMENTS):
        a = (a_words[buffer, m, 0], a_words[buffer, m, 1], a_words[buffer, m, 2], a_words[buffer, m, 3])
        for n in range(COLUMNS):
            before = (sums[m, n, 0], sums[m, n, 1], sums[m, n, 2], sums[m, n, 3])
            half = n >> 1
            first, second = b_words[buffer, half, 2 * (n & 1)], b_words[buffer, half, 2 * (n & 1) + 1]
            after = mma_m16n8k16_bf16(a, first, second, before)
            for e in range(4):
                sums[m, n, e] = after[e]
