from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import host, reference
from kernels.encoder import encoder_backward, encoder_forward, places_by_token

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 1, 1, 1), (2, 3, 9, 5), (3, 4, 264, 7), (1, 20, 16, 3)]  # B, T, C, V


def random_case(shape, dtype):
    B, T, C, V = shape
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    tables = [host.rounded(rng.standard_normal(s), dtype) for s in ((V, C), (T + 2, C))]
    grad_out = host.rounded(rng.standard_normal((B, T, C)), dtype)
    return tokens, *tables, grad_out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, dtype, run_every_way):
    tokens, token_weight, position_weight, _ = random_case(shape, dtype)
    out = host.to_device(np.zeros((*tokens.shape, shape[2])), dtype)
    tables = host.to_device(token_weight, dtype), host.to_device(position_weight, dtype)
    (result,) = run_every_way(encoder_forward.prepare(out, host.to_device(tokens), *tables), out)
    expected = reference.encoder_forward(tokens, token_weight, position_weight)
    plain = reference.encoder_forward(tokens, token_weight.astype(np.float32), position_weight.astype(np.float32))
    assert host.max_error(result, expected) <= host.error_bound(plain, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_adds_to_both_gradients(shape, dtype, run_every_way):
    B, T, C, V = shape
    tokens, _, _, grad_out = random_case(shape, dtype)
    before = np.random.default_rng(5).standard_normal((V + T + 2, C)).astype(np.float32)
    grads = host.to_device(before[:V]), host.to_device(before[V:])
    places, bounds = (host.to_device(x) for x in places_by_token(tokens))
    prepared = encoder_backward.prepare(*grads, host.to_device(grad_out, dtype), host.to_device(tokens), places, bounds)
    results = run_every_way(prepared, *grads)
    expected = reference.encoder_backward(grad_out, tokens, V)
    plain = reference.encoder_backward(grad_out.astype(np.float32), tokens, V)
    results[1], unused = results[1][:T], results[1][T:]
    np.testing.assert_array_equal(unused, before[V + T :])
    for result, start, wanted, yardstick in zip(results, (before[:V], before[V : V + T]), expected, plain, strict=True):
        assert host.max_error(result, start + wanted) <= host.error_bound(start + yardstick, start + wanted, "float32")


def test_places_by_token():
    tokens = np.array([[7, 2, 7], [50256, 2, 7]])
    places, bounds = places_by_token(tokens)
    np.testing.assert_array_equal(places, [1, 4, 0, 2, 5, 3])
    np.testing.assert_array_equal(bounds, [0, 2, 5, 6, 6, 6, 6])
    assert places.dtype == bounds.dtype == np.int32


def test_reference_is_the_gradient_of_torch():
    tokens, token_weight, position_weight, grad_out = random_case((3, 4, 6, 5), "float32")
    tables = [torch.tensor(x, requires_grad=True) for x in (token_weight, position_weight)]
    out = tables[0][torch.tensor(tokens).long()] + tables[1][:4]
    np.testing.assert_allclose(reference.encoder_forward(tokens, token_weight, position_weight), out.detach().numpy())
    out.backward(torch.tensor(grad_out))
    for ours, table in zip(reference.encoder_backward(grad_out, tokens, 5), tables, strict=True):
        np.testing.assert_allclose(ours, table.grad.numpy()[: ours.shape[0]], atol=1e-14)


def test_refusals():
    tokens, token_weight, position_weight, _ = (host.to_device(x) for x in random_case((2, 3, 9, 5), "float32"))
    single = host.to_device(np.zeros((5, 9)), "float32"), host.to_device(np.zeros((5, 9)), "float32")
    out = host.to_device(np.zeros((2, 3, 9)), "float32")
    with pytest.raises(ValueError, match="T is 3 but position_weight_SC has 2 positions"):
        encoder_forward(out, tokens, single[0], single[1][:2])
    with pytest.raises(ValueError, match="B\\*T = 6 places need"):
        encoder_backward(
            *single, out, tokens, host.to_device(np.zeros(6, np.int32)), host.to_device(np.zeros(6, np.int32))
        )
