"""AdamW, step 2: the bfloat16 copy is rounded where the new weight still is in a register.

Letters: N all elements, S tensors, M = S + 1 bounds.
"""

from __future__ import annotations

from numba import cuda

from kernels.adamw import step1_plain
from kernels.adamw.common import (
    adamw_device,
    coefficients,
    mix,
    random_pair_device,
    round_stochastically_device,
    take_update,
    tensor_of_device,
)
from kernels.adamw.step1_plain import COEFFICIENTS
from kernels.elements import store
from kernels.launch import Launch, ceil_div, launcher
from kernels.registry import kernel

BLOCK = 256


@kernel(
    "void(uint16[::1], float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], float32[::1], "
    f"{COEFFICIENTS}, int64)",
    launch_bounds=BLOCK,
)
def adamw_rounding_kernel(
    param_N, master_N, m_N, v_N, grad_N, bounds_M, decay_S,
    learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, key,
):  # fmt: skip
    """A thread owns elements."""
    i = cuda.grid(1)
    while i < master_N.size:
        decay = decay_S[tensor_of_device(bounds_M, i, 0)]
        master, m, v = adamw_device(
            master_N[i], m_N[i], v_N[i], grad_N[i] * grad_scale, decay,
            learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps,
        )  # fmt: skip
        master_N[i], m_N[i], v_N[i] = master, m, v
        random = random_pair_device(i >> 1, key)
        random_16 = (random >> 16 * (i & 1)) & 0xFFFF
        store(param_N, i, round_stochastically_device(master, random_16))
        i += cuda.gridsize(1)


@launcher
def adamw_update(
    param_N,
    master_N,
    m_N,
    v_N,
    grad_N,
    bounds_M,
    decay_S,
    learning_rate,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    grad_scale=1.0,
    step=1,
    seed=0,
    stream=0,
):
    """Update weights and moments of all tensors, and round the weights stochastically into their bfloat16 copy.

    Reads    grad_N float32, multiplied by `grad_scale`; decay_S float32, each tensor's weight decay; bounds_M int64,
             where each tensor starts, from 0, and N; all C-contiguous, on the device.
    Writes   master_N (=), m_N (=), v_N (=): float32, from their old values; param_N bfloat16 (=), may be None.
    Work     about 14*N flop, 30*N bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_adamw.py); the copy is one
             of the two bfloat16 neighbours, in the mean without error.
    Raises   ValueError if a size or dtype disagrees or `step` is below 1; nothing is launched then.
    Source   Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101); compare llm.c llmc/adamw.cuh @ f1e2ace.
    Book     Chapter 08, step 2.
    """
    a, sizes = take_update(param_N, master_N, m_N, v_N, grad_N, bounds_M, decay_S)
    grid = ceil_div(sizes.N, BLOCK)
    numbers = coefficients(learning_rate, beta1, beta2, eps, grad_scale, step)
    arrays = (a.master_N, a.m_N, a.v_N, a.grad_N, a.bounds_M, a.decay_S)
    if a.param_N is None:
        return [Launch(step1_plain.adamw_kernel, grid, BLOCK, (*arrays, *numbers), stream)]
    return [Launch(adamw_rounding_kernel, grid, BLOCK, (a.param_N, *arrays, *numbers, mix(seed)), stream)]
