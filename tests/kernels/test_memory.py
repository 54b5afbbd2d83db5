from __future__ import annotations

import numpy as np
import pytest

from kernels import host
from kernels.memory import cast, copy, zero

DTYPES = ["float32", "bfloat16"]
SIZES = [1, 7, 8, 1003, 5000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_zero(n, dtype, run_every_way):
    out = host.to_device(np.ones(n + 1), dtype)[:n]
    (result,) = run_every_way(zero.prepare(out), out)
    assert not result.any()


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("inp_dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_cast(n, inp_dtype, out_dtype, run_every_way):
    x = np.random.default_rng(n).standard_normal(n)
    out, inp = host.to_device(np.ones(n), out_dtype), host.to_device(x, inp_dtype)
    (result,) = run_every_way(cast.prepare(out, inp), out)
    np.testing.assert_array_equal(result, host.rounded(host.rounded(x, inp_dtype), out_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_of_any_shape_and_of_a_misaligned_view(dtype, run_every_way):
    x = np.random.default_rng(0).standard_normal((3, 7, 5))
    out, inp = host.to_device(np.zeros_like(x), dtype), host.to_device(x, dtype)
    (result,) = run_every_way(copy.prepare(out, inp), out)
    np.testing.assert_array_equal(result, host.rounded(x, dtype))
    out, inp = host.to_device(np.zeros(40), dtype)[3:], host.to_device(np.arange(40), dtype)[3:]
    (result,) = run_every_way(copy.prepare(out, inp), out)
    np.testing.assert_array_equal(result, np.arange(3, 40))


def test_refusals():
    ones, halves = host.to_device(np.ones(4), "float32"), host.to_device(np.ones(4), "bfloat16")
    with pytest.raises(ValueError, match="must be the same"):
        copy(ones, halves)
    with pytest.raises(ValueError, match="out_N has 4 elements but inp_N has 3"):
        cast(ones, halves[:3])
