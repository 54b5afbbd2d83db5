from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from kernels import host
from kernels.classifier import LADDER, fused_classifier, reference, step3_vectorized, step4_row_in_shared_memory

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 1, 1), (2, 11, 13), (3, 60, 64), (2, 777, 777), (1, 300, 512)]  # N, V, P
STEPS = [pytest.param(step, id=step.__name__.rpartition(".")[2]) for step in LADDER]


def random_case(shape, dtype):
    N, V, P = shape
    rng = np.random.default_rng(N * V)
    logits = host.rounded(3 * rng.standard_normal((N, P)), dtype)
    logits[:, V:] = 50  # padding must not count
    return logits, rng.integers(0, V, N).astype(np.int32)


def check(result, wanted, plain, dtype) -> None:
    assert host.max_error(result, wanted) <= host.error_bound(plain, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS)
def test_losses_and_gradient(step, shape, dtype, run_every_way):
    N, V, _ = shape
    logits, targets = random_case(shape, dtype)
    losses, device_logits = host.to_device(np.ones(N), "float32"), host.to_device(logits, dtype)
    prepared = step.fused_classifier.prepare(losses, device_logits, host.to_device(targets), V, 0.5)
    results = run_every_way(prepared, losses, device_logits)
    expected = reference.fused_classifier(logits, targets, V, 0.5)
    plain = reference.fused_classifier(logits.astype(np.float32), targets, V, 0.5)
    check(results[0], expected[0], plain[0], "float32")
    check(results[1], expected[1], plain[1], dtype)
    assert not results[1][:, V:].any()


@pytest.mark.parametrize("step", STEPS)
def test_losses_alone_and_accumulated(step, run_every_way):
    logits, targets = random_case((3, 60, 64), "float32")
    losses, device_logits = host.to_device(np.full(3, 2.0), "float32"), host.to_device(logits, "float32")
    arguments = losses, device_logits, host.to_device(targets), 60, 0.5
    prepared = step.fused_classifier.prepare(*arguments, write_gradient=False, accumulate=True)
    (added, untouched) = run_every_way(prepared, losses, device_logits)
    np.testing.assert_array_equal(untouched, logits)
    expected, _ = reference.fused_classifier(logits, targets, 60, 0.5)
    np.testing.assert_allclose(added, 2 + expected, rtol=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_extreme_logits(step):
    logits = np.array([[3e38, -3e38, 0, 1], [-3e38, -3e38, -3e38, -3e38], [1000.0, 999.0, -1000, 0]])
    losses, device_logits = host.to_device(np.zeros(3), "float32"), host.to_device(logits, "float32")
    step.fused_classifier(losses, device_logits, host.to_device(np.zeros(3, np.int32)), 4, 1.0)
    expected = [0, np.log(4), np.log(1 + np.exp(-1))]
    np.testing.assert_allclose(host.values(losses), expected, rtol=1e-6)
    assert np.isfinite(host.values(device_logits)).all()


def test_a_row_waits_in_shared_memory_where_it_fits():
    def kernel_of(P, dtype="bfloat16"):
        arrays = host.to_device(np.zeros(1), "float32"), host.to_device(np.zeros((1, P)), dtype)
        (launch,) = fused_classifier.prepare(*arrays, host.to_device(np.zeros(1, np.int32)), 1, 1.0)
        return launch.kernel

    in_shared_memory = step4_row_in_shared_memory.KERNELS
    assert kernel_of(64) is kernel_of(50304) is in_shared_memory["uint16"]
    assert kernel_of(64, "float32") is in_shared_memory["float32"]
    for P, dtype in ((65, "bfloat16"), (50304, "float32")):  # not aligned, too long
        assert kernel_of(P, dtype) is step3_vectorized.fused_classifier_kernel


@pytest.mark.parametrize("V", [50257, 50304])
def test_vocabulary_of_gpt2_with_and_without_padding(V):
    logits = host.rounded(np.random.default_rng(0).standard_normal((1, V)), "bfloat16")
    logits[:, 50257:] = 50
    losses, device_logits = host.to_device(np.zeros(1), "float32"), host.to_device(logits, "bfloat16")
    fused_classifier(losses, device_logits, host.to_device(np.array([50256], np.int32)), 50257, 1.0)
    expected, gradient = reference.fused_classifier(logits, np.array([50256]), 50257, 1.0)
    np.testing.assert_allclose(host.values(losses), expected, rtol=1e-6)
    np.testing.assert_allclose(host.values(device_logits), gradient, rtol=2.0**-8, atol=1e-30)


def test_reference_is_torch():
    logits, targets = random_case((3, 60, 64), "float32")
    tensor = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(tensor[:, :60], torch.tensor(targets).long(), reduction="none")
    loss.sum().mul(0.5).backward()
    losses, gradient = reference.fused_classifier(logits, targets, 60, 0.5)
    np.testing.assert_allclose(losses, loss.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-14)


def test_refusals_and_signatures():
    logits, targets = (host.to_device(x) for x in random_case((3, 60, 64), "float32"))
    with pytest.raises(ValueError, match="V is 65"):
        fused_classifier(
            host.to_device(np.zeros(3, np.float32)), host.to_device(np.zeros((3, 64), np.float32)), targets, 65, 1
        )
    with pytest.raises(ValueError, match="logits_NP is float64"):
        fused_classifier(host.to_device(np.zeros(3, np.float32)), logits, targets, 60, 1)
    assert len({inspect.signature(step.fused_classifier) for step in LADDER}) == 1
