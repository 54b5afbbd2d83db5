"""A linear layer for one row, with the layernorm before it and what comes after it in the same kernel."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels import reference as pointwise
from kernels.layernorm import reference as layernorm
from kernels.matmul.vector import TILE, matmul_vector

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 8), (5, 16), (19, TILE), (3, TILE + 8), (5, 4 * TILE)]  # N, K: one tile in part, one, two, four
ON_A_GPU = [(2304, 768), (768, 3072), (50304, 768), (1280, 5120), (4099, 1600)]
ALL_SHAPES = SHAPES + ([] if SIMULATED else ON_A_GPU)


def case(N, K, dtype):
    rng = np.random.default_rng(N + K)
    inputs = {"inp": (K, 2.0, 1.0), "weight": ((N, K), K**-0.5, 0.0), "bias": (N, 1.0, 0.0)}
    inputs |= {"norm_weight": (K, 1.0, 1.0), "norm_bias": (K, 1.0, 0.0), "residual": (N, 1.0, 0.0)}
    return {
        name: host.rounded(scale * rng.standard_normal(shape) + shift, dtype)
        for name, (shape, scale, shift) in inputs.items()
    }


def layer(x, norm, gelu, residual, kind, dtype=None):
    """The formula in one type, with `dtype` rounded after each operation as by kernels of their own."""

    def held(values):
        return values if dtype is None else host.rounded(values, dtype).astype(kind)

    x = {name: values.astype(kind) for name, values in x.items()}
    row = x["inp"]
    if norm:
        row = held(layernorm.layernorm_forward(row[None], x["norm_weight"], x["norm_bias"])[0][0])
    out = held(x["weight"] @ row + x["bias"])
    if gelu:
        out = held(pointwise.gelu_forward(out))
    return held(out + x["residual"]) if residual else out


def prepared(N, K, norm, gelu, residual, dtype):
    """A layer's launches, its output, what that must be, and the yardstick."""
    x = case(N, K, dtype)
    d = {name: host.to_device(values, dtype) for name, values in x.items()}
    out = d["residual"].reshape(1, N) if residual else host.to_device(np.full((1, N), np.nan), dtype)
    launches = matmul_vector.prepare(
        out, d["inp"], d["weight"], d["bias"],
        norm=(d["norm_weight"], d["norm_bias"]) if norm else None,
        gelu=bool(gelu),
        residual_N=d["residual"] if residual else None,
    )  # fmt: skip
    expected = layer(x, norm, gelu, residual, np.float64)
    plain = layer(x, norm, gelu, residual, np.float32, dtype)
    return launches, out, expected, plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "gelu", "residual"), [(0, 0, 0), (1, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize(("N", "K"), ALL_SHAPES)
def test_against_float64(N, K, norm, gelu, residual, dtype):
    launches, out, expected, plain = prepared(N, K, norm, gelu, residual, dtype)
    launches()
    assert host.max_error(host.values(out)[0], expected) <= host.error_bound(plain, expected, dtype)


@pytest.mark.parametrize(("N", "K"), [(9, 16), (3, TILE + 8)])
def test_same_bits_every_way(N, K, run_every_way):
    launches, out, expected, plain = prepared(N, K, 1, 1, 0, "bfloat16")
    (result,) = run_every_way(launches, out)
    assert host.max_error(result[0], expected) <= host.error_bound(plain, expected, "bfloat16")


def test_only_the_row_of_the_position_is_written():
    x = case(6, 16, "float32")
    for t in (0, 2):
        out = host.to_device(np.full((3, 6), 7.0), "float32")
        inputs = [host.to_device(x[name], "float32") for name in ("inp", "weight")]
        matmul_vector(out, *inputs, position_1=host.to_device(np.array([t], np.int32)))
        result = host.values(out)
        np.testing.assert_allclose(result[t], x["weight"] @ x["inp"], rtol=1e-5, atol=1e-5)
        assert (np.delete(result, t, axis=0) == 7).all()


def test_refusals():
    def arrays(K, offset=0):
        flat = host.to_device(np.zeros(3 * K + 8), "bfloat16")
        return host.to_device(np.zeros((1, 2)), "bfloat16"), flat[offset : offset + K], flat[K : 3 * K].reshape(2, K)

    for K in (12, 12 * TILE + 8):
        with pytest.raises(ValueError, match=f"rows of {K} elements cannot be multiplied"):
            matmul_vector(*arrays(K))
    with pytest.raises(ValueError, match="rows of 16 elements cannot be multiplied"):
        matmul_vector(*arrays(16, offset=1))
    with pytest.raises(ValueError, match="axis K is 8 but 16"):
        matmul_vector(*arrays(16)[:2], host.to_device(np.zeros((2, 8)), "bfloat16"))
