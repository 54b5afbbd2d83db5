"""How steps 8 and 9 store a warp group's sums: through a box of shared memory, in pieces of 16 bytes of a row.

A thread holds pairs of neighbouring outputs, and stored as they are they would fill 16 or 32 bytes of a line at a time.
So a warp group writes 64 rows of 128 bytes into a box, swizzled so that neither rows nor columns meet in one bank, and
reads it back along the rows. Outputs of any size are possible; those outside are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda

from kernels.accumulators import store_bf16_box, store_float_box
from kernels.elements import load
from kernels.matmul.common import OUTPUTS
from kernels.matmul.hopper import BOX, ROW_BYTES, WARP_GROUP
from kernels.matmul.outputs import store_floats_piece_device, store_pairs_piece_device
from kernels.ptx import load_shared_128
from kernels.ptx_hopper import barrier_sync, fence_async_shared
from kernels.tuples import each

PIECES = ROW_BYTES // 16  # of a row

COLUMNS_OF = {"uint16": ROW_BYTES // 2, "float32": ROW_BYTES // 4}
STORE_BOX = {"uint16": store_bf16_box, "float32": store_float_box}
STORE_PIECE = {"uint16": store_pairs_piece_device, "float32": store_floats_piece_device}


@cuda.jit(device=True)
def add_bias_device(place, x, bias, j, J):
    """Add the bias to float number `place` of a thread whose first column is j."""
    j += 8 * (place >> 2) + (place & 1)
    return x + load(bias, j) if j < J else x


def make_storer(layout: str, tile_j: int) -> Callable:
    """Make the device function that stores 64 rows and `tile_j`, at most 128, columns of a layout's output."""
    dtype = OUTPUTS[layout]
    columns, store_piece_device = COLUMNS_OF[dtype], STORE_PIECE[dtype]
    boxes, in_piece = tile_j // columns, columns // PIECES
    first_columns = [box * columns % tile_j for box in range(4)]
    store_0, store_1, store_2, store_3 = (STORE_BOX[dtype](tile_j // 2, first) for first in first_columns)

    @cuda.jit(device=True)
    def store_box_device(box, acc, place, thread):
        if box == 0:
            store_0(acc, place, thread)
        elif box == 1:
            store_1(acc, place, thread)
        elif box == 2:
            store_2(acc, place, thread)
        else:
            store_3(acc, place, thread)

    @cuda.jit(device=True)
    def store_rows_device(acc, place, out, bias, i, j, I, J, has_bias, accumulate, whole):  # noqa: E741
        """Store a warp group's sums from row i and column j on through the box at `place`."""
        thread, number = cuda.threadIdx.x % WARP_GROUP, 1 + cuda.threadIdx.x // WARP_GROUP
        if has_bias:
            acc = each(add_bias_device, (acc, bias, j + 2 * (thread & 3), J))
        for box in range(boxes):
            store_box_device(box, acc, place, thread)
            barrier_sync(number, WARP_GROUP)  # the box is complete
            for part in range(BOX * PIECES // WARP_GROUP):
                piece = part * WARP_GROUP + thread
                row, in_row = piece // PIECES, piece % PIECES
                words = load_shared_128(place + row * ROW_BYTES + ((in_row ^ row & 7) << 4))
                first = j + box * columns + in_row * in_piece
                n_inside = J - first if i + row < I else 0
                store_piece_device(out, (i + row) * J + first, n_inside, words, accumulate, whole)
            barrier_sync(number, WARP_GROUP)  # the box has been read: the next may overwrite it
        fence_async_shared()  # and TMA, too

    return store_rows_device
