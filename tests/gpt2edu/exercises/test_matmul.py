"""Chapter 5's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import pytest

from gpt2edu.exercises import matmul as exercises
from kernels import SIMULATED

from numba import cuda, float32  # isort: skip

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks

simulated = pytest.mark.skipif(not SIMULATED, reason="on a GPU the race may be won")


def linear_backward(grad_out_MN, inp_MK, weight_NK):
    return grad_out_MN @ weight_NK, grad_out_MN.T @ inp_MK, grad_out_MN.sum(axis=0)


def transposed_weight_gradient(grad_out_MN, inp_MK, weight_NK):
    return grad_out_MN @ weight_NK, inp_MK.T @ grad_out_MN, grad_out_MN.sum(axis=0)


def flop_per_byte(rows, columns, itemsize):
    return 2 * rows * columns / ((rows + columns) * itemsize)


def flop_per_element(rows, columns, itemsize):
    return 2 * rows * columns / (rows + columns)


def swizzle(row, piece):
    return piece ^ row % 8


def no_swizzle(row, piece):
    return piece


def broken_swizzle(row, piece):
    return (piece * row) % 8


@cuda.jit
def tile_product(out_IJ, a_IK, b_KJ):
    tile_a = cuda.shared.array((16, 16), float32)
    tile_b = cuda.shared.array((16, 16), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    i, j = cuda.blockIdx.y * 16 + y, cuda.blockIdx.x * 16 + x
    total = float32(0)
    for k in range(0, a_IK.shape[1], 16):
        tile_a[y, x] = a_IK[i, k + x]
        tile_b[y, x] = b_KJ[k + y, j]
        cuda.syncthreads()
        for term in range(16):
            total += tile_a[y, term] * tile_b[term, x]
        cuda.syncthreads()
    out_IJ[i, j] = total


@cuda.jit
def tile_product_without_barriers(out_IJ, a_IK, b_KJ):
    tile_a = cuda.shared.array((16, 16), float32)
    tile_b = cuda.shared.array((16, 16), float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    i, j = cuda.blockIdx.y * 16 + y, cuda.blockIdx.x * 16 + x
    total = float32(0)
    for k in range(0, a_IK.shape[1], 16):
        tile_a[y, x] = a_IK[i, k + x]
        tile_b[y, x] = b_KJ[k + y, j]
        for term in range(16):
            total += tile_a[y, term] * tile_b[term, x]
    out_IJ[i, j] = total


RIGHT = [
    ("linear_backward", linear_backward),
    ("flop_per_byte", flop_per_byte),
    ("swizzle", swizzle),
    ("tile_product", tile_product),
]
WRONG = [
    ("linear_backward", transposed_weight_gradient),
    ("flop_per_byte", flop_per_element),
    ("swizzle", no_swizzle),
    ("swizzle", broken_swizzle),
    pytest.param(
        "tile_product",
        tile_product_without_barriers,
        marks=simulated,
    ),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG, given=("tile_product",))
