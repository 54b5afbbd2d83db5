"""Long sums cut into slices: how the gradient of a weight keeps a whole GPU busy.

With 65,536 terms and few outputs there are fewer tiles than places for blocks, or just too many for one round. So the
terms are cut into slices, and a tile and a slice are one piece of work. All pieces of one slice come first, since they
share what they read. Each slice stores its partial sums in memory of its own, and a second kernel adds them to the
output, always in the same order.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda, float32

from kernels.elements import load4, store4
from kernels.host import to_device
from kernels.launch import Launch, ceil_div
from kernels.registry import kernel

BLOCK = 256
MAX_SLICES = 24
STAGES_OF_STORING = 2
"""Storing a tile keeps a block from multiplying for about as long as so many stages."""
STAGES_OF_SUMMING = 0.09
"""Writing and reading a tile of partial sums takes the whole GPU about that part of a stage."""


@kernel("void(float32[::1], float32[::1], int64, int64)", launch_bounds=BLOCK)
def sum_slices_kernel(out, partial, slices, accumulate):
    """A thread owns packs of four outputs."""
    total_4 = cuda.local.array(4, float32)
    x_4 = cuda.local.array(4, float32)
    index = cuda.grid(1) * 4
    while index < out.size:
        for e in range(4):
            total_4[e] = float32(0)
        if accumulate:
            load4(total_4, out, index)
        part = 0
        while part < slices:
            load4(x_4, partial, part * out.size + index)
            for e in range(4):
                total_4[e] += x_4[e]
            part += 1
        store4(out, index, total_4)
        index += cuda.gridsize(1) * 4


def sum_slices(out, partial, slices: int, accumulate: bool, stream: object) -> Launch:
    """Return the launch that sets an output of whole pieces of 16 bytes to the sum of its slices, or adds that."""
    grid = ceil_div(out.size, 4 * BLOCK)
    return Launch(sum_slices_kernel, grid, BLOCK, (out, partial, slices, int(accumulate)), stream)


@functools.cache
def likely_slices(tiles: int, stages: int, places: int) -> list[int]:
    """Return into how many slices sums of so many stages may be cut, by the time that it takes, counted in stages.

    Args:
        tiles: Of the output.
        stages: Of a whole sum.
        places: Blocks that run at the same time.
    """

    def time(slices: int) -> float:
        rounds = ceil_div(tiles * slices, places)
        summing = STAGES_OF_SUMMING * tiles * slices if slices > 1 else 0
        return rounds * (ceil_div(stages, slices) + STAGES_OF_STORING) + summing

    return sorted(range(1, min(MAX_SLICES, stages) + 1), key=time)


_partial_sums: dict[object, object] = {}


def partial_sums(size: int, stream: object):
    """Return memory for partial sums. Launches on one stream run one after the other and share it."""
    if stream not in _partial_sums or _partial_sums[stream].size < size:
        _partial_sums[stream] = to_device(np.zeros(size, np.float32))
    return _partial_sums[stream][:size]
