"""Layer normalisation, step 5: a row stays in the registers of its warp, so that it is loaded once and never again.

A lane keeps 3 packs of 8 channels of a row of up to 768, or 4 of one up to 1024: all loads of a row are under way at
once, and so are those of the other rows of the multiprocessor. Backward keeps the sums of the weight's and the bias's
gradient in registers, too, and they meet in shared memory only at the end of a chunk of rows. Rows that are longer or
not aligned are left to the steps before. Letters: N rows, C channels, S scratch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

from numba import cuda, float32

from kernels.elements import as_held, load_packs, store_packs
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs
from kernels.layernorm import step3_vectorized, step4_fused_residual
from kernels.layernorm.arguments import rows_per_chunk, take_backward, take_forward, take_residual_forward
from kernels.reduce import SUM_BLOCK, chunk_sum, warp_sum
from kernels.registry import REAL_DTYPES, kernel

BLOCK = 512
WARPS = BLOCK // WARP_SIZE
STATISTICS = 2 * WARPS  # of the rows of a block
BACKWARD_BLOCK = 128
BACKWARD_WARPS = BACKWARD_BLOCK // WARP_SIZE
MAX_CHUNKS = 396  # of rows; 3 blocks on each of the 132 multiprocessors of an H100, all at once
LANE_STRIDE = WARP_SIZE * PACK  # channels between the packs of a lane


def _forward_kernels(packs: int) -> SimpleNamespace:
    """Make the forward kernels for rows of up to `packs` packs a lane."""
    owned = packs * PACK  # channels of a lane
    bounds = BLOCK if packs == 3 else (BLOCK, 1)  # let ptxas take the registers that four packs need

    @cuda.jit(device=True)
    def normalize_device(x, weight_C, bias_C, eps):
        """Normalise, scale and shift a row that lies in the lanes of a warp; return its mean and 1 / deviation."""
        weight_8 = cuda.local.array(PACK, float32)
        bias_8 = cuda.local.array(PACK, float32)
        first = (cuda.threadIdx.x & 31) * PACK
        C = weight_C.size
        total = float32(0)
        for j in range(owned):
            total += x[j]  # past the end of the row are zeros
        mean = warp_sum(total) / float32(C)
        squares = float32(0)
        for j in range(owned):
            difference = x[j] - mean if (j >> 3) * LANE_STRIDE + first < C else float32(0)
            squares += difference * difference
        rstd = float32(1) / math.sqrt(warp_sum(squares) / float32(C) + eps)
        for p in range(packs):
            load_packs(weight_8, weight_C, p * LANE_STRIDE + first, 0, C, 1)
            load_packs(bias_8, bias_C, p * LANE_STRIDE + first, 0, C, 1)
            for j in range(PACK):
                x[p * PACK + j] = (x[p * PACK + j] - mean) * rstd * weight_8[j] + bias_8[j]
        return mean, rstd

    @cuda.jit(device=True)
    def store_statistics_device(mean_N, rstd_N, statistics, first):
        """Store what the warps found of the block's rows, side by side: one row's alone would take a whole sector."""
        cuda.syncthreads()  # all warps have their row's
        n = first + cuda.threadIdx.x
        if cuda.threadIdx.x < WARPS and n < mean_N.size:
            mean_N[n] = statistics[cuda.threadIdx.x]
            rstd_N[n] = statistics[WARPS + cuda.threadIdx.x]
        cuda.syncthreads()  # they have been read: the next rows' may overwrite them

    @kernel(
        "void(real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[::1], real[::1], float32)",
        name=f"layernorm_forward_{packs}_kernel",
        launch_bounds=bounds,
    )
    def layernorm_forward_kernel(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps):
        """A warp owns a row of the block's at a time; a lane owns every 32nd pack of 8 channels."""
        x = cuda.local.array(owned, float32)
        statistics = cuda.shared.array(STATISTICS, float32)
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        c, C = lane * PACK, weight_C.size
        first = cuda.blockIdx.x * WARPS
        while first < inp_NC.shape[0]:
            n = first + warp
            if n < inp_NC.shape[0]:
                load_packs(x, inp_NC[n], c, LANE_STRIDE, C, packs)
                mean, rstd = normalize_device(x, weight_C, bias_C, eps)
                store_packs(out_NC[n], c, LANE_STRIDE, C, x, packs)
                if lane == 0:
                    statistics[warp], statistics[WARPS + warp] = mean, rstd
            store_statistics_device(mean_N, rstd_N, statistics, first)
            first += cuda.gridDim.x * WARPS

    @kernel(
        "void(real[:, ::1], real[:, ::1], float32[::1], float32[::1], real[:, ::1], real[:, ::1], real[::1], "
        "real[::1], float32)",
        name=f"residual_layernorm_forward_{packs}_kernel",
        launch_bounds=bounds,
    )
    def residual_layernorm_forward_kernel(residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C, eps):
        """A warp owns a row of the block's at a time; a lane owns every 32nd pack of 8 channels."""
        x = cuda.local.array(owned, float32)
        added = cuda.local.array(owned, float32)
        statistics = cuda.shared.array(STATISTICS, float32)
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        c, C = lane * PACK, weight_C.size
        first = cuda.blockIdx.x * WARPS
        while first < inp_NC.shape[0]:
            n = first + warp
            if n < inp_NC.shape[0]:
                load_packs(x, inp_NC[n], c, LANE_STRIDE, C, packs)
                load_packs(added, added_NC[n], c, LANE_STRIDE, C, packs)
                for j in range(owned):
                    x[j] = as_held(residual_NC[n], x[j] + added[j])  # what backward will find
                store_packs(residual_NC[n], c, LANE_STRIDE, C, x, packs)
                mean, rstd = normalize_device(x, weight_C, bias_C, eps)
                store_packs(out_NC[n], c, LANE_STRIDE, C, x, packs)
                if lane == 0:
                    statistics[warp], statistics[WARPS + warp] = mean, rstd
            store_statistics_device(mean_N, rstd_N, statistics, first)
            first += cuda.gridDim.x * WARPS

    return SimpleNamespace(forward=layernorm_forward_kernel, residual=residual_layernorm_forward_kernel)


