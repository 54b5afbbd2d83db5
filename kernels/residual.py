"""The residual connection: the sum of the stream and what a block adds to it.

Its backward pass needs no kernel: the gradient of each of the two inputs is the gradient of the sum itself, so the
engine hands the same buffer on and the layer before adds to it (`+=`).

Letters: N all elements.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load_packs, store, store_packs
from kernels.elementwise import BLOCK, OWNED, PACK_STRIDE, PACKS, first_of_thread, grid_of, step_of_grid, whole_packs
from kernels.launch import Launch, launcher, take
from kernels.registry import kernel


@kernel("void(real[::1], real[::1], real[::1], int64)", launch_bounds=BLOCK)
def residual_forward_kernel(out_N, inp_N, added_N, whole):
    """A thread owns two packs of 8 elements at once."""
    x_16 = cuda.local.array(OWNED, float32)
    y_16 = cuda.local.array(OWNED, float32)
    i = first_of_thread()
    while i < whole:
        load_packs(x_16, inp_N, i, PACK_STRIDE, whole, PACKS)
        load_packs(y_16, added_N, i, PACK_STRIDE, whole, PACKS)
        for j in range(OWNED):
            x_16[j] += y_16[j]
        store_packs(out_N, i, PACK_STRIDE, whole, x_16, PACKS)
        i += step_of_grid()
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
