"""Products of sizes that fit no tile and rows that cannot be moved in pieces: what is used must be right there, too.

Every output lies in the middle of memory of a known value, which must still be there afterwards.
"""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.architecture import architecture, force_architecture
from kernels.matmul import matmul_forward, matmul_grad_input, matmul_grad_weight

CANARY, BEFORE = 64, 7.0
LARGE = [
    (1, 1, 4099), (1, 17, 4099), (1, 4099, 17), (17, 1, 4099), (17, 4099, 1), (4099, 1, 17), (4099, 17, 1),
    (4099, 17, 4099), (4099, 4099, 17),
    (4099, 17, 520), (1031, 4100, 72), (17, 520, 4100),  # rows that TMA reads but cannot write, and the reverse
]  # fmt: skip
SHAPES = [(1, 17, 35), (17, 1, 40)] if SIMULATED else LARGE


@pytest.fixture(params=["sm_80", "sm_90a"])
def family(request):
    if not SIMULATED and request.param == "sm_90a" != architecture():
        pytest.skip("this GPU has no wgmma")
    force_architecture(request.param)
    yield request.param
    force_architecture(None)


def placed(values: np.ndarray, dtype: str, offset: int = 0):
    """Copy an array to where the kernels run, so that it begins `offset` elements after a whole piece."""
    held = host.to_bf16(values.astype(np.float32)) if dtype == "bfloat16" else values.astype(np.float32)
    memory = host.to_device(np.concatenate([np.zeros(offset, held.dtype), held.ravel()]))
    return memory[offset:].reshape(values.shape)


def check_product(launcher, a, b, dtype, out_dtype, before, offset=0) -> None:
    """Launch a product that is `a @ b` in NumPy's terms and compare it and what lies around it."""
    shape, operands = (a[0].shape[0], b[0].shape[1]), [a[1], b[1]]
    memory = host.to_device(np.full(2 * CANARY + shape[0] * shape[1], BEFORE), out_dtype)
    out = memory[CANARY : CANARY + shape[0] * shape[1]].reshape(shape)
    launcher(out, *(placed(x, dtype, offset) for x in operands))
    values = host.values(memory)
    inside = values[CANARY:-CANARY].reshape(shape)
    expected = before + a[0] @ b[0]
    plain = before + a[0].astype(np.float32) @ b[0].astype(np.float32)
    cancelling = 4 * host.EPSILON["float32"] * (np.abs(a[0]) @ np.abs(b[0])).max()
    assert host.max_error(inside, expected) <= max(host.error_bound(plain, expected, out_dtype), cancelling)
    assert (values[:CANARY] == BEFORE).all() and (values[-CANARY:] == BEFORE).all(), "written outside the output"


def check_products(shape, dtype, offset=0) -> None:
    M, N, K = shape
    rng = np.random.default_rng(M + 3 * N + 5 * K)
    inp, weight, grad_out = (host.rounded(rng.standard_normal(s), dtype) for s in ((M, K), (N, K), (M, N)))
    check_product(matmul_forward, (inp, inp), (weight.T, weight), dtype, dtype, 0, offset)
    check_product(matmul_grad_input, (grad_out, grad_out), (weight, weight), dtype, dtype, 0, offset)
    check_product(matmul_grad_weight, (grad_out.T, grad_out), (inp, inp), dtype, "float32", BEFORE, offset)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_odd_sizes(shape, family):
    check_products(shape, "bfloat16")


@pytest.mark.parametrize("shape", SHAPES[:7], ids=lambda shape: "x".join(map(str, shape)))
def test_odd_sizes_of_float32(shape):
    check_products(shape, "float32")


@pytest.mark.parametrize("offset", [1, 4])
def test_operands_that_begin_within_a_piece(offset, family):
    check_products((17, 24, 40) if SIMULATED else (1031, 264, 520), "bfloat16", offset)