def _backward_kernel(packs: int, held: str) -> Callable:
    """Make the backward kernel for rows of up to `packs` packs a lane, of elements held as `held`."""
    owned = packs * PACK
    blocks = 3 if (packs, held) == (3, "uint16") else 2  # on a multiprocessor: what the registers of a thread allow
    row, matrix = f"{held}[::1]", f"{held}[:, ::1]"

    @cuda.jit(device=True)
    def write_chunk_device(scratch_S, chunk, weight_sum, bias_sum, C):
        """Add the sums of the block's warps, and write the chunk's: C of the weight, then C of the bias."""
        sums = cuda.shared.array(0, float32)  # of each warp: channel j of each lane side by side, against conflicts
        lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
        width = owned * WARP_SIZE
        for j in range(owned):
            sums[2 * warp * width + j * WARP_SIZE + lane] = weight_sum[j]
            sums[(2 * warp + 1) * width + j * WARP_SIZE + lane] = bias_sum[j]
        cuda.syncthreads()  # all warps have written their sums
        c = cuda.threadIdx.x
        while c < C:
            where = ((c >> 8) * PACK + (c & 7)) * WARP_SIZE + ((c >> 3) & 31)
            weight_total = float32(0)
            bias_total = float32(0)
            for w in range(BACKWARD_WARPS):
                weight_total += sums[2 * w * width + where]
                bias_total += sums[(2 * w + 1) * width + where]
            scratch_S[2 * chunk * C + c] = weight_total
            scratch_S[(2 * chunk + 1) * C + c] = bias_total
            c += BACKWARD_BLOCK
        cuda.syncthreads()  # the sums have been read: the next chunk may overwrite them

    @kernel(
        f"void({matrix}, float32[::1], {matrix}, {matrix}, {row}, float32[::1], float32[::1], int64, int64)",
        name=f"layernorm_backward_{packs}_{held}_kernel",
        launch_bounds=(BACKWARD_BLOCK, blocks),
    )
    def layernorm_backward_kernel(
        grad_inp_NC, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N, accumulate, chunk_rows
    ):
        """A block owns chunks of rows, a warp every 4th row of it, a lane every 32nd pack of 8 channels."""
        x = cuda.local.array(owned, float32)
        grad = cuda.local.array(owned, float32)
        before = cuda.local.array(owned, float32)
        weight_8 = cuda.local.array(PACK, float32)
        weight_sum = cuda.local.array(owned, float32)
        bias_sum = cuda.local.array(owned, float32)
        first = (cuda.threadIdx.x & 31) * PACK
        N, C = inp_NC.shape
        chunk = cuda.blockIdx.x
        while chunk * chunk_rows < N:
            for j in range(owned):
                weight_sum[j] = float32(0)
                bias_sum[j] = float32(0)
            n = chunk * chunk_rows + (cuda.threadIdx.x >> 5)
            while n < min(N, (chunk + 1) * chunk_rows):
                load_packs(grad, grad_out_NC[n], first, LANE_STRIDE, C, packs)
                load_packs(x, inp_NC[n], first, LANE_STRIDE, C, packs)
                load_packs(before, grad_inp_NC[n], first, LANE_STRIDE, C if accumulate else 0, packs)
                mean, rstd = mean_N[n], rstd_N[n]
                sum_grad = float32(0)
                sum_product = float32(0)
                for p in range(packs):
                    load_packs(weight_8, weight_C, p * LANE_STRIDE + first, 0, C, 1)
                    for j in range(p * PACK, (p + 1) * PACK):
                        x[j] = (x[j] - mean) * rstd
                        weight_sum[j] += grad[j] * x[j]
                        bias_sum[j] += grad[j]
                        grad[j] *= weight_8[j & 7]
                        sum_grad += grad[j]
                        sum_product += grad[j] * x[j]
                mean_grad, mean_product = warp_sum(sum_grad) / float32(C), warp_sum(sum_product) / float32(C)
                for j in range(owned):
                    grad[j] = before[j] + rstd * (grad[j] - mean_grad - x[j] * mean_product)
                store_packs(grad_inp_NC[n], first, LANE_STRIDE, C, grad, packs)
                n += BACKWARD_WARPS
            write_chunk_device(scratch_S, chunk, weight_sum, bias_sum, C)
            chunk += cuda.gridDim.x

    return layernorm_backward_kernel


