"""What the steps of AdamW share: the arithmetic of one element, stochastic rounding, and the launcher's checks.

Stochastic rounding takes one of the two bfloat16 beside a float32, the nearer one more often, so that its mean is
the float32: updates much smaller than a bfloat16 step are not lost. The random bits are a hash of the element's number
and a seed, so they depend neither on the grid nor on the order of the threads.
"""

from __future__ import annotations

import math

from numba import cuda

from kernels.launch import take
from kernels.ptx import bits_float, float_bits

WORD = 0xFFFFFFFF


def mix(x: int) -> int:
    """Hash 32 bits to 32 bits: C. Wellons' lowbias32 (2018, "Prospecting for hash functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


mix_device = cuda.jit(device=True)(mix)


@cuda.jit(device=True)
def random_pair_device(pair, key):
    """Return the 32 random bits of elements 2 * pair (the low 16) and 2 * pair + 1 (the high 16)."""
    return mix_device(mix_device(pair & WORD) ^ key)


@cuda.jit(device=True)
def round_stochastically_device(x, random_16):
    """Return x, or the bfloat16 number just beyond or before it; 16 random bits decide. NaN and infinity stay."""
    bits = float_bits(x)
    if bits & 0x7F800000 != 0x7F800000:
        bits = (bits + random_16) & WORD
    return bits_float(bits & 0xFFFF0000)


@cuda.jit(device=True)
def tensor_of_device(bounds_M, i, first):
    """Return which tensor element i belongs to, looking from tensor `first` on."""
    s = first
    while bounds_M[s + 1] <= i:
        s += 1
    return s


@cuda.jit(device=True)
def adamw_device(master, m, v, grad, decay, learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps):
    """Return the new weight and moments of one element; rest is 1 - beta, correction 1 / (1 - beta^step)."""
    m = beta1 * m + rest1 * grad
    v = beta2 * v + rest2 * grad * grad
    change = m * correction1 / (math.sqrt(v * correction2) + eps) + decay * master
    return master - learning_rate * change, m, v


def take_update(param_N, master_N, m_N, v_N, grad_N, bounds_M, decay_S):
    """Take the arrays of an update, and their sizes.

    Raises:
        ValueError: an array does not fit.
    """
    arrays, sizes = take(
        uint16={"param_N": param_N},
        float32={"master_N": master_N, "m_N": m_N, "v_N": v_N, "grad_N": grad_N, "decay_S": decay_S},
        int64={"bounds_M": bounds_M},
    )
    if sizes.M != sizes.S + 1:
        raise ValueError(f"{sizes.S} tensors in decay_S need {sizes.S + 1} bounds_M, not {sizes.M}")
    return arrays, sizes


def coefficients(
    learning_rate: float, beta1: float, beta2: float, eps: float, grad_scale: float, step: int
) -> tuple[float, ...]:
    """Return the numbers that the kernels take, computed in float64 on the host.

    Raises:
        ValueError: `step` does not count from 1.
    """
    if step < 1:
        raise ValueError(f"step is {step}; it counts from 1")
    corrections = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    return tuple(map(float, (learning_rate, beta1, beta2, 1 - beta1, 1 - beta2, *corrections, eps, grad_scale)))
