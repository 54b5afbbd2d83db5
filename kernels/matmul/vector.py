"""The product of a linear layer with a single row: what a step of sampling is made of.

A row uses each element of the weight once, so the time is that of reading the weight, and tensor cores have nothing to
gain. There are two concerns: that many loads are under way, and, as a product takes a microsecond or two only, that
nothing else takes a launch of its own. So the layernorm before a product, and GELU or the residual sum after it, are
done here, each value rounded where the kernels of training round it.

The K terms of a row are cut into tiles of 768. A warp keeps one tile of the (normalised) input in its registers and
multiplies it by that tile of two rows of the weight at once; what the warps of several tiles find is added in order:

    block of 4 warps, K = 768      warp 0: rows 0, 1    warp 1: rows 2, 3    warp 2: rows 4, 5    warp 3: rows 6, 7
    block of 4 warps, K = 3072     warp 0: terms 0-767 of rows 0, 1          warp 1: terms 768-1535 of them ...

Everything that a row needs is asked for before anything is computed, for a wait for memory is as long as all the rest.

Letters: N rows of the weight, K terms, T rows of an output of which one is written.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32

from kernels.elements import as_held, load, load_packs, store
from kernels.gelu import gelu_device
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.reduce import warp_sum
from kernels.registry import kernel

PACKS = 3  # of a lane at once
OWNED = PACKS * PACK
LANE_STRIDE = WARP_SIZE * PACK  # terms between the packs of a lane
TILE = PACKS * LANE_STRIDE
ROWS = 2  # of a warp at once
WARPS = 4  # of a block, or as many as there are tiles
MAX_WARPS = 12
MAX_GRID = 528  # blocks; 4 on each of the 132 multiprocessors of an H100


@cuda.jit(device=True)
def sum_of_tiles(x, partial_W, n_tiles):
    """Sum a float32 over the lanes of a warp and then over the warps of a group, those of the tiles of one row."""
    x = warp_sum(x)
    if n_tiles > 1:
        first = cuda.threadIdx.y * n_tiles
        if cuda.threadIdx.x & 31 == 0:
            partial_W[first + (cuda.threadIdx.x >> 5)] = x
        cuda.syncthreads()  # the sums of all tiles are there
        x = float32(0)
        for tile in range(n_tiles):
            x += partial_W[first + tile]
        cuda.syncthreads()  # they have been read
    return x


@cuda.jit(device=True)
def normalize_device(x_24, inp_K, k, scale_24, shift_24, partial_W, n_tiles, eps):
    """Normalise, scale, shift and round the lane's packs of the row, the first of which begins at term k."""
    K = inp_K.size
    total, squares = float32(0), float32(0)
    for j in range(OWNED):
        total += x_24[j]  # past the end of the row are zeros
    mean = sum_of_tiles(total, partial_W, n_tiles) / float32(K)
    for j in range(OWNED):
        difference = x_24[j] - mean if k + (j >> 3) * LANE_STRIDE < K else float32(0)
        squares += difference * difference
    rstd = float32(1) / math.sqrt(sum_of_tiles(squares, partial_W, n_tiles) / float32(K) + eps)
    for j in range(OWNED):
        x_24[j] = as_held(inp_K, (x_24[j] - mean) * rstd * scale_24[j] + shift_24[j])


@cuda.jit(device=True)
def load_rows_device(one_24, other_24, weight_NK, n, k):
    """Start to load the lane's packs of rows n and n + 1; of rows that there are not, zeros."""
    N, K = weight_NK.shape
    load_packs(one_24, weight_NK[min(n, N - 1)], k, LANE_STRIDE, K if n < N else 0, PACKS)
    load_packs(other_24, weight_NK[min(n + 1, N - 1)], k, LANE_STRIDE, K if n + 1 < N else 0, PACKS)


