"""Layer normalisation, step 1: one thread a row, as one would write it on a CPU.

Neighbouring threads read addresses a whole row apart, so each load of a warp touches 32 different sectors of
memory. Letters: N rows, C channels.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import Launch, ceil_div, launcher
from kernels.layernorm.arguments import take_backward, take_forward
from kernels.registry import kernel

BLOCK = 64


@kernel(
    "void(real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[::1], real[::1], float32)", launch_bounds=BLOCK
)
def layernorm_forward_kernel(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps):
    """A thread owns rows."""
    C = inp_NC.shape[1]
    n = cuda.grid(1)
    while n < inp_NC.shape[0]:
        inp_C, out_C = inp_NC[n], out_NC[n]
        total = float32(0)
        for c in range(C):
            total += load(inp_C, c)
        mean = total / float32(C)
        squares = float32(0)
        rest = float32(0)
        for c in range(C):
            difference = load(inp_C, c) - mean
            squares += difference * difference
            rest += difference
        mean += rest / float32(C)  # one thread's long sum has lost digits, which the small differences still have
        rstd = float32(1) / math.sqrt(squares / float32(C) + eps)
        for c in range(C):
            store(out_C, c, (load(inp_C, c) - mean) * rstd * load(weight_C, c) + load(bias_C, c))
        mean_N[n] = mean
        rstd_N[n] = rstd
        n += cuda.gridsize(1)


@kernel(
    "void(real[:, ::1], real[:, ::1], real[:, ::1], real[::1], float32[::1], float32[::1], int64)", launch_bounds=BLOCK
)
def layernorm_grad_input_kernel(grad_inp_NC, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N, accumulate):
    """A thread owns rows."""
    C = inp_NC.shape[1]
    n = cuda.grid(1)
    while n < inp_NC.shape[0]:
        grad_inp_C, grad_out_C, inp_C = grad_inp_NC[n], grad_out_NC[n], inp_NC[n]
        mean, rstd = mean_N[n], rstd_N[n]
        sum_grad = float32(0)
        sum_product = float32(0)
        for c in range(C):
            grad = load(grad_out_C, c) * load(weight_C, c)
            sum_grad += grad
            sum_product += grad * (load(inp_C, c) - mean) * rstd
        mean_grad, mean_product = sum_grad / float32(C), sum_product / float32(C)
        for c in range(C):
            normalized = (load(inp_C, c) - mean) * rstd
            grad = load(grad_out_C, c) * load(weight_C, c)
            grad = rstd * (grad - mean_grad - normalized * mean_product)
            if accumulate:
                grad += load(grad_inp_C, c)
            store(grad_inp_C, c, grad)
        n += cuda.gridsize(1)


@kernel("void(float32[::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], float32[::1])", launch_bounds=BLOCK)
def layernorm_grad_weight_kernel(grad_weight_C, grad_bias_C, grad_out_NC, inp_NC, mean_N, rstd_N):
    """A thread owns channels and sums over all rows."""
    c = cuda.grid(1)
    while c < inp_NC.shape[1]:
        grad_weight = float32(0)
        grad_bias = float32(0)
        for n in range(inp_NC.shape[0]):
            grad = load(grad_out_NC[n], c)
            grad_weight += grad * (load(inp_NC[n], c) - mean_N[n]) * rstd_N[n]
            grad_bias += grad
        grad_weight_C[c] += grad_weight
        grad_bias_C[c] += grad_bias
        c += cuda.gridsize(1)


@launcher
def layernorm_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps=1e-5, stream=0):
    """Normalise each row of C channels to mean 0 and variance 1, then scale and shift it.

    Reads    inp_NC, weight_C, bias_C: float32 or bfloat16, C-contiguous, on the device.
    Writes   out_NC (=), of the same dtype; mean_N and rstd_N float32 (=).
    Work     about 8*N*C flop, 2*N*C*itemsize bytes if the cache keeps the rows: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 1.
    """
    a, sizes = take_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C)
    arguments = (a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.weight_C, a.bias_C, float(eps))
    return [Launch(layernorm_forward_kernel, ceil_div(sizes.N, BLOCK), BLOCK, arguments, stream)]


@launcher
def layernorm_backward(
    grad_inp_NC,
    grad_weight_C,
    grad_bias_C,
    scratch_S,
    grad_out_NC,
    inp_NC,
    weight_C,
    mean_N,
    rstd_N,
    accumulate=True,
    stream=0,
):
    """Take the gradients of the input, the weight and the bias.

    Reads    grad_out_NC, inp_NC, weight_C: float32 or bfloat16; mean_N, rstd_N: float32, what forward wrote; all
             C-contiguous, on the device.
    Writes   grad_inp_NC (+=), or (=) if `accumulate` is False, of the dtype of the input; grad_weight_C and
             grad_bias_C float32 (+=); scratch_S is not used in this step.
    Work     about 14*N*C flop, 6*N*C*itemsize bytes and more: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 1.
    """
    a, sizes = take_backward(
        grad_inp_NC, grad_weight_C, grad_bias_C, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N
    )
    rows = (a.grad_inp_NC, a.grad_out_NC, a.inp_NC, a.weight_C, a.mean_N, a.rstd_N, int(accumulate))
    columns = (a.grad_weight_C, a.grad_bias_C, a.grad_out_NC, a.inp_NC, a.mean_N, a.rstd_N)
    return [
        Launch(layernorm_grad_input_kernel, ceil_div(sizes.N, BLOCK), BLOCK, rows, stream),
        Launch(layernorm_grad_weight_kernel, ceil_div(sizes.C, BLOCK), BLOCK, columns, stream),
    ]
