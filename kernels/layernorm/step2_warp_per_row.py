"""Layer normalisation, step 2: one warp a row, so that neighbouring lanes read neighbouring channels.

Sums over a row are exchanged between the lanes by shuffles. For the weight's gradient a block owns 32
channels, and its warps share the rows. Letters: N rows, C channels.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher
from kernels.layernorm.arguments import take_backward, take_forward
from kernels.reduce import warp_sum
from kernels.registry import kernel

BLOCK = 256
WARPS = BLOCK // WARP_SIZE


@kernel(
    "void(real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[::1], real[::1], float32)", launch_bounds=BLOCK
)
def layernorm_forward_kernel(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps):
    """A warp owns rows; a lane owns every 32nd channel."""
    lane = cuda.threadIdx.x & 31
    C = inp_NC.shape[1]
    n = cuda.grid(1) >> 5
    while n < inp_NC.shape[0]:
        inp_C, out_C = inp_NC[n], out_NC[n]
        total = float32(0)
        c = lane
        while c < C:
            total += load(inp_C, c)
            c += WARP_SIZE
        mean = warp_sum(total) / float32(C)
        squares = float32(0)
        c = lane
        while c < C:
            difference = load(inp_C, c) - mean
            squares += difference * difference
            c += WARP_SIZE
        rstd = float32(1) / math.sqrt(warp_sum(squares) / float32(C) + eps)
        c = lane
        while c < C:
            store(out_C, c, (load(inp_C, c) - mean) * rstd * load(weight_C, c) + load(bias_C, c))
            c += WARP_SIZE
        if lane == 0:
            mean_N[n] = mean
            rstd_N[n] = rstd
        n += cuda.gridsize(1) >> 5


@kernel(
    "void(real[:, ::1], real[:, ::1], real[:, ::1], real[::1], float32[::1], float32[::1], int64)", launch_bounds=BLOCK
)
def layernorm_grad_input_kernel(grad_inp_NC, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N, accumulate):
    """A warp owns rows; a lane owns every 32nd channel."""
    lane = cuda.threadIdx.x & 31
    C = inp_NC.shape[1]
    n = cuda.grid(1) >> 5
    while n < inp_NC.shape[0]:
        grad_inp_C, grad_out_C, inp_C = grad_inp_NC[n], grad_out_NC[n], inp_NC[n]
        mean, rstd = mean_N[n], rstd_N[n]
        sum_grad = float32(0)
        sum_product = float32(0)
        c = lane
        while c < C:
            grad = load(grad_out_C, c) * load(weight_C, c)
            sum_grad += grad
            sum_product += grad * (load(inp_C, c) - mean) * rstd
            c += WARP_SIZE
        mean_grad = warp_sum(sum_grad) / float32(C)
        mean_product = warp_sum(sum_product) / float32(C)
        c = lane
        while c < C:
            normalized = (load(inp_C, c) - mean) * rstd
            grad = load(grad_out_C, c) * load(weight_C, c)
            grad = rstd * (grad - mean_grad - normalized * mean_product)
            if accumulate:
                grad += load(grad_inp_C, c)
            store(grad_inp_C, c, grad)
            c += WARP_SIZE
        n += cuda.gridsize(1) >> 5


@kernel("void(float32[::1], float32[::1], real[:, ::1], real[:, ::1], float32[::1], float32[::1])", launch_bounds=BLOCK)
def layernorm_grad_weight_kernel(grad_weight_C, grad_bias_C, grad_out_NC, inp_NC, mean_N, rstd_N):
    """A block owns 32 channels, one a lane; its 8 warps share the rows."""
    weight_sums = cuda.shared.array((WARPS, WARP_SIZE), float32)
    bias_sums = cuda.shared.array((WARPS, WARP_SIZE), float32)
    lane = cuda.threadIdx.x & 31
    warp = cuda.threadIdx.x >> 5
    first = cuda.blockIdx.x * WARP_SIZE
    while first < inp_NC.shape[1]:
        c = first + lane
        grad_weight = float32(0)
        grad_bias = float32(0)
        n = warp
        while n < inp_NC.shape[0] and c < inp_NC.shape[1]:
            grad = load(grad_out_NC[n], c)
            grad_weight += grad * (load(inp_NC[n], c) - mean_N[n]) * rstd_N[n]
            grad_bias += grad
            n += WARPS
        weight_sums[warp, lane] = grad_weight
        bias_sums[warp, lane] = grad_bias
        cuda.syncthreads()  # all warps have written their sums
        if warp == 0 and c < inp_NC.shape[1]:
            for w in range(1, WARPS):
                grad_weight += weight_sums[w, lane]
                grad_bias += bias_sums[w, lane]
            grad_weight_C[c] += grad_weight
            grad_bias_C[c] += grad_bias
        cuda.syncthreads()  # the sums have been read: the next channels may overwrite them
        first += cuda.gridDim.x * WARP_SIZE


@launcher
def layernorm_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps=1e-5, stream=0):
    """Normalise each row of C channels to mean 0 and variance 1, then scale and shift it.

    Reads    inp_NC, weight_C, bias_C: float32 or bfloat16, C-contiguous, on the device.
    Writes   out_NC (=), of the same dtype; mean_N and rstd_N float32 (=).
    Work     about 8*N*C flop, 2*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 2.
    """
    a, sizes = take_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C)
    arguments = (a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.weight_C, a.bias_C, float(eps))
    return [Launch(layernorm_forward_kernel, ceil_div(sizes.N, WARPS), BLOCK, arguments, stream)]


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
    Work     about 14*N*C flop, 6*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 2.
    """
    a, sizes = take_backward(
        grad_inp_NC, grad_weight_C, grad_bias_C, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N
    )
    rows = (a.grad_inp_NC, a.grad_out_NC, a.inp_NC, a.weight_C, a.mean_N, a.rstd_N, int(accumulate))
    columns = (a.grad_weight_C, a.grad_bias_C, a.grad_out_NC, a.inp_NC, a.mean_N, a.rstd_N)
    return [
        Launch(layernorm_grad_input_kernel, ceil_div(sizes.N, WARPS), BLOCK, rows, stream),
        Launch(layernorm_grad_weight_kernel, ceil_div(sizes.C, WARP_SIZE), BLOCK, columns, stream),
    ]