PACKS = (3, 4)  # a lane: rows of up to 768 and of up to 1024 channels
FORWARD = {packs: _forward_kernels(packs) for packs in PACKS}
BACKWARD = {(packs, held): _backward_kernel(packs, held) for packs in PACKS for held in REAL_DTYPES.values()}


@kernel("void(float32[::1], float32[::1], float32[::1], int64)", launch_bounds=SUM_BLOCK)
def layernorm_finish_kernel(grad_weight_C, grad_bias_C, scratch_S, n_chunks):
    """A block owns 32 columns of the scratch, one a lane; its 8 warps share the chunks."""
    C = grad_weight_C.size
    first = cuda.blockIdx.x * WARP_SIZE
    while first < 2 * C:
        i = first + (cuda.threadIdx.x & 31)
        total = chunk_sum(scratch_S, n_chunks, 2 * C, i)
        if cuda.threadIdx.x < WARP_SIZE:
            if i < C:
                grad_weight_C[i] += total
            elif i < 2 * C:
                grad_bias_C[i - C] += total
        first += cuda.gridDim.x * WARP_SIZE


def _packs_of_lane(C: int, *arrays) -> int:
    """Return how many packs a lane needs for its part of a row, or 0 if this step does not take such rows."""
    if n_packs(C, *arrays) * PACK != C:
        return 0
    return next((packs for packs in PACKS if packs * LANE_STRIDE >= C), 0)


