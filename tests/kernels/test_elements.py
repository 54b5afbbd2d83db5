from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.elements import (
    as_held,
    load,
    load4,
    load8,
    load8_shared,
    load_packs,
    store,
    store4,
    store8,
    store_packs,
)

from numba import cuda, float32  # isort: skip

RNG = np.random.default_rng(2)


@cuda.jit
def move_kernel(out_N, inp_N):
    x_8 = cuda.local.array(8, float32)
    x_4 = cuda.local.array(4, float32)
    load8(x_8, inp_N, 8)
    store8(out_N, 8, x_8)
    load4(x_4, inp_N, 20)
    store4(out_N, 20, x_4)
    store(out_N, 3, load(inp_N, 3) + float32(1))


@pytest.mark.parametrize(
    ("out_dtype", "inp_dtype"), [("float32",) * 2, ("bfloat16",) * 2, ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_elements_widen_and_round(out_dtype, inp_dtype):
    x = RNG.standard_normal(32) * 10.0 ** RNG.integers(-30, 30, 32)
    x[3] = 0.3
    inp, out = host.to_device(x, inp_dtype), host.to_device(np.zeros(32), out_dtype)
    move_kernel[1, 1](out, inp)
    held = host.rounded(x, inp_dtype)
    expected = np.zeros(32)
    expected[8:16], expected[20:24] = held[8:16], held[20:24]
    expected[3] = np.float32(held[3]) + np.float32(1)
    np.testing.assert_array_equal(host.values(out), host.rounded(expected, out_dtype))


COUNT = 3


@cuda.jit
def move_strided_kernel(out_N, inp_N, limit):
    x_24 = cuda.local.array(24, float32)
    load_packs(x_24, inp_N, 8, 16, limit, COUNT)
    store_packs(out_N, 8, 16, limit, x_24, COUNT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_moved", [0, 1, 2, 3])
def test_strided_moves_stop_at_the_limit(n_moved, dtype):
    x = host.rounded(RNG.standard_normal(48), dtype)
    limit = 8 + 16 * (n_moved - 1) + 1  # the packs that begin below it, and no other, are moved whole
    length = max(limit + 7, 1)  # what follows is no memory of the array
    out = host.to_device(np.zeros(48), dtype)
    move_strided_kernel[1, 1](out[:length], host.to_device(x, dtype)[:length], limit)
    expected = np.zeros(48)
    for start in 8 + 16 * np.arange(n_moved):
        expected[start : start + 8] = x[start : start + 8]
    np.testing.assert_array_equal(host.values(out), expected)


@cuda.jit
def zeros_past_limit_kernel(out_N, inp_N):
    x_24 = cuda.local.array(24, float32)
    load_packs(x_24, inp_N, 0, 8, 9, COUNT)
    store_packs(out_N, 0, 8, 24, x_24, COUNT)


def test_packs_past_the_limit_are_loaded_as_zeros():
    out = host.to_device(np.ones(24), "float32")
    zeros_past_limit_kernel[1, 1](out, host.to_device(np.ones(16), "bfloat16"))
    np.testing.assert_array_equal(host.values(out), np.repeat([1, 1, 0], 8))


@cuda.jit
def held_kernel(out_N, like_N, x_N):
    shared = cuda.shared.array(8, float32, 16)
    x_8 = cuda.local.array(8, float32)
    for j in range(8):
        shared[j] = as_held(like_N, x_N[j])
    load8_shared(x_8, shared, 0)
    store8(out_N, 0, x_8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_held_rounds_as_a_store_does_and_shared_memory_is_read_in_packs(dtype):
    x = RNG.standard_normal(8)
    out = host.to_device(np.zeros(8), "float32")
    held_kernel[1, 1](out, host.to_device(np.zeros(8), dtype), host.to_device(x, "float32"))
    np.testing.assert_array_equal(host.values(out), host.rounded(x, dtype))


def test_host_rounding_is_to_the_nearest_even():
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-20], np.float32)
    np.testing.assert_array_equal(host.rounded(ties, "bfloat16"), [1, 1 + 2.0**-6, -1, 1 + 2.0**-7])


@pytest.mark.skipif(not SIMULATED, reason="a GPU would fail the launch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_misaligned_and_out_of_bounds(dtype):
    from kernels.simulator import MisalignedError, OutOfBoundsError

    with pytest.raises(MisalignedError):
        move_kernel[1, 1](host.to_device(np.zeros(33), dtype)[1:], host.to_device(np.zeros(32), dtype))
    with pytest.raises(OutOfBoundsError):
        move_kernel[1, 1](host.to_device(np.zeros(23), dtype), host.to_device(np.zeros(32), dtype))
