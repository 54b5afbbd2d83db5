from __future__ import annotations

import numpy as np
import pytest

from kernels import host, reference
from kernels.global_norm import CHUNK, squared_norm, sum_scratch_size, total

DTYPES = ["float32", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 13, 2 * CHUNK + 77])
def test_sums(n, dtype, run_every_way):
    x = host.rounded(np.random.default_rng(n).standard_normal(n) + 0.1, dtype)
    inp, scratch = host.to_device(x, dtype), host.to_device(np.zeros(sum_scratch_size(n)), "float32")
    out = host.to_device(np.full(1, 5.0), "float32")
    (result,) = run_every_way(squared_norm.prepare(out, scratch, inp), out)
    expected, plain = reference.squared_norm(x), reference.squared_norm(x.astype(np.float32))
    assert host.max_error(result, expected) <= host.error_bound(plain, expected, "float32")

    wanted, yardstick, scale = x.sum(), x.astype(np.float32).sum(), np.abs(x).sum()
    (result,) = run_every_way(total.prepare(out, scratch, inp), out)
    bound = max(2 * abs(yardstick - wanted), 4 * host.EPSILON["float32"] * scale)  # the terms cancel
    assert host.max_error(result, wanted) <= bound
    (added,) = run_every_way(total.prepare(out, scratch, inp, accumulate=True), out)
    np.testing.assert_allclose(added, 2 * result, rtol=1e-6)


def test_one_output_of_many(run_every_way):
    outs = host.to_device(np.zeros(3), "float32")
    scratch, inp = host.to_device(np.zeros(1), "float32"), host.to_device(np.full(10, 2.0), "float32")
    squared_norm(outs[1:2], scratch, inp)
    np.testing.assert_array_equal(host.values(outs), [0, 40, 0])


def test_scratch_too_small():
    x = host.to_device(np.zeros(CHUNK + 1), "float32")
    with pytest.raises(ValueError, match="scratch_S has 1 elements; 2 are needed"):
        squared_norm(x[:1], x[:1], x)
