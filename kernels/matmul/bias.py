"""The gradient of a linear layer's bias: the sum of the output's gradient over the rows, without atomics.

The rows are cut into chunks whose number depends on M alone; a block sums 256 columns of a chunk, and a second kernel
sums the chunks. Letters: M rows, N output features, S scratch.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load_packs
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.reduce import SUM_BLOCK, chunk_sum
from kernels.registry import kernel

BLOCK = 256
WARPS = BLOCK // WARP_SIZE
TILE = WARP_SIZE * PACK  # columns of a block
PARTIALS = WARPS * TILE
ROWS = 4  # of a warp under way at once
OWNED = ROWS * PACK
MAX_CHUNKS = 128
MIN_ROWS = 4 * WARPS  # of a chunk


@cuda.jit(device=True)
def add_rows_device(sum_8, grad_out_X, N, m, end, c, whole):
    """Add columns c to c + 7 of every 8th row from m on, before row `end`, to the sums."""
    x_32 = cuda.local.array(OWNED, float32)
    if c < whole:
        at = m * N + c
        while at < end * N:
            load_packs(x_32, grad_out_X, at, WARPS * N, end * N, ROWS)
            for row in range(ROWS):
                for j in range(PACK):
                    sum_8[j] += x_32[row * PACK + j]
            at += ROWS * WARPS * N
    else:
        while m < end:
            for j in range(PACK):
                if c + j < N:
                    sum_8[j] += load(grad_out_X, m * N + c + j)
            m += WARPS


@kernel("void(float32[::1], real[::1], int64, int64, int64)", launch_bounds=BLOCK)
def chunk_column_sums_kernel(scratch_S, grad_out_X, N, chunk_rows, whole):
    """A block owns 256 columns of a chunk at a time; its 8 warps share the rows, a lane owns a pack of 8 columns."""
    partial = cuda.shared.array(PARTIALS, float32)
    sum_8 = cuda.local.array(PACK, float32)
    lane, warp = cuda.threadIdx.x & 31, cuda.threadIdx.x >> 5
    M = grad_out_X.size // N
    n_tiles = (N + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < (M + chunk_rows - 1) // chunk_rows * n_tiles:
        chunk, first = item // n_tiles, item % n_tiles * TILE
        for j in range(PACK):
            sum_8[j] = float32(0)
        m, end = chunk * chunk_rows + warp, min(M, (chunk + 1) * chunk_rows)
        add_rows_device(sum_8, grad_out_X, N, m, end, first + lane * PACK, whole)
        for j in range(PACK):
            partial[warp * TILE + j * WARP_SIZE + lane] = sum_8[j]  # lanes side by side: no bank conflict
        cuda.syncthreads()  # all warps have written their sums
        n = first + cuda.threadIdx.x
        if n < N:
            total = float32(0)
            where = (cuda.threadIdx.x & 7) * WARP_SIZE + (cuda.threadIdx.x >> 3)
            for w in range(WARPS):
                total += partial[w * TILE + where]
            scratch_S[chunk * N + n] = total
        cuda.syncthreads()  # the sums have been read: the next item may overwrite them
        item += cuda.gridDim.x


@kernel("void(float32[::1], float32[::1], int64)", launch_bounds=SUM_BLOCK)
def finish_column_sums_kernel(grad_bias_N, scratch_S, n_chunks):
    """A block owns 32 columns at a time, one a lane; its 8 warps share the chunks."""
    first = cuda.blockIdx.x * WARP_SIZE
    while first < grad_bias_N.size:
        n = first + (cuda.threadIdx.x & 31)
        total = chunk_sum(scratch_S, n_chunks, grad_bias_N.size, n)
        if cuda.threadIdx.x < WARP_SIZE and n < grad_bias_N.size:
            grad_bias_N[n] += total
        first += cuda.gridDim.x * WARP_SIZE


def _rows_per_chunk(M: int) -> int:
    return max(MIN_ROWS, ceil_div(M, MAX_CHUNKS))


def bias_scratch_size(M: int, N: int) -> int:
    """Return the float32 elements that the gradient of the bias needs in `scratch_S`."""
    return ceil_div(M, _rows_per_chunk(M)) * N


def check_scratch(scratch_S, M: int, N: int) -> None:
    """Check that there is enough scratch memory for the gradient of a bias.

    Raises:
        ValueError: It is too small.
    """
    if scratch_S.size < bias_scratch_size(M, N):
        raise ValueError(f"scratch_S has {scratch_S.size} elements; {bias_scratch_size(M, N)} are needed for {M} x {N}")


def finish_column_sums(grad_bias_N, scratch_S, n_chunks: int, stream: object) -> Launch:
    """Return the launch that adds the sums of the chunks, rows of N in the scratch memory, to the gradient."""
    grid = ceil_div(grad_bias_N.size, WARP_SIZE)
    return Launch(finish_column_sums_kernel, grid, SUM_BLOCK, (grad_bias_N, scratch_S, n_chunks), stream)


@launcher
def matmul_grad_bias(grad_bias_N, scratch_S, grad_out_MN, stream=0):
    """Add the gradient of the bias of a linear layer.

    Reads    grad_out_MN: float32 or bfloat16, C-contiguous, on the device.
    Writes   grad_bias_N float32 (+=); scratch_S float32 (=), at least `bias_scratch_size(M, N)`.
    Work     M*N flop, M*N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_matmul.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   the transpose of adding one bias to every row; compare llm.c matmul_backward_bias_kernel9 @ f1e2ace.
    Book     Chapter 05.
    """
    arrays, sizes = take(
        real={"grad_out_MN": grad_out_MN}, float32={"grad_bias_N": grad_bias_N, "scratch_S": scratch_S}
    )
    M, N = sizes.M, sizes.N
    check_scratch(arrays.scratch_S, M, N)
    chunk_rows = _rows_per_chunk(M)
    n_chunks = ceil_div(M, chunk_rows)
    whole = n_packs(N, arrays.grad_out_MN) * PACK
    sums = (arrays.scratch_S, arrays.grad_out_MN.reshape(M * N), N, chunk_rows, whole)
    return [
        Launch(chunk_column_sums_kernel, n_chunks * ceil_div(N, TILE), BLOCK, sums, stream),
        finish_column_sums(arrays.grad_bias_N, arrays.scratch_S, n_chunks, stream),
    ]
