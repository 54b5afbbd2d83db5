"""Sums over a whole buffer: the squared norm of the gradients, and the total of the losses.

The buffer is cut into chunks of a fixed number of elements. A block sums one chunk at a time, and a last kernel sums
the chunks, all in a fixed order: the same bits at every run and in every grid. Letters: N all elements, S scratch.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load_packs
from kernels.launch import PACK, Launch, ceil_div, launcher, n_packs, take
from kernels.reduce import block_sum
from kernels.registry import kernel

BLOCK = 256
PACKS = 4  # of a thread
OWNED = PACKS * PACK
PACK_STRIDE = BLOCK * PACK  # elements between the packs of a thread
CHUNK = BLOCK * OWNED
FINISH_BLOCK = 1024


@kernel("void(float32[::1], real[::1], int64, int64)", launch_bounds=BLOCK)
def chunk_sums_kernel(scratch_S, inp_N, squared, whole):
    """A block owns chunks; a thread owns four packs of 8 elements of it, all loaded at once."""
    x_32 = cuda.local.array(OWNED, float32)
    chunk = cuda.blockIdx.x
    while chunk * CHUNK < inp_N.size:
        i = chunk * CHUNK + cuda.threadIdx.x * PACK
        load_packs(x_32, inp_N, i, PACK_STRIDE, whole, PACKS)
        total = float32(0)
        for j in range(OWNED):
            total += x_32[j] * x_32[j] if squared else x_32[j]
        i = max(whole, chunk * CHUNK) + cuda.threadIdx.x
        while i < min(inp_N.size, (chunk + 1) * CHUNK):
            x = load(inp_N, i)
            total += x * x if squared else x
            i += BLOCK
        total = block_sum(total)
        if cuda.threadIdx.x == 0:
            scratch_S[chunk] = total
        chunk += cuda.gridDim.x


@kernel("void(float32[::1], float32[::1], int64, int64)", launch_bounds=FINISH_BLOCK)
def finish_sum_kernel(out_1, scratch_S, n_chunks, accumulate):
    """The first block sums all chunks; others have nothing to do."""
    if cuda.blockIdx.x == 0:
        total = float32(0)
        i = cuda.threadIdx.x
        while i < n_chunks:
            total += scratch_S[i]
            i += FINISH_BLOCK
        total = block_sum(total)
        if cuda.threadIdx.x == 0:
            out_1[0] = total + out_1[0] if accumulate else total


def sum_scratch_size(N: int) -> int:
    """Return the float32 elements that `squared_norm` and `total` need in `scratch_S` for N elements."""
    return ceil_div(N, CHUNK)


def _sum(out_1, scratch_S, inp_N, squared: bool, accumulate: bool, stream) -> list[Launch]:
    arrays, sizes = take(real={"inp_N": inp_N}, float32={"out_1": out_1, "scratch_S": scratch_S})
    n_chunks = sum_scratch_size(sizes.N)
    if sizes.S < n_chunks:
        raise ValueError(f"scratch_S has {sizes.S} elements; {n_chunks} are needed for {sizes.N} elements")
    chunk_arguments = (arrays.scratch_S, arrays.inp_N, int(squared), n_packs(sizes.N, arrays.inp_N) * PACK)
    finish_arguments = (arrays.out_1, arrays.scratch_S, n_chunks, int(accumulate))
    return [
        Launch(chunk_sums_kernel, n_chunks, BLOCK, chunk_arguments, stream),
        Launch(finish_sum_kernel, 1, FINISH_BLOCK, finish_arguments, stream),
    ]


@launcher
def squared_norm(out_1, scratch_S, inp_N, stream=0):
    """Sum the squares of all elements; its root is the norm to which gradients are clipped.

    Reads    inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_1 float32 (=); scratch_S float32 (=), at least `sum_scratch_size(N)`.
    Work     2*N flop, N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_global_norm.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Pascanu et al. 2013, algorithm 1 (arXiv:1211.5063); compare llm.c llmc/global_norm.cuh @ f1e2ace.
    Book     Chapter 08.
    """
    return _sum(out_1, scratch_S, inp_N, squared=True, accumulate=False, stream=stream)


@launcher
def total(out_1, scratch_S, inp_N, accumulate=False, stream=0):
    """Sum all elements.

    Reads    inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_1 float32 (=), or (+=) if `accumulate`; scratch_S float32 (=), at least `sum_scratch_size(N)`.
    Work     N flop, N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_global_norm.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Higham 1993, The accuracy of floating point summation, section 3 (pairwise sums).
    Book     Chapter 08.
    """
    return _sum(out_1, scratch_S, inp_N, squared=False, accumulate=accumulate, stream=stream)
