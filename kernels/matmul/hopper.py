"""What the Hopper steps share: operands that TMA brings in boxes, in all three layouts.

Tiles are lower-case: a tile has `tile_i` rows and `tile_j` columns of the output. A stage of shared memory holds 64
terms of both operands, first of `a`, then of `b`. An operand whose terms lie contiguous in memory is one box of
tile_i (tile_j) rows of 64 terms; the other kind is boxes of 64 terms by 64 rows (columns), one after the other.
Either way 64 rows of `a` are 8192 bytes, and 128 bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import cuda

from kernels.architecture import architecture
from kernels.matmul import portable
from kernels.matmul.common import LAYOUTS, OUTPUTS, Product, layout_of, takes_pieces
from kernels.ptx_hopper import mbarrier_expect, tma_load_2d
from kernels.tensor_map import TensorMap
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn

TERMS = 64  # of a stage: a row of 128 bytes, the longest that TMA swizzles
ROW_BYTES = 128
BOX = 64  # rows, and columns of bfloat16
BOX_BYTES = BOX * ROW_BYTES
WARP_GROUP = 128

portable_step = portable.step
"""What does the products that TMA cannot, and all of them on other GPUs."""


# ---- on the host ---------------------------------------------------------------------------------------------------


def takes_tma(product: Product) -> bool:
    """Tell whether the Hopper steps can do a product: on such a GPU, bfloat16, and rows that TMA can read."""
    known = str(product.out.dtype) == OUTPUTS[layout_of(product)]
    return architecture() == "sm_90a" and known and takes_pieces(product)


def matrix_map(array, rows: int, columns: int, box: tuple[int, int]) -> TensorMap:
    """Return the tensor map of a flat array seen as a matrix."""
    itemsize = array.dtype.itemsize
    return TensorMap(array, box, shape=(rows, columns), strides=(columns * itemsize, itemsize))


def operand_maps(product: Product, tile_i: int, tile_j: int) -> tuple[TensorMap, TensorMap]:
    """Return the tensor maps of both operands for `make_loader`."""
    maps = []
    operands = (
        (product.a, product.I, tile_i, product.a_k_contiguous),
        (product.b, product.J, tile_j, product.b_k_contiguous),
    )
    for array, size, tile, k_contiguous in operands:
        if k_contiguous:
            maps.append(matrix_map(array, size, product.K, (tile, TERMS)))
        else:
            maps.append(matrix_map(array, product.K, size, (TERMS, BOX)))
    return maps[0], maps[1]


def bias_words(product: Product):
    """Return the bias as words of two bfloat16; without one, something of that type which is not read."""
    return (product.a if product.bias is None else product.bias).view(np.uint32)


# ---- on the GPU ----------------------------------------------------------------------------------------------------


def make_loader(layout: str, tile_i: int, tile_j: int) -> Callable:
    """Make the device function that starts the copies of one stage; one thread calls it."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    stage_bytes = (tile_i + tile_j) * ROW_BYTES
    boxes_a, boxes_b = tile_i // BOX, tile_j // BOX

    @cuda.jit(device=True)
    def load_stage_device(stage, barrier, map_a, map_b, i, j, k):
        """Bring terms k to k + 63 of rows from i on and of columns from j on to a stage; `barrier` gets its bytes."""
        mbarrier_expect(barrier, stage_bytes)
        if a_k_contiguous:
            tma_load_2d(stage, map_a, k, i, barrier)
        else:
            for box in range(boxes_a):
                tma_load_2d(stage + box * BOX_BYTES, map_a, i + box * BOX, k, barrier)
        stage_b = stage + tile_i * ROW_BYTES
        if b_k_contiguous:
            tma_load_2d(stage_b, map_b, k, j, barrier)
        else:
            for box in range(boxes_b):
                tma_load_2d(stage_b + box * BOX_BYTES, map_b, j + box * BOX, k, barrier)

    return load_stage_device


def make_describer(k_contiguous: bool) -> Callable:
    """Make the device function that describes an operand in shared memory to wgmma."""

    @cuda.jit(device=True)
    def k_major_device(address):
        return wgmma_descriptor(address)

    @cuda.jit(device=True)
    def mn_major_device(address):
        return wgmma_descriptor_mn(address, BOX_BYTES)

    return k_major_device if k_contiguous else mn_major_device
