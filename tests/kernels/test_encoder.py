from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import host, reference
from kernels.encoder import encoder_backward, encoder_forward, encoder_scratch_size
from kernels.token_plan import SEGMENT, plan_token_gradient, token_plan_size

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 1, 1, 1), (2, 3, 9, 5), (3, 4, 776, 7), (1, 20, 16, 3), (11, 2, 16, 5)]  # B, T, C, V


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


def backward_case(tokens, grad_out, V, dtype):
    """Gradients that hold something already, prepared launches that add to them, and what must come out."""
    N, C = tokens.size, grad_out.shape[-1]
    T = tokens.shape[1]
    before = np.random.default_rng(5).standard_normal((V + T + 2, C)).astype(np.float32)
    grads = host.to_device(before[:V]), host.to_device(before[V:])
    scratch = host.to_device(np.full(encoder_scratch_size(N, C), np.nan), "float32")
    plan = host.to_device(plan_token_gradient(tokens))
    prepared = encoder_backward.prepare(*grads, scratch, host.to_device(grad_out, dtype), plan)

    def check(results) -> None:
        expected = reference.encoder_backward(grad_out, tokens, V)
        plain = reference.encoder_backward(grad_out.astype(np.float32), tokens, V)
        np.testing.assert_array_equal(results[1][T:], before[V + T :])  # positions that the batch has not
        starts = before[:V], before[V : V + T]
        for ours, start, wanted, yardstick in zip((results[0], results[1][:T]), starts, expected, plain, strict=True):
            wanted = start + wanted
            assert host.max_error(ours, wanted) <= host.error_bound(start + yardstick, wanted, "float32")

    return grads, prepared, check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_adds_to_both_gradients(shape, dtype, run_every_way):
    tokens, _, _, grad_out = random_case(shape, dtype)
    grads, prepared, check = backward_case(tokens, grad_out, shape[3], dtype)
    check(run_every_way(prepared, *grads))


@pytest.mark.parametrize("C", [16, 9])
def test_backward_of_frequent_tokens(C, run_every_way):
    tokens = np.random.default_rng(6).choice(5, (2, 3 * SEGMENT), p=[0.6, 0.3, 0.05, 0.05, 0.0]).astype(np.int32)
    grad_out = host.rounded(np.random.default_rng(7).standard_normal((*tokens.shape, C)), "bfloat16")
    grads, prepared, check = backward_case(tokens, grad_out, 5, "bfloat16")
    check(run_every_way(prepared, *grads))


def parts_of_plan(tokens):
    plan = plan_token_gradient(tokens)
    assert plan.dtype == np.int32
    N, most_split = tokens.size, -(-tokens.size // SEGMENT)
    assert plan.size == token_plan_size(N)
    return np.split(plan, np.cumsum([2, N, N + 1, N, most_split + 1]))


def test_plan_of_rare_tokens():
    counts, places, bounds, targets, _, _ = parts_of_plan(np.array([[7, 2, 7], [50256, 2, 7]]))
    np.testing.assert_array_equal(counts, [3, 0])
    np.testing.assert_array_equal(places, [1, 4, 0, 2, 5, 3])
    np.testing.assert_array_equal(bounds[:4], [0, 2, 5, 6])
    np.testing.assert_array_equal(targets[:3], [2, 7, 50256])


def test_plan_of_frequent_tokens():
    tokens = np.repeat([5, 3, 9], [2 * SEGMENT + 1, SEGMENT, SEGMENT + 2])
    counts, places, bounds, targets, merge_bounds, merge_tokens = parts_of_plan(tokens)
    np.testing.assert_array_equal(counts, [6, 2])
    np.testing.assert_array_equal(tokens[places], np.sort(tokens))
    np.testing.assert_array_equal(bounds[:7] // SEGMENT, [0, 1, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(bounds[:7] % SEGMENT, [0, 0, 0, 0, 1, 1, 3])
    np.testing.assert_array_equal(targets[:6], [3, -1, -2, -3, -4, -5])
    np.testing.assert_array_equal(merge_bounds[:3], [0, 3, 5])
    np.testing.assert_array_equal(merge_tokens[:2], [5, 9])


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
    with pytest.raises(ValueError, match="B\\*T = 6 places need plan_P of 24, scratch_R of 18 elements"):
        encoder_backward(*single, host.to_device(np.zeros(1), "float32"), out, host.to_device(np.zeros(6, np.int32)))