@kernel(
    "void(real[::1], real[::1], real[:, ::1], real[::1], real[::1], real[::1], real[::1], int32[::1], "
    "int64, int64, int64, int64, int64, int64, float32)",
    launch_bounds=MAX_WARPS * WARP_SIZE,
)
def matmul_vector_kernel(
    out, inp_K, weight_NK, bias_N, norm_weight_K, norm_bias_K, residual_N, position_1,
    n_tiles, row_size, has_bias, has_norm, has_gelu, has_residual, eps,
):  # fmt: skip
    """A warp, along x in its group, owns a tile of pairs of rows; that of the first tile finishes them, a lane each."""
    one_24 = cuda.local.array(OWNED, float32)
    other_24 = cuda.local.array(OWNED, float32)
    x_24 = cuda.local.array(OWNED, float32)
    scale_24 = cuda.local.array(OWNED, float32)
    shift_24 = cuda.local.array(OWNED, float32)
    partial_W = cuda.shared.array(MAX_WARPS, float32)
    lane, tile, N = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5, weight_NK.shape[0]
    k = tile * TILE + lane * PACK
    start = cuda.blockIdx.x * cuda.blockDim.y * ROWS
    n = start + cuda.threadIdx.y * ROWS
    load_rows_device(one_24, other_24, weight_NK, n, k)
    load_packs(x_24, inp_K, k, LANE_STRIDE, inp_K.size, PACKS)
    place = position_1[0] * row_size if row_size else 0
    if has_norm:
        load_packs(scale_24, norm_weight_K, k, LANE_STRIDE, inp_K.size, PACKS)
        load_packs(shift_24, norm_bias_K, k, LANE_STRIDE, inp_K.size, PACKS)
        normalize_device(x_24, inp_K, k, scale_24, shift_24, partial_W, n_tiles, eps)
    while start < N:
        row = n + lane
        finishes = tile == 0 and lane < ROWS and row < N
        bias = load(bias_N, row) if has_bias and finishes else float32(0)
        residual = load(residual_N, row) if has_residual and finishes else float32(0)
        one, other = float32(0), float32(0)
        for j in range(OWNED):
            one += x_24[j] * one_24[j]
            other += x_24[j] * other_24[j]
        start += cuda.gridDim.x * cuda.blockDim.y * ROWS
        n += cuda.gridDim.x * cuda.blockDim.y * ROWS
        load_rows_device(one_24, other_24, weight_NK, n, k)
        one, other = sum_of_tiles(one, partial_W, n_tiles), sum_of_tiles(other, partial_W, n_tiles)
        if finishes:
            total = as_held(out, (one if lane == 0 else other) + bias)
            if has_gelu:
                total = gelu_device(total)
            store(out, place + row, total + residual)


@launcher
def matmul_vector(
    out_TN, inp_K, weight_NK, bias_N=None, *, norm=None, gelu=False, residual_N=None, position_1=None, eps=1e-5,
    stream=0,
):  # fmt: skip
    """Multiply one row by the transposed weight and add the bias: a linear layer for a single token.

    With `norm`, weight and bias of a layernorm, the row is normalised first; GELU is applied or the residual added at
    the end. The result is row `position_1[0]` of the output, or its first without a position.

    Reads    inp_K, weight_NK, bias_N, norm, residual_N: float32 or bfloat16, C-contiguous, on the device; position_1
             int32, from 0 to T-1 (not checked).
    Writes   one row of out_TN (=), of the same dtype. It may be residual_N.
    Work     2*N*K flop, N*K*itemsize bytes: bound by reading the weight.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_matmul_vector.py).
    Raises   ValueError if a shape or dtype disagrees, K is no multiple of 8 or more than 9,216, or the input or the
             weight does not begin at a multiple of 16 bytes; nothing is launched then.
    Source   own.
    Book     Chapter 07, sampling.
    """
    norm_weight_K, norm_bias_K = norm or (None, None)
    real = {"out_TN": out_TN, "inp_K": inp_K, "weight_NK": weight_NK, "bias_N": bias_N, "residual_N": residual_N}
    real |= {"norm_weight_K": norm_weight_K, "norm_bias_K": norm_bias_K}
    a, sizes = take(real=real, int32={"position_1": position_1})
    N, K = sizes.N, sizes.K
    n_tiles = ceil_div(K, TILE)
    aligned = [a.inp_K, a.weight_NK] + ([a.norm_weight_K, a.norm_bias_K] if norm else [])
    if n_tiles > MAX_WARPS or n_packs(K, *aligned) * PACK != K:
        raise ValueError(
            f"rows of {K} elements cannot be multiplied: a multiple of {PACK} is needed, at most {MAX_WARPS * TILE}, "
            "and arrays that begin at a multiple of 16 bytes"
        )
    groups = max(1, WARPS // n_tiles)
    unread, place = a.inp_K, a.inp_K.view(np.int32)
    vectors = [unread if x is None else x for x in (a.bias_N, a.norm_weight_K, a.norm_bias_K, a.residual_N)]
    row_size = N if position_1 is not None else 0
    flags = [int(x) for x in (bias_N is not None, norm is not None, gelu, residual_N is not None)]
    arguments = (a.out_TN.reshape(sizes.T * N), a.inp_K, a.weight_NK, *vectors)
    arguments += (place if position_1 is None else a.position_1, n_tiles, row_size, *flags, float(eps))
    grid = min(MAX_GRID, ceil_div(N, groups * ROWS))
    return [Launch(matmul_vector_kernel, grid, (n_tiles * WARP_SIZE, groups), arguments, stream)]
