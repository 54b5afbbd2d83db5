"""The kernels that only the book shows compute what it says, and fail as it says."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.lessons import first_kernels as lessons
from kernels.lessons.tensor_core import tensor_core_kernel
from kernels.simulator import DivergenceError, OutOfBoundsError, reversed_order

needs_simulator = pytest.mark.skipif(not SIMULATED, reason="a GPU does not report this")


def run(kernel, grid, block, n, *inputs):
    out = host.to_device(np.full(n, np.nan, np.float32))
    kernel[grid, block](out, *(host.to_device(x) if isinstance(x, np.ndarray) else x for x in inputs))
    return host.to_host(out)


def numbers(n):
    return np.arange(n, dtype=np.float32) - 7


@pytest.mark.parametrize("n, grid, block", [(1, 1, 32), (10, 3, 4), (1000, 4, 256), (31, 2, 33)])
def test_add(n, grid, block):
    expected = numbers(n) + 3 * numbers(n)
    np.testing.assert_array_equal(run(lessons.add_kernel, grid, block, n, numbers(n), 3 * numbers(n)), expected)


@pytest.mark.parametrize("n", [1, 100, 257])
def test_copies(n):
    np.testing.assert_array_equal(run(lessons.copy_runs_kernel, 3, 32, n, numbers(n), 3), numbers(n))
    np.testing.assert_array_equal(run(lessons.copy_strided_kernel, 3, 32, n, numbers(n)), numbers(n))


def test_reverse():
    x = numbers(3 * lessons.BLOCK)
    expected = x.reshape(3, -1)[:, ::-1].ravel()
    np.testing.assert_array_equal(run(lessons.reverse_kernel, 3, lessons.BLOCK, x.size, x), expected)
    with reversed_order():
        np.testing.assert_array_equal(run(lessons.reverse_kernel, 3, lessons.BLOCK, x.size, x), expected)


@needs_simulator
def test_mistakes_are_reported():
    with pytest.raises(OutOfBoundsError, match="index 10 is outside"):
        run(lessons.add_unguarded_kernel, 3, 4, 10, numbers(10), numbers(10))
    x = numbers(lessons.BLOCK)
    with pytest.raises(DivergenceError, match="32 threads .0-31. at syncthreads"):
        run(lessons.reverse_diverging_kernel, 1, lessons.BLOCK, x.size, x)
    out = run(lessons.reverse_without_barrier_kernel, 1, lessons.BLOCK, x.size, x)
    assert np.isnan(out[: x.size // 2]).all()
    np.testing.assert_array_equal(out[x.size // 2 :], x[: x.size // 2][::-1])


def test_one_tensor_core_product():
    rng = np.random.default_rng(3)
    a, b = (host.rounded(rng.normal(size=shape), "bfloat16") for shape in ((16, 16), (16, 8)))
    out = host.to_device(np.full(128, np.nan, np.float32))
    tensor_core_kernel[1, 32](out, host.to_device(a.ravel(), "bfloat16"), host.to_device(b.ravel(), "bfloat16"))
    assert host.max_error(host.values(out).reshape(16, 8), a @ b) < 1e-5
