from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import host
from kernels.layernorm import (
    LADDER,
    layernorm_backward,
    layernorm_scratch_size,
    reference,
    step3_vectorized,
    step4_fused_residual,
    step5_row_in_registers,
)
from kernels.layernorm.arguments import MIN_ROWS

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 1), (3, 7), (11, 40), (2, 771)]  # N, C
CASES = [*((step, shape) for step in LADDER for shape in SHAPES), (step5_row_in_registers, (2, 776))]
STEPS_AND_SHAPES = [
    pytest.param(step, shape, id=f"{step.__name__.rpartition('.')[2]}-{shape[0]}x{shape[1]}") for step, shape in CASES
]


def random(shape, dtype, seed=0, scale=1.0, shift=0.0) -> np.ndarray:
    return host.rounded(scale * np.random.default_rng(seed).standard_normal(shape) + shift, dtype)


def zeros(shape, dtype="float32"):
    return host.to_device(np.zeros(shape), dtype)


def single(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x.astype(np.float32) for x in arrays)


def check(results, expected, plain, dtypes, least=(0.0, 0.0, 0.0, 0.0)) -> None:
    for i, (result, wanted, yardstick, dtype) in enumerate(zip(results, expected, plain, dtypes, strict=True)):
        assert host.max_error(result, wanted) <= max(host.error_bound(yardstick, wanted, dtype), least[i]), i


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "shape"), STEPS_AND_SHAPES)
def test_forward(step, shape, dtype, run_every_way):
    N, C = shape
    inputs = random(shape, dtype, 1, 2.0, 3.0), random(C, dtype, 2), random(C, dtype, 3)
    outputs = zeros(shape, dtype), zeros(N), zeros(N)
    prepared = step.layernorm_forward.prepare(*outputs, *(host.to_device(x, dtype) for x in inputs))
    results = run_every_way(prepared, *outputs)
    plain = reference.layernorm_forward(*single(*inputs))
    check(results, reference.layernorm_forward(*inputs), plain, (dtype, "float32", "float32"))


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "shape"), STEPS_AND_SHAPES)
def test_backward(step, shape, dtype, accumulate, run_every_way):
    N, C = shape
    inp, weight, grad_out = random(shape, dtype, 1, 2.0, 3.0), random(C, dtype, 2), random(shape, dtype, 4)
    statistics = tuple(x.astype(np.float32) for x in reference.layernorm_forward(inp, weight, weight)[1:])
    before = random(shape, dtype, 5), *single(random(C, dtype, 6), random(C, dtype, 7))
    outputs = host.to_device(before[0], dtype), host.to_device(before[1]), host.to_device(before[2])
    scratch = zeros(layernorm_scratch_size(N, C))
    inputs = [host.to_device(x, dtype) for x in (grad_out, inp, weight)] + [host.to_device(x) for x in statistics]
    prepared = step.layernorm_backward.prepare(*outputs, scratch, *inputs, accumulate=accumulate)
    results = run_every_way(prepared, *outputs)

    def formula(*arrays):
        start, *arrays = arrays
        grad_inp, *others = reference.layernorm_backward(*arrays)
        return (start + grad_inp if accumulate else grad_inp), *(b + g for b, g in zip(before[1:], others, strict=True))

    arguments = (before[0], grad_out, inp, weight, *statistics)
    expected = formula(*(x.astype(np.float64) for x in arguments))
    # the input's gradient is a difference of terms, large where a row hardly varies; a multiply-add rounds only one
    rounding_of_terms = 2 * host.EPSILON["float32"] * np.abs(statistics[1][:, None] * grad_out * weight).max()
    least = (rounding_of_terms, 0.0, 0.0)
    check(results, expected, formula(*single(*arguments)), (dtype, "float32", "float32"), least)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [step4_fused_residual, step5_row_in_registers])
def test_fused_residual(step, shape, dtype, run_every_way):
    N, C = shape
    inputs = random(shape, dtype, 1), random(shape, dtype, 2, 3.0, 1.0), random(C, dtype, 3), random(C, dtype, 4)
    outputs = zeros(shape, dtype), zeros(shape, dtype), zeros(N), zeros(N)
    prepared = step.residual_layernorm_forward.prepare(*outputs, *(host.to_device(x, dtype) for x in inputs))
    results = run_every_way(prepared, *outputs)

    def formula(inp, added, weight, bias):
        stored = host.rounded(inp + added, dtype).astype(inp.dtype)  # what backward will see
        return inp + added, *reference.layernorm_forward(stored, weight, bias)

    check(results, formula(*inputs), formula(*single(*inputs)), (dtype, dtype, "float32", "float32"))


@pytest.mark.parametrize("step", LADDER[2:])
def test_several_chunks_of_rows(step, run_every_way):
    test_backward(step, (2 * MIN_ROWS + 3, 16), "bfloat16", True, run_every_way)


def test_wide_rows_take_fewer_warps_and_too_wide_ones_are_refused():
    def prepare(C):
        x, vector = zeros((1, C)), zeros(C)
        scratch = zeros(layernorm_scratch_size(1, C))
        return step3_vectorized.layernorm_backward.prepare(x, vector, vector, scratch, x, x, vector, zeros(1), zeros(1))

    assert [prepare(C)[0].block // 32 for C in (64, 768, 1600, 6144)] == [8, 8, 3, 1]
    with pytest.raises(ValueError, match="at most 6144"):
        prepare(6152)


def test_a_row_is_kept_in_registers_where_it_fits():
    def kernel_of(C, first=0):
        x, vector, rows = zeros(2 * C + 8)[first : first + 2 * C].reshape(2, C), zeros(C), zeros(2)
        (launch,) = step5_row_in_registers.layernorm_forward.prepare(x, rows, rows, x, vector, vector)
        return launch.kernel

    kept = step5_row_in_registers.FORWARD
    assert [kernel_of(C) for C in (8, 768, 776, 1024)] == [kept[packs].forward for packs in (3, 3, 4, 4)]
    for C, first in ((1032, 0), (9, 0), (768, 1)):  # too long, not in packs, not aligned
        assert kernel_of(C, first) is step3_vectorized.layernorm_forward_kernel


def test_reference_is_torch_and_agrees_with_finite_differences():
    inp, weight, bias, grad_out = random((3, 5), "float32", 1), *(random(5, "float32", s) for s in (2, 3)), None
    grad_out = random((3, 5), "float32", 4)
    tensors = [torch.tensor(x, requires_grad=True) for x in (inp, weight, bias)]
    out = torch.nn.functional.layer_norm(tensors[0], (5,), tensors[1], tensors[2], 1e-5)
    ours, mean, rstd = reference.layernorm_forward(inp, weight, bias)
    np.testing.assert_allclose(ours, out.detach().numpy(), atol=1e-13)
    out.backward(torch.tensor(grad_out))
    gradients = reference.layernorm_backward(grad_out, inp, weight, mean, rstd)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-12)
    step = np.zeros_like(inp)
    step[1, 2] = 1e-5
    up, down = (reference.layernorm_forward(inp + s * step, weight, bias)[0] for s in (1, -1))
    assert abs((grad_out * (up - down)).sum() / 2e-5 - gradients[0][1, 2]) < 1e-8


def test_refusals():
    x, vector, rows = zeros((2, 4)), zeros(4), zeros(2)
    with pytest.raises(ValueError, match="mean_N"):
        LADDER[0].layernorm_forward(x, zeros(3), rows, x, vector, vector)
    with pytest.raises(ValueError, match="scratch_S has 2 elements; 16 are needed"):
        layernorm_backward(x, vector, vector, rows, x, x, vector, rows, rows)
