"""GELU, the activation of the feed-forward block, with and without the bias of the layer before it.

GPT-2's tanh form is computed as 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)), which has no cancellation for negative x and
needs no tanh. Backward computes the activation's insides again from the input, so nothing is kept for it; and as
forward reads nothing but its input, a training step that does not keep GELU's output calls forward again (recompute).

With a bias a block owns rows and walks over their packs, so that no thread divides to find its column.

Letters: N rows (all elements where there is no bias), F features of a row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32

from kernels.elements import load, load8, load_pack, n_packs_of, store, store8, store_pack
from kernels.elementwise import BLOCK, grid_of, whole_packs
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.ptx import exp2, reciprocal
from kernels.registry import kernel

CUBIC = np.float32(0.044715)
SLOPE = np.float32(2 * math.sqrt(2 / math.pi))  # d(2u)/dx at 0
TO_EXP2 = np.float32(-2 * math.sqrt(2 / math.pi) * math.log2(math.e))  # exp(-2u) = exp2(TO_EXP2 * (x + ...))

GREATEST_EXPONENT = np.float32(126)


@cuda.jit(device=True)
def gelu_device(x):
    """Return x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    return x * reciprocal(float32(1) + exp2(TO_EXP2 * x * (float32(1) + CUBIC * x * x)))


@cuda.jit(device=True)
def gelu_grad_device(x):
    """Return the derivative of GELU: s + x s (1 - s) d(2u)/dx with s = 1 / (1 + exp(-2u)).

    1 - s is taken as exp(-2u) s, which loses no digits where s is near 1; the bound keeps it from inf * 0.
    """
    square = x * x
    exponential = exp2(min(TO_EXP2 * x * (float32(1) + CUBIC * square), GREATEST_EXPONENT))
    s = reciprocal(float32(1) + exponential)
    return s + x * s * (exponential * s) * SLOPE * (float32(1) + float32(3) * CUBIC * square)


