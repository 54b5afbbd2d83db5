from __future__ import annotations

import numpy as np
import pytest

from kernels import host, reference
from kernels.residual import residual_forward

DTYPES = ["float32", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (13,), (2, 5, 768), (3, 7, 33)])
def test_residual_forward(shape, dtype, run_every_way):
    rng = np.random.default_rng(3)
    inp, added = (host.rounded(rng.standard_normal(shape), dtype) for _ in range(2))
    out = host.to_device(np.zeros(shape), dtype)
    (result,) = run_every_way(
        residual_forward.prepare(out, host.to_device(inp, dtype), host.to_device(added, dtype)), out
    )
    expected = reference.residual_forward(inp, added)
    plain = reference.residual_forward(inp.astype(np.float32), added.astype(np.float32))
    assert host.max_error(result, expected) <= host.error_bound(plain, expected, dtype)


def test_in_place():
    x = host.to_device(np.arange(20), "float32")
    residual_forward(x, x, x)
    np.testing.assert_array_equal(host.values(x), 2 * np.arange(20))
