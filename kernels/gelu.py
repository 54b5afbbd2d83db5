"""GELU, the activation of the feed-forward block, with and without the bias of the layer before it.

The tanh form of GPT-2 is computed as 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)), which has no cancellation for negative x and
needs no tanh. A thread owns packs of eight elements and then elements of the odd rest; with a bias, of one row
at a time. Backward recomputes the activation's insides from the input, so nothing is kept for it; and as forward
reads only its input, a training step that keeps no GELU output calls forward again (recompute).

Letters: N rows (or all elements), F features of a row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32

from kernels.elements import load, load8, store, store8
from kernels.launch import PACK, Launch, ceil_div, launcher, n_packs, take
from kernels.ptx import exp2, reciprocal
from kernels.registry import kernel

BLOCK = 256

CUBIC = np.float32(0.044715)
SCALE = np.float32(math.sqrt(2 / math.pi))
TO_EXP2 = np.float32(-2 * math.sqrt(2 / math.pi) * math.log2(math.e))


@cuda.jit(device=True)
def gelu_device(x):
    """x / (1 + exp(-2 u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u_exp2 = TO_EXP2 * x * (float32(1) + CUBIC * x * x)
    return x * reciprocal(float32(1) + exp2(u_exp2))


@cuda.jit(device=True)
def gelu_grad_device(x):
    """The derivative: s + x s (1 - s) 2 du/dx with s = 1 / (1 + exp(-2 u))."""
    square = x * x
    s = reciprocal(float32(1) + exp2(TO_EXP2 * x * (float32(1) + CUBIC * square)))
    slope = float32(2) * SCALE * (float32(1) + float32(3) * CUBIC * square)
    return s + x * s * (float32(1) - s) * slope


@kernel("void(real[::1], real[::1], int64)", launch_bounds=BLOCK)
def gelu_forward_kernel(out_N, inp_N, packs):
    # a thread owns packs of 8 elements, then single elements of the rest
    first = cuda.grid(1)
    stride = cuda.gridsize(1)
    x_8 = cuda.local.array(8, float32)
    for pack in range(first, packs, stride):
        load8(x_8, inp_N, pack * 8)
        for j in range(8):
            x_8[j] = gelu_device(x_8[j])
        store8(out_N, pack * 8, x_8)
    for i in range(packs * 8 + first, inp_N.size, stride):
        store(out_N, i, gelu_device(load(inp_N, i)))


@launcher
def gelu_forward(out_N, inp_N, stream=0):
    """x"""
    arrays, sizes = take(real={"out_N": out_N, "inp_N": inp_N})
    packs = n_packs(sizes.N, arrays.out_N, arrays.inp_N)
    grid = ceil_div(sizes.N, BLOCK * PACK)
    return [Launch(gelu_forward_kernel, grid, BLOCK, (arrays.out_N, arrays.inp_N, packs), stream)]
