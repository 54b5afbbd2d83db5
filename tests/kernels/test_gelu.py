from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import host, reference
from kernels.gelu import bias_gelu_backward, bias_gelu_forward, gelu_backward, gelu_forward

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1,), (9,), (2, 3, 256), (5, 67)]
ROWS = [(1, 1), (3, 9), (2, 768), (4, 35), (2, 2, 16)]


def random(shape, dtype, seed=0, scale=2.0) -> np.ndarray:
    return host.rounded(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def check(result, formula, dtype, *inputs) -> None:
    """Compare with the formula in float64; the yardstick is the formula in float32, rounded to the dtype."""
    expected = formula(*inputs)
    plain = formula(*(x.astype(np.float32) for x in inputs))
    assert host.max_error(result.reshape(expected.shape), expected) <= host.error_bound(plain, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape, dtype, run_every_way):
    inp, grad_out = random(shape, dtype), random(shape, dtype, 1)
    out = host.to_device(np.zeros(shape), dtype)
    (result,) = run_every_way(gelu_forward.prepare(out, host.to_device(inp, dtype)), out)
    check(result, reference.gelu_forward, dtype, inp)
    grad_inp = host.to_device(np.zeros(shape), dtype)
    prepared = gelu_backward.prepare(grad_inp, host.to_device(grad_out, dtype), host.to_device(inp, dtype))
    (result,) = run_every_way(prepared, grad_inp)
    check(result, reference.gelu_backward, dtype, grad_out, inp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_with_bias(shape, dtype, run_every_way):
    inp, grad_out, bias = random(shape, dtype), random(shape, dtype, 1), random(shape[-1:], dtype, 2)
    d_inp, d_grad_out, d_bias = (host.to_device(x, dtype) for x in (inp, grad_out, bias))
    out = host.to_device(np.zeros(shape), dtype)
    (result,) = run_every_way(bias_gelu_forward.prepare(out, d_inp, d_bias), out)
    check(result, reference.bias_gelu_forward, dtype, inp, bias)
    (result,) = run_every_way(bias_gelu_backward.prepare(out, d_grad_out, d_inp, d_bias), out)
    check(result, reference.bias_gelu_backward, dtype, grad_out, inp, bias)


def test_far_from_zero():
    x = np.array([-100.0, -12.0, -0.0, 12.0, 100.0])
    out, slope = host.to_device(np.ones(5), "float32"), host.to_device(np.ones(5), "float32")
    gelu_forward(out, host.to_device(x, "float32"))
    gelu_backward(slope, host.to_device(np.ones(5), "float32"), host.to_device(x, "float32"))
    np.testing.assert_allclose(host.values(out), np.maximum(x, 0), atol=1e-9)
    np.testing.assert_allclose(host.values(slope), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_small_results_of_negative_inputs_keep_their_digits():
    x = np.linspace(-5, -1, 100)
    out = host.to_device(np.ones(100), "float32")
    gelu_forward(out, host.to_device(x, "float32"))
    exact = reference.gelu_forward(x.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(host.values(out), exact, rtol=2e-5)  # 1 + tanh(u) in float32 would lose up to 1e-2


def test_reference_is_that_of_torch_and_of_finite_differences():
    x = np.linspace(-6, 6, 41)
    tensor = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.gelu(tensor, approximate="tanh")
    np.testing.assert_allclose(reference.gelu_forward(x), y.detach().numpy(), atol=1e-14)
    grad_out = np.cos(x)
    y.backward(torch.tensor(grad_out))
    np.testing.assert_allclose(reference.gelu_backward(grad_out, x), tensor.grad.numpy(), atol=1e-14)
    step = 1e-5
    slope = (reference.gelu_forward(x + step) - reference.gelu_forward(x - step)) / (2 * step)
    np.testing.assert_allclose(reference.gelu_backward(grad_out, x), grad_out * slope, atol=1e-9)


def test_refusals():
    x = host.to_device(np.ones((2, 4)), "float32")
    with pytest.raises(ValueError, match="bias_F"):
        bias_gelu_forward(x, x, host.to_device(np.ones(3), "float32"))
    with pytest.raises(ValueError, match="inp_N"):
        gelu_forward(x, host.to_device(np.ones(9), "float32"))
