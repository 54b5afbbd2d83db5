"""What the kernels share that treat every element of a flat array alike.

Memory answers after about a microsecond, so enough loads must be under way at any time: a thread owns two packs of
eight elements at once, a block's length apart, and loads both before it uses the first. Elements after the last
whole pack, or all if an array is not aligned to 16 bytes, are handled one by one:

    x_16 = cuda.local.array(OWNED, float32)
    i = first_of_thread()
    while i < whole:
        load_packs(x_16, inp_N, i, PACK_STRIDE, whole, PACKS)
        ...
        i += step_of_grid()
    i = whole + cuda.grid(1)
    while i < out_N.size:
        ...
        i += cuda.gridsize(1)
"""

from __future__ import annotations

from numba import cuda

from kernels.launch import PACK, ceil_div, n_packs

BLOCK = 256
PACKS = 2  # that a thread owns at once
OWNED = PACKS * PACK  # elements of these packs
PACK_STRIDE = BLOCK * PACK  # elements between the packs of a thread
TILE = BLOCK * OWNED  # elements of a block


@cuda.jit(device=True)
def first_of_thread():
    """Return the first element of this thread's first pack."""
    return cuda.blockIdx.x * TILE + cuda.threadIdx.x * PACK


@cuda.jit(device=True)
def step_of_grid():
    """Return how many elements the whole grid handles at once."""
    return cuda.gridDim.x * TILE


def grid_of(N: int) -> int:
    """Return how many blocks share N elements."""
    return ceil_div(N, TILE)


def whole_packs(N: int, *arrays) -> int:
    """Return how many of N elements lie in whole packs that can be moved with 128-bit accesses."""
    return n_packs(N, *arrays) * PACK
