"""Layer normalisation, step 3: 128-bit accesses, and one backward pass over the rows for all three gradients.

A row is read from memory once; the second and third pass over it find it in the L1 cache. Backward cuts the rows into
chunks whose number depends on N alone. Each warp of the chunk's block adds up the gradients of weight and bias in its
own part of shared memory, the block adds its warps, and a second kernel adds the chunks: no atomics, and the same bits
whatever the grid. Letters: N rows, C channels, S scratch.
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.elements import load_pack, n_packs_of, store_pack
from kernels.launch import WARP_SIZE, Launch, ceil_div, launcher, n_packs
from kernels.layernorm.arguments import MAX_CHUNKS, padded, rows_per_chunk, take_backward, take_forward
from kernels.reduce import warp_sum
from kernels.registry import kernel

BLOCK = 256
WARPS = BLOCK // WARP_SIZE
SHARED_BYTES = 48 * 1024  # what a block gets without asking


@cuda.jit(device=True)
def row_statistics_device(x_8, row_C, eps, packs):
    """Return the mean and the reciprocal standard deviation of a row, to every lane of the warp that shares it."""
    lane = cuda.threadIdx.x & 31
    C = row_C.size
    total = float32(0)
    pack = lane
    while pack < n_packs_of(row_C):
        load_pack(x_8, row_C, pack, packs)
        for j in range(8):
            total += x_8[j]
        pack += WARP_SIZE
    mean = warp_sum(total) / float32(C)
    squares = float32(0)
    pack = lane
    while pack < n_packs_of(row_C):
        load_pack(x_8, row_C, pack, packs)
        for j in range(8):
            difference = x_8[j] - mean if pack * 8 + j < C else float32(0)
            squares += difference * difference
        pack += WARP_SIZE
    return mean, float32(1) / math.sqrt(warp_sum(squares) / float32(C) + eps)


@cuda.jit(device=True)
def normalize_row_device(out_C, row_C, mean, rstd, weight_C, bias_C, packs):
    """Write the normalised, scaled and shifted row; the lanes of a warp share it."""
    x_8 = cuda.local.array(8, float32)
    weight_8 = cuda.local.array(8, float32)
    bias_8 = cuda.local.array(8, float32)
    pack = cuda.threadIdx.x & 31
    while pack < n_packs_of(row_C):
        load_pack(x_8, row_C, pack, packs)
        load_pack(weight_8, weight_C, pack, packs)
        load_pack(bias_8, bias_C, pack, packs)
        for j in range(8):
            x_8[j] = (x_8[j] - mean) * rstd * weight_8[j] + bias_8[j]
        store_pack(out_C, pack, packs, x_8)
        pack += WARP_SIZE


@kernel(
    "void(real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[::1], real[::1], float32, int64)",
    launch_bounds=BLOCK,
)
def layernorm_forward_kernel(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps, packs):
    """A warp owns rows; a lane owns every 32nd pack of 8 channels."""
    x_8 = cuda.local.array(8, float32)
    n = cuda.grid(1) >> 5
    while n < inp_NC.shape[0]:
        mean, rstd = row_statistics_device(x_8, inp_NC[n], eps, packs)
        normalize_row_device(out_NC[n], inp_NC[n], mean, rstd, weight_C, bias_C, packs)
        if cuda.threadIdx.x & 31 == 0:
            mean_N[n] = mean
            rstd_N[n] = rstd
        n += cuda.gridsize(1) >> 5


@cuda.jit(device=True)
def backward_row_device(
    grad_inp_C, sums, grad_out_C, inp_C, weight_C, mean, rstd, accumulate, own_weight, own_bias, packs
):
    """Write the gradient of one row's input, and add its part of the other gradients to the warp's sums.

    Channel 8 * pack + j is kept at j * (number of packs) + pack, so that lanes do not meet in a bank.
    """
    grad_8 = cuda.local.array(8, float32)
    x_8 = cuda.local.array(8, float32)
    weight_8 = cuda.local.array(8, float32)
    n_all = n_packs_of(weight_C)
    lane = cuda.threadIdx.x & 31
    sum_grad = float32(0)
    sum_product = float32(0)
    pack = lane
    while pack < n_all:
        load_pack(grad_8, grad_out_C, pack, packs)
        load_pack(x_8, inp_C, pack, packs)
        load_pack(weight_8, weight_C, pack, packs)
        for j in range(8):
            normalized = (x_8[j] - mean) * rstd
            sums[own_weight + j * n_all + pack] += grad_8[j] * normalized
            sums[own_bias + j * n_all + pack] += grad_8[j]
            grad = grad_8[j] * weight_8[j]
            sum_grad += grad
            sum_product += grad * normalized
        pack += WARP_SIZE
    C = float32(inp_C.size)
    mean_grad, mean_product = warp_sum(sum_grad) / C, warp_sum(sum_product) / C
    pack = lane
    while pack < n_all:
        load_pack(grad_8, grad_out_C, pack, packs)
        load_pack(x_8, inp_C, pack, packs)
        load_pack(weight_8, weight_C, pack, packs)
        for j in range(8):
            normalized = (x_8[j] - mean) * rstd
            grad_8[j] = rstd * (grad_8[j] * weight_8[j] - mean_grad - normalized * mean_product)
        if accumulate:
            load_pack(x_8, grad_inp_C, pack, packs)
            for j in range(8):
                grad_8[j] += x_8[j]
        store_pack(grad_inp_C, pack, packs, grad_8)
        pack += WARP_SIZE


@kernel(
    "void(real[:, ::1], float32[::1], real[:, ::1], real[:, ::1], real[::1], float32[::1], float32[::1], "
    "int64, int64, int64)",
    launch_bounds=BLOCK,
)
def layernorm_backward_kernel(
    grad_inp_NC, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N, accumulate, chunk_rows, packs
):
    """A block owns chunks of rows, a warp every so manieth row of it, a lane every 32nd pack of 8 channels."""
    sums = cuda.shared.array(0, float32)  # of each warp: the weight's gradient, then the bias's
    n_warps = cuda.blockDim.x >> 5
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    N = inp_NC.shape[0]
    n_all = n_packs_of(weight_C)
    width = 8 * n_all
    own = warp * 2 * width
    chunk = cuda.blockIdx.x
    while chunk * chunk_rows < N:
        i = lane
        while i < 2 * width:
            sums[own + i] = float32(0)
            i += WARP_SIZE
        cuda.syncwarp()  # a lane adds to elements that another lane has cleared
        n = chunk * chunk_rows + warp
        while n < min(N, (chunk + 1) * chunk_rows):
            backward_row_device(
                grad_inp_NC[n], sums, grad_out_NC[n], inp_NC[n], weight_C, mean_N[n], rstd_N[n],
                accumulate, own, own + width, packs,
            )  # fmt: skip
            n += n_warps
        cuda.syncthreads()  # all warps have added their rows
        i = cuda.threadIdx.x
        while i < 2 * width:
            total = float32(0)
            for w in range(n_warps):
                total += sums[w * 2 * width + i]
            scratch_S[chunk * 2 * width + i] = total
            i += cuda.blockDim.x
        cuda.syncthreads()  # the sums have been read: the next chunk may clear them
        chunk += cuda.gridDim.x


@kernel("void(float32[::1], float32[::1], float32[::1], int64)", launch_bounds=BLOCK)
def layernorm_finish_kernel(grad_weight_C, grad_bias_C, scratch_S, n_chunks):
    """A block owns 32 columns of the scratch, one a lane; its 8 warps share the chunks."""
    partial = cuda.shared.array((WARPS, WARP_SIZE), float32)
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    n_all = n_packs_of(grad_weight_C)
    width = 8 * n_all
    first = cuda.blockIdx.x * WARP_SIZE
    while first < 2 * width:
        i = first + lane
        total = float32(0)
        chunk = warp
        while chunk < n_chunks and i < 2 * width:
            total += scratch_S[chunk * 2 * width + i]
            chunk += WARPS
        partial[warp, lane] = total
        cuda.syncthreads()  # all warps have written their sums
        if warp == 0 and i < 2 * width:
            for w in range(1, WARPS):
                total += partial[w, lane]
            c = (i % n_all) * 8 + (i % width) // n_all
            if c < grad_weight_C.size:
                if i < width:
                    grad_weight_C[c] += total
                else:
                    grad_bias_C[c] += total
        cuda.syncthreads()  # the sums have been read: the next columns may overwrite them
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
    Book     Chapter 06, step 3.
    """
    a, sizes = take_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C)
    packs = n_packs(sizes.C, a.out_NC, a.inp_NC, a.weight_C, a.bias_C)
    arguments = (a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.weight_C, a.bias_C, float(eps), packs)
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
             grad_bias_C float32 (+=); scratch_S float32 (=), at least `layernorm_scratch_size(N, C)`.
    Work     about 14*N*C flop, 4*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees or C > 6144; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 3.
    """
    a, sizes = take_backward(
        grad_inp_NC, grad_weight_C, grad_bias_C, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N
    )
    warp_bytes = 2 * padded(sizes.C) * 4
    n_warps = min(WARPS, SHARED_BYTES // warp_bytes)
    if n_warps == 0:
        raise ValueError(f"inp_NC has {sizes.C} channels; at most {SHARED_BYTES // 8} are possible")
    packs = n_packs(sizes.C, a.grad_inp_NC, a.grad_out_NC, a.inp_NC, a.weight_C)
    chunk_rows = rows_per_chunk(sizes.N, MAX_CHUNKS)
    n_chunks = ceil_div(sizes.N, chunk_rows)
    rows = (a.grad_inp_NC, a.scratch_S, a.grad_out_NC, a.inp_NC, a.weight_C, a.mean_N, a.rstd_N)
    rows += (int(accumulate), chunk_rows, packs)
    columns = (a.grad_weight_C, a.grad_bias_C, a.scratch_S, n_chunks)
    grid = ceil_div(2 * padded(sizes.C), WARP_SIZE)
    return [
        Launch(layernorm_backward_kernel, n_chunks, n_warps * WARP_SIZE, rows, stream, n_warps * warp_bytes),
        Launch(layernorm_finish_kernel, grid, BLOCK, columns, stream),
    ]
