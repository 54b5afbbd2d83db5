"""The residual connection: the sum of the stream and what a block adds to it.

Its backward pass needs no kernel: the gradient of each of the two inputs is the gradient of the sum itself, so the
engine hands the same buffer on and the layer before adds to it (`+=`).

Letters: N all elements.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load8, store, store8
from kernels.elementwise import BLOCK, grid_of, whole_packs
from kernels.launch import PACK, Launch, launcher, take
from kernels.registry import kernel


@kernel("void(real[::1], real[::1], real[::1], int64)", launch_bounds=BLOCK)
def residual_forward_kernel(out_N, inp_N, added_N, whole):
    """A thread owns packs of 8 elements."""
    x_8 = cuda.local.array(PACK, float32)
    y_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        load8(x_8, inp_N, i)
        load8(y_8, added_N, i)
        for j in range(PACK):
            x_8[j] += y_8[j]
        store8(out_N, i, x_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < out_N.size:
        store(out_N, i, load(inp_N, i) + load(added_N, i))
        i += cuda.gridsize(1)


@launcher
def residual_forward(out_N, inp_N, added_N, stream=0):
    """Add two arrays element by element. `out_N` may be one of the inputs.

    Reads    inp_N, added_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_N (=), of the same dtype and size.
    Work     N flop, 3*N*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_residual.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   He et al. 2015, eq. 1 (arXiv:1512.03385); compare llm.c residual_forward @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(real={"out_N": out_N, "inp_N": inp_N, "added_N": added_N})
    whole = whole_packs(sizes.N, arrays.out_N, arrays.inp_N, arrays.added_N)
    arguments = (arrays.out_N, arrays.inp_N, arrays.added_N, whole)
    return [Launch(residual_forward_kernel, grid_of(sizes.N), BLOCK, arguments, stream)]
