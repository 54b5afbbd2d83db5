"""The kernels of chapter 04 that are simpler, or more wrong, than those of a training step.

Letters: N all elements; b the elements of one block.
"""

from __future__ import annotations

from numba import cuda, float32

BLOCK = 64
"""Threads a block of the kernels that share memory; N must be a multiple of it."""


@cuda.jit
def add_kernel(out_N, inp_N, added_N):
    """A thread owns one element."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i < out_N.size:
        out_N[i] = inp_N[i] + added_N[i]


@cuda.jit
def add_unguarded_kernel(out_N, inp_N, added_N):
    """A thread owns one element. Wrong: nobody asks whether there is such an element."""
    i = cuda.grid(1)
    out_N[i] = inp_N[i] + added_N[i]


@cuda.jit
def copy_runs_kernel(out_N, inp_N, run):
    """A thread owns a run of neighbouring elements. Right, but slow."""
    start = cuda.grid(1) * run
    for j in range(run):
        if start + j < out_N.size:
            out_N[start + j] = inp_N[start + j]


@cuda.jit
def copy_strided_kernel(out_N, inp_N):
    """A thread owns every n-th element, of n threads in all."""
    i = cuda.grid(1)
    while i < out_N.size:
        out_N[i] = inp_N[i]
        i += cuda.gridsize(1)


@cuda.jit
def reverse_kernel(out_N, inp_N):
    """A block owns 64 elements and writes them in reverse order."""
    tile_b = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile_b[t] = inp_N[i]
    cuda.syncthreads()  # all are in before any is taken out
    out_N[i] = tile_b[BLOCK - 1 - t]


@cuda.jit
def reverse_without_barrier_kernel(out_N, inp_N):
    """The same. Wrong: a thread may take out what its partner has not yet put in."""
    tile_b = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile_b[t] = inp_N[i]
    out_N[i] = tile_b[BLOCK - 1 - t]


@cuda.jit
def reverse_diverging_kernel(out_N, inp_N):
    """The same. Wrong: half of the block waits at another barrier."""
    tile_b = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    tile_b[t] = inp_N[i]
    if t < BLOCK // 2:
        cuda.syncthreads()
    else:
        tile_b[t] *= float32(2)
        cuda.syncthreads()
    out_N[i] = tile_b[BLOCK - 1 - t]