@launcher
def layernorm_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps=1e-5, stream=0):
    """Normalise each row of C channels to mean 0 and variance 1, then scale and shift it.

    Reads    inp_NC, weight_C, bias_C: float32 or bfloat16, C-contiguous, on the device.
    Writes   out_NC (=), of the same dtype; mean_N and rstd_N float32 (=).
    Work     about 8*N*C flop, 2*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c llmc/layernorm.cuh @ f1e2ace.
    Book     Chapter 06, step 5.
    """
    a, sizes = take_forward(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C)
    packs = _packs_of_lane(sizes.C, a.out_NC, a.inp_NC, a.weight_C, a.bias_C)
    if not packs:
        return step3_vectorized.layernorm_forward.prepare(out_NC, mean_N, rstd_N, inp_NC, weight_C, bias_C, eps, stream)
    arguments = (a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.weight_C, a.bias_C, float(eps))
    return [Launch(FORWARD[packs].forward, ceil_div(sizes.N, WARPS), BLOCK, arguments, stream)]


@launcher
def residual_layernorm_forward(
    residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C, eps=1e-5, stream=0
):
    """Add what a block gives to the residual stream, and normalise, scale and shift the sum.

    Reads    inp_NC, added_NC, weight_C, bias_C: float32 or bfloat16, C-contiguous, on the device.
    Writes   residual_NC (=), the sum, and out_NC (=), of the same dtype; mean_N and rstd_N float32 (=). `residual_NC`
             may be `inp_NC`.
    Work     about 9*N*C flop, 4*N*C*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_layernorm.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Ba et al. 2016, eq. 3-4 (arXiv:1607.06450); compare llm.c fused_residual_forward5 @ f1e2ace.
    Book     Chapter 06, step 5.
    """
    given = (residual_NC, out_NC, mean_N, rstd_N, inp_NC, added_NC, weight_C, bias_C)
    a, sizes = take_residual_forward(*given)
    packs = _packs_of_lane(sizes.C, a.residual_NC, a.out_NC, a.inp_NC, a.added_NC, a.weight_C, a.bias_C)
    if not packs:
        return step4_fused_residual.residual_layernorm_forward.prepare(*given, eps, stream)
    arguments = (a.residual_NC, a.out_NC, a.mean_N, a.rstd_N, a.inp_NC, a.added_NC, a.weight_C, a.bias_C, float(eps))
    return [Launch(FORWARD[packs].residual, ceil_div(sizes.N, WARPS), BLOCK, arguments, stream)]


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
    Book     Chapter 06, step 5.
    """
    given = (grad_inp_NC, grad_weight_C, grad_bias_C, scratch_S, grad_out_NC, inp_NC, weight_C, mean_N, rstd_N)
    a, sizes = take_backward(*given)
    packs = _packs_of_lane(sizes.C, a.grad_inp_NC, a.grad_out_NC, a.inp_NC, a.weight_C)
    if not packs:
        return step3_vectorized.layernorm_backward.prepare(*given, accumulate, stream)
    chunk_rows = rows_per_chunk(sizes.N, MAX_CHUNKS)
    n_chunks = ceil_div(sizes.N, chunk_rows)
    rows = (a.grad_inp_NC, a.scratch_S, a.grad_out_NC, a.inp_NC, a.weight_C, a.mean_N, a.rstd_N)
    rows += (int(accumulate), chunk_rows)
    columns = (a.grad_weight_C, a.grad_bias_C, a.scratch_S, n_chunks)
    shared_bytes = BACKWARD_WARPS * 2 * packs * LANE_STRIDE * 4
    return [
        Launch(BACKWARD[packs, str(a.inp_NC.dtype)], n_chunks, BACKWARD_BLOCK, rows, stream, shared_bytes),
        Launch(layernorm_finish_kernel, ceil_div(2 * sizes.C, WARP_SIZE), SUM_BLOCK, columns, stream),
    ]
