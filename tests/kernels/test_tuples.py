"""Operations on tuples of registers, in the simulator or on the GPU."""

from __future__ import annotations

import numpy as np
from numba import cuda, float32

from kernels.tuples import each, each_four, each_pair, fold, lower_row, upper_row

VALUES = np.arange(1, 9, dtype=np.float32)


@cuda.jit(device=True)
def scaled(i, x, y, factor):
    return x * factor + y if i & 2 else x


@cuda.jit(device=True)
def difference(i, pair, offset):
    return pair[1] - pair[0] * offset


@cuda.jit(device=True)
def swapped(i, four, halves):
    return four[2] + halves[0], four[3] + halves[1], four[0], four[1]


@cuda.jit(device=True)
def subtract(a, b):
    return a - b


@cuda.jit
def all_kernel(out, inp):
    values = (inp[0], inp[1], inp[2], inp[3], inp[4], inp[5], inp[6], inp[7])
    results = each(scaled, (values, values, float32(10)))
    pairs = each_pair(difference, (values, float32(2)))
    fours = each_four(swapped, (values, pairs))
    for i in range(8):
        out[i] = results[i]
        out[8 + i] = fours[i]
    for i in range(4):
        out[16 + i] = pairs[i]
        out[20 + i] = upper_row(values)[i]
        out[24 + i] = lower_row(values)[i]
    out[28] = fold(subtract, values, float32(100))


def test_each_element_pair_and_four():
    out = np.zeros(29, np.float32)
    all_kernel[1, 1](out, VALUES)
    pairs = [0, -2, -4, -6]
    assert out[:8].tolist() == [1, 2, 33, 44, 5, 6, 77, 88]
    assert out[8:16].tolist() == [3 + pairs[0], 4 + pairs[1], 1, 2, 7 + pairs[2], 8 + pairs[3], 5, 6]
    assert out[16:20].tolist() == pairs
    assert out[20:24].tolist() == [1, 2, 5, 6]
    assert out[24:28].tolist() == [3, 4, 7, 8]


def test_fold_takes_two_chains():
    out = np.zeros(29, np.float32)
    all_kernel[1, 1](out, VALUES)
    even, odd = 1 - 3 - 5 - 7, 2 - 4 - 6 - 8
    assert out[28] == 100 - (even - odd)
