"""AdamW, step 3: 128-bit accesses. One launch updates all tensors of the flat buffer.

A thread finds the tensor of its pack once; only a pack that straddles two tensors looks further. Letters: N all
elements, S tensors, M = S + 1 bounds.
"""

from __future__ import annotations

from numba import cuda, float32

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
from kernels.elements import load_pack, n_packs_of, store_pack
from kernels.launch import PACK, Launch, ceil_div, launcher, n_packs
from kernels.registry import kernel

BLOCK = 256


@cuda.jit(device=True)
def adamw_pack_device(
    master_8, m_8, v_8, grad_8, master_N, m_N, v_N, grad_N, bounds_M, decay_S,
    learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, pack, packs,
):  # fmt: skip
    """Update the elements of one pack; the new weights stay in `master_8`."""
    load_pack(master_8, master_N, pack, packs)
    load_pack(m_8, m_N, pack, packs)
    load_pack(v_8, v_N, pack, packs)
    load_pack(grad_8, grad_N, pack, packs)
    first = tensor_of_device(bounds_M, pack * 8, 0)
    for j in range(8):
        i = min(pack * 8 + j, master_N.size - 1)  # past the end there is nothing to look up
        s = first if i < bounds_M[first + 1] else tensor_of_device(bounds_M, i, first)
        master_8[j], m_8[j], v_8[j] = adamw_device(
            master_8[j], m_8[j], v_8[j], grad_8[j] * grad_scale, decay_S[s],
            learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps,
        )  # fmt: skip
    store_pack(master_N, pack, packs, master_8)
    store_pack(m_N, pack, packs, m_8)
    store_pack(v_N, pack, packs, v_8)


@kernel(
    f"void(float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], float32[::1], {COEFFICIENTS}, int64)",
    launch_bounds=BLOCK,
)
def adamw_kernel(
    master_N, m_N, v_N, grad_N, bounds_M, decay_S,
    learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, packs,
):  # fmt: skip
    """A thread owns packs of 8 elements."""
    master_8 = cuda.local.array(8, float32)
    m_8 = cuda.local.array(8, float32)
    v_8 = cuda.local.array(8, float32)
    grad_8 = cuda.local.array(8, float32)
    pack = cuda.grid(1)
    while pack < n_packs_of(master_N):
        adamw_pack_device(
            master_8, m_8, v_8, grad_8, master_N, m_N, v_N, grad_N, bounds_M, decay_S,
            learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, pack, packs,
        )  # fmt: skip
        pack += cuda.gridsize(1)


@kernel(
    "void(uint16[::1], float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], float32[::1], "
    f"{COEFFICIENTS}, int64, int64)",
    launch_bounds=BLOCK,
)
def adamw_rounding_kernel(
    param_N, master_N, m_N, v_N, grad_N, bounds_M, decay_S,
    learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, key, packs,
):  # fmt: skip
    """A thread owns packs of 8 elements."""
    master_8 = cuda.local.array(8, float32)
    m_8 = cuda.local.array(8, float32)
    v_8 = cuda.local.array(8, float32)
    grad_8 = cuda.local.array(8, float32)
    pack = cuda.grid(1)
    while pack < n_packs_of(master_N):
        adamw_pack_device(
            master_8, m_8, v_8, grad_8, master_N, m_N, v_N, grad_N, bounds_M, decay_S,
            learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, grad_scale, pack, packs,
        )  # fmt: skip
        for pair in range(4):
            random = random_pair_device(pack * 4 + pair, key)
            master_8[2 * pair] = round_stochastically_device(master_8[2 * pair], random & 0xFFFF)
            master_8[2 * pair + 1] = round_stochastically_device(master_8[2 * pair + 1], random >> 16)
        store_pack(param_N, pack, packs, master_8)
        pack += cuda.gridsize(1)


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
    Book     Chapter 08, step 3.
    """
    a, sizes = take_update(param_N, master_N, m_N, v_N, grad_N, bounds_M, decay_S)
    grid = ceil_div(sizes.N, BLOCK * PACK)
    numbers = coefficients(learning_rate, beta1, beta2, eps, grad_scale, step)
    arrays = (a.master_N, a.m_N, a.v_N, a.grad_N, a.bounds_M, a.decay_S)
    packs = n_packs(sizes.N, a.master_N, a.m_N, a.v_N, a.grad_N)
    if a.param_N is None:
        return [Launch(adamw_kernel, grid, BLOCK, (*arrays, *numbers, packs), stream)]
    packs = min(packs, n_packs(sizes.N, a.param_N))
    return [Launch(adamw_rounding_kernel, grid, BLOCK, (a.param_N, *arrays, *numbers, mix(seed), packs), stream)]