@kernel("void(real[::1], real[::1], int64)", launch_bounds=BLOCK)
def gelu_forward_kernel(out_N, inp_N, whole):
    """A thread owns packs of 8 elements."""
    x_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        load8(x_8, inp_N, i)
        for j in range(PACK):
            x_8[j] = gelu_device(x_8[j])
        store8(out_N, i, x_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < out_N.size:
        store(out_N, i, gelu_device(load(inp_N, i)))
        i += cuda.gridsize(1)


@kernel("void(real[::1], real[::1], real[::1], int64)", launch_bounds=BLOCK)
def gelu_backward_kernel(grad_inp_N, grad_out_N, inp_N, whole):
    """A thread owns packs of 8 elements."""
    x_8 = cuda.local.array(PACK, float32)
    grad_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        load8(x_8, inp_N, i)
        load8(grad_8, grad_out_N, i)
        for j in range(PACK):
            grad_8[j] *= gelu_grad_device(x_8[j])
        store8(grad_inp_N, i, grad_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < grad_inp_N.size:
        store(grad_inp_N, i, load(grad_out_N, i) * gelu_grad_device(load(inp_N, i)))
        i += cuda.gridsize(1)


@kernel("void(real[:, ::1], real[:, ::1], real[::1], int64)", launch_bounds=BLOCK)
def bias_gelu_forward_kernel(out_NF, inp_NF, bias_F, packs):
    """A block owns rows, one at a time; a thread owns packs of 8 elements of it."""
    x_8 = cuda.local.array(8, float32)
    bias_8 = cuda.local.array(8, float32)
    n = cuda.blockIdx.x
    while n < inp_NF.shape[0]:
        pack = cuda.threadIdx.x
        while pack < n_packs_of(bias_F):
            load_pack(x_8, inp_NF[n], pack, packs)
            load_pack(bias_8, bias_F, pack, packs)
            for j in range(8):
                x_8[j] = gelu_device(x_8[j] + bias_8[j])
            store_pack(out_NF[n], pack, packs, x_8)
            pack += cuda.blockDim.x
        n += cuda.gridDim.x


@kernel("void(real[:, ::1], real[:, ::1], real[:, ::1], real[::1], int64)", launch_bounds=BLOCK)
def bias_gelu_backward_kernel(grad_inp_NF, grad_out_NF, inp_NF, bias_F, packs):
    """A block owns rows, one at a time; a thread owns packs of 8 elements of it."""
    x_8 = cuda.local.array(8, float32)
    bias_8 = cuda.local.array(8, float32)
    grad_8 = cuda.local.array(8, float32)
    n = cuda.blockIdx.x
    while n < inp_NF.shape[0]:
        pack = cuda.threadIdx.x
        while pack < n_packs_of(bias_F):
            load_pack(x_8, inp_NF[n], pack, packs)
            load_pack(bias_8, bias_F, pack, packs)
            load_pack(grad_8, grad_out_NF[n], pack, packs)
            for j in range(8):
                grad_8[j] *= gelu_grad_device(x_8[j] + bias_8[j])
            store_pack(grad_inp_NF[n], pack, packs, grad_8)
            pack += cuda.blockDim.x
        n += cuda.gridDim.x


@launcher
def gelu_forward(out_N, inp_N, stream=0):
    """Apply GELU (tanh form) to each element. `out_N` may be `inp_N` if backward does not follow.

    Reads    inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_N (=), of the same dtype and size.
    Work     about 12*N flop, 2*N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_gelu.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415); compare llm.c llmc/gelu.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(real={"out_N": out_N, "inp_N": inp_N})
    whole = whole_packs(sizes.N, arrays.out_N, arrays.inp_N)
    return [Launch(gelu_forward_kernel, grid_of(sizes.N), BLOCK, (arrays.out_N, arrays.inp_N, whole), stream)]


@launcher
def gelu_backward(grad_inp_N, grad_out_N, inp_N, stream=0):
    """Multiply the gradient of the output by the derivative of GELU. `grad_inp_N` may be `grad_out_N`.

    Reads    grad_out_N, inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   grad_inp_N (=), of the same dtype and size.
    Work     about 20*N flop, 3*N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_gelu.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415); compare llm.c llmc/gelu.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(real={"grad_inp_N": grad_inp_N, "grad_out_N": grad_out_N, "inp_N": inp_N})
    whole = whole_packs(sizes.N, arrays.grad_inp_N, arrays.grad_out_N, arrays.inp_N)
    arguments = (arrays.grad_inp_N, arrays.grad_out_N, arrays.inp_N, whole)
    return [Launch(gelu_backward_kernel, grid_of(sizes.N), BLOCK, arguments, stream)]


def _block_of_row(F: int) -> int:
    """Return how many threads share a row: one a pack, in whole warps."""
    return min(BLOCK, WARP_SIZE * ceil_div(F, WARP_SIZE * PACK))


@launcher
def bias_gelu_forward(out_NF, inp_NF, bias_F, stream=0):
    """Add a bias to each row and apply GELU (tanh form).

    Reads    inp_NF, bias_F: float32 or bfloat16, C-contiguous, on the device.
    Writes   out_NF (=), of the same dtype.
    Work     about 13*N*F flop, 2*N*F*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_gelu.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415); compare llm.c llmc/gelu.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(real={"out_NF": out_NF, "inp_NF": inp_NF, "bias_F": bias_F})
    packs = n_packs(sizes.F, arrays.out_NF, arrays.inp_NF, arrays.bias_F)
    arguments = (arrays.out_NF, arrays.inp_NF, arrays.bias_F, packs)
    return [Launch(bias_gelu_forward_kernel, sizes.N, _block_of_row(sizes.F), arguments, stream)]


@launcher
def bias_gelu_backward(grad_inp_NF, grad_out_NF, inp_NF, bias_F, stream=0):
    """Take the gradient of `bias_gelu_forward` with respect to its input.

    The gradient of the bias is the sum of `grad_inp_NF` over the rows. `grad_inp_NF` may be `grad_out_NF`.

    Reads    grad_out_NF, inp_NF, bias_F: float32 or bfloat16, C-contiguous, on the device.
    Writes   grad_inp_NF (=), of the same dtype.
    Work     about 21*N*F flop, 3*N*F*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_gelu.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415); compare llm.c llmc/gelu.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(
        real={"grad_inp_NF": grad_inp_NF, "grad_out_NF": grad_out_NF, "inp_NF": inp_NF, "bias_F": bias_F}
    )
    packs = n_packs(sizes.F, arrays.grad_inp_NF, arrays.grad_out_NF, arrays.inp_NF, arrays.bias_F)
    arguments = (arrays.grad_inp_NF, arrays.grad_out_NF, arrays.inp_NF, arrays.bias_F, packs)
    return [Launch(bias_gelu_backward_kernel, sizes.N, _block_of_row(sizes.F), arguments, stream)]
