"""What the kernels share that treat every element of a flat array alike.

A thread owns a pack of eight elements at a time. Memory answers after about a microsecond, so enough loads must be
under way at any time: there are as many threads as packs, and a multiprocessor runs 2,048 of them at once. Elements
after the last whole pack, or all if an array is not aligned to 16 bytes, are handled one by one:

    x_8 = cuda.local.array(PACK, float32)
    i = cuda.grid(1) * PACK
    while i < whole:
        load8(x_8, inp_N, i)
        ...
        i += cuda.gridsize(1) * PACK
    i = whole + cuda.grid(1)
    while i < out_N.size:
        ...
        i += cuda.gridsize(1)
"""

from __future__ import annotations

from kernels.launch import PACK, ceil_div, n_packs

BLOCK = 512


def grid_of(N: int) -> int:
    """Return how many blocks share N elements."""
    return ceil_div(N, BLOCK * PACK)


def whole_packs(N: int, *arrays) -> int:
    """Return how many of N elements lie in whole packs that can be moved with 128-bit accesses."""
    return n_packs(N, *arrays) * PACK
