"""One new token a sequence: the last row of what attention over all rows gives."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.attention import reference
from kernels.attention.decode import attention_decode, attention_decode_scratch_size

CASES = [  # B, T, H, D, position
    (1, 1, 1, 8, 0),
    (2, 5, 3, 8, 2),
    (2, 40, 2, 64, 39),
    (1, 300, 1, 16, 255),
    (1, 300, 2, 40, 256),
    (1, 3, 1, 128, 1),
    (1, 140, 1, 128, 139),
]
ON_A_GPU = [(1, 1024, 12, 64, 16), (3, 1023, 12, 64, 1000), (3, 1024, 12, 64, 1023), (2, 8192, 4, 128, 8000)]


def case(B, T, H, D, dtype):
    rng = np.random.default_rng(B * T * H * D)
    return host.rounded(rng.standard_normal((B, T, 3 * H * D)), dtype)


def on_device(t):
    return host.to_device(np.array([t], np.int32))


def prepared(qkv, H, t, dtype):
    B, T, E = qkv.shape
    later_is_poison = qkv.copy()
    later_is_poison[:, t + 1 :] = np.nan
    out = host.to_device(np.full((B, E // 3), np.nan), dtype)
    scratch = np.full(attention_decode_scratch_size(B, T, H, E // (3 * H)), np.nan)
    launches = attention_decode.prepare(
        out, host.to_device(scratch, "float32"), host.to_device(later_is_poison, dtype), H, on_device(t)
    )
    return launches, out


def attend(qkv, H, t):
    """The formula for the query at t alone, in the type of its argument."""
    B, _, E = qkv.shape
    heads = qkv[:, : t + 1].reshape(B, t + 1, 3, H, E // (3 * H))
    query, keys, values = heads[:, t, 0], heads[:, :, 1], heads[:, :, 2]
    scores = np.einsum("bhd,bshd->bhs", query, keys) / np.sqrt(query.shape[-1]).astype(qkv.dtype)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return np.einsum("bhs,bshd->bhd", weights / weights.sum(2, keepdims=True), values).reshape(B, E // 3)


def check(result, qkv, H, t, dtype):
    expected, plain = attend(qkv, H, t), attend(qkv.astype(np.float32), H, t)
    assert host.max_error(result, expected) <= host.error_bound(plain, expected, dtype)


def test_the_formula_is_the_last_row_of_that_for_all_queries():
    qkv = case(2, 9, 3, 8, "float32")
    np.testing.assert_allclose(attend(qkv, 3, 7), reference.attention_forward(qkv, 3)[0][:, 7], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("B", "T", "H", "D", "t"), CASES + ([] if SIMULATED else ON_A_GPU))
def test_is_the_last_row_of_forward(B, T, H, D, t, dtype):
    qkv = case(B, T, H, D, dtype)
    launches, out = prepared(qkv, H, t, dtype)
    launches()
    check(host.values(out), qkv, H, t, dtype)


def test_same_bits_every_way(run_every_way):
    qkv = case(2, 140, 1, 8, "bfloat16")
    launches, out = prepared(qkv, 1, 135, "bfloat16")
    (result,) = run_every_way(launches, out)
    check(result, qkv, 1, 135, "bfloat16")


def test_one_preparation_serves_every_position():
    qkv = case(1, 140, 4, 8, "float32")
    position = on_device(0)
    shapes = (1, 32), attention_decode_scratch_size(1, 140, 4, 8)
    out, scratch = (host.to_device(np.zeros(shape), "float32") for shape in shapes)
    launches = attention_decode.prepare(out, scratch, host.to_device(qkv, "float32"), 4, position)
    for t in (139, 3, 128):
        if SIMULATED:
            position[0] = t
        else:
            position.copy_to_device(np.array([t], np.int32))
        launches()
        check(host.values(out), qkv, 4, t, "float32")


def test_refusals():
    def arrays(C=8, E=24, S=100, offset=0):
        qkv = host.to_device(np.zeros(3 * E + 1), "float32")[offset : offset + 3 * E].reshape(1, 3, E)
        return [*(host.to_device(np.zeros(shape), "float32") for shape in ((1, C), (S,))), qkv]

    with pytest.raises(ValueError, match="8 channels and a qkv of 24 do not belong to 3 heads"):
        attention_decode(*arrays(), 3, on_device(0))
    for C in (136, 12):
        with pytest.raises(ValueError, match=f"the head size is {C}; a multiple of 8 is needed, at most 128"):
            attention_decode(*arrays(C, 3 * C), 1, on_device(0))
    with pytest.raises(ValueError, match="scratch_S has 9 elements; 10 are needed"):
        attention_decode(*arrays(S=9), 1, on_device(2))
    with pytest.raises(ValueError, match="qkv_BTE does not begin at a multiple of 16 bytes"):
        attention_decode(*arrays(offset=1), 1, on_device(0))
