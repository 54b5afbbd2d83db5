"""One product on a tensor core, the smallest there is: what chapter 05 shows before the real thing."""

from __future__ import annotations

from numba import cuda, float32, uint32

from kernels.ptx import mma_m16n8k16_bf16
from kernels.registry import kernel


@cuda.jit(device=True)
def pair_device(matrix, first, second):
    """Pack two elements of bfloat16 into a word, the first in its low half."""
    return uint32(matrix[first]) | uint32(matrix[second]) << uint32(16)


@kernel("void(float32[::1], uint16[::1], uint16[::1])", launch_bounds=32)
def tensor_core_kernel(out, a, b):
    """One warp multiplies A (16 x 16) by B (16 x 8), row after row in memory; see where each lane takes its numbers."""
    lane = cuda.threadIdx.x
    row, column = lane >> 2, 2 * (lane & 3)
    top, bottom = 16 * row + column, 16 * (row + 8) + column
    a_words = (
        pair_device(a, top, top + 1),
        pair_device(a, bottom, bottom + 1),
        pair_device(a, top + 8, top + 9),
        pair_device(a, bottom + 8, bottom + 9),
    )
    b_left = pair_device(b, 8 * column + row, 8 * (column + 1) + row)
    b_right = pair_device(b, 8 * (column + 8) + row, 8 * (column + 9) + row)
    zero = (float32(0), float32(0), float32(0), float32(0))
    sums = mma_m16n8k16_bf16(a_words, b_left, b_right, zero)
    out[8 * row + column] = sums[0]
    out[8 * row + column + 1] = sums[1]
    out[8 * (row + 8) + column] = sums[2]
    out[8 * (row + 8) + column + 1] = sums[3]
