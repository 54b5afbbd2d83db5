"""Zero, copy and cast: the simplest kernels, and the yardstick of memory bandwidth.

A thread owns packs of eight elements (`elementwise`). The loops step by the size of the grid, so the result does not
depend on the launch.

Letters: N all elements.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load8, store, store8
from kernels.elementwise import BLOCK, grid_of, whole_packs
from kernels.launch import PACK, Launch, launcher, take
from kernels.registry import kernel


@kernel("void(real[::1], int64)", launch_bounds=BLOCK)
def zero_kernel(out_N, whole):
    """A thread owns packs of 8 elements."""
    zero_8 = cuda.local.array(PACK, float32)
    for j in range(PACK):
        zero_8[j] = float32(0)
    i = cuda.grid(1) * PACK
    while i < whole:
        store8(out_N, i, zero_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < out_N.size:
        store(out_N, i, float32(0))
        i += cuda.gridsize(1)


@kernel(
    "void(real[::1], real[::1], int64)",
    "void(float32[::1], uint16[::1], int64)",
    "void(uint16[::1], float32[::1], int64)",
    launch_bounds=BLOCK,
)
def cast_kernel(out_N, inp_N, whole):
    """A thread owns packs of 8 elements."""
    x_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        load8(x_8, inp_N, i)
        store8(out_N, i, x_8)
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < out_N.size:
        store(out_N, i, load(inp_N, i))
        i += cuda.gridsize(1)


@launcher
def zero(out_N, stream=0):
    """Set every element to zero.

    Reads    nothing.
    Writes   out_N (=): float32 or bfloat16, C-contiguous, on the device, any shape.
    Work     N*itemsize bytes: memory-bound.
    Error    none (test_memory.py).
    Raises   ValueError if the dtype is another or the array not contiguous; nothing is launched then.
    Source   CUDA C++ Programming Guide, grid-stride loops.
    Book     Chapter 04.
    """
    arrays, sizes = take(real={"out_N": out_N})
    return [Launch(zero_kernel, grid_of(sizes.N), BLOCK, (arrays.out_N, whole_packs(sizes.N, arrays.out_N)), stream)]


def _cast(arrays, sizes, stream) -> list[Launch]:
    whole = whole_packs(sizes.N, arrays.out_N, arrays.inp_N)
    return [Launch(cast_kernel, grid_of(sizes.N), BLOCK, (arrays.out_N, arrays.inp_N, whole), stream)]


@launcher
def copy(out_N, inp_N, stream=0):
    """Copy the elements.

    Reads    inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_N (=), of the same dtype and size.
    Work     2*N*itemsize bytes: memory-bound; the bandwidth that other kernels are compared with.
    Error    none; a bfloat16 NaN becomes the canonical one (test_memory.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   CUDA C++ Best Practices Guide, coalesced access to global memory.
    Book     Chapter 04.
    """
    return _cast(*take(real={"out_N": out_N, "inp_N": inp_N}), stream)


@launcher
def cast(out_N, inp_N, stream=0):
    """Convert float32 to bfloat16, rounding to nearest even, or bfloat16 to float32, exactly.

    Reads    inp_N: float32 or bfloat16, C-contiguous, on the device, any shape.
    Writes   out_N (=), float32 or bfloat16 of the same size; equal dtypes copy.
    Work     6*N bytes: memory-bound.
    Error    that of one rounding (test_memory.py).
    Raises   ValueError if a size disagrees or a dtype is another; nothing is launched then.
    Source   PTX ISA, cvt.rn.bf16x2.f32; Kalamkar et al. 2019 (arXiv:1905.12322) for bfloat16 in training.
    Book     Chapter 04.
    """
    out, out_size = take(real={"out_N": out_N})
    inp, inp_size = take(real={"inp_N": inp_N})
    if out_size.N != inp_size.N:
        raise ValueError(f"out_N has {out_size.N} elements but inp_N has {inp_size.N}")
    inp.out_N = out.out_N
    return _cast(inp, out_size, stream)
