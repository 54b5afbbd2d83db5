from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.elements import load, load4, load8, store, store4, store8

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
