"""Checks of chapter 8's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict
from kernels import host


def check_loss_and_gradient(answer: Callable[[np.ndarray, int], tuple[float, np.ndarray]]) -> Verdict:
    """Exercise 1: `answer(logits_V, target)` is a row's cross-entropy in nats and the gradient of its logits."""
    rng = np.random.default_rng(0)
    cases = []
    for logits_V, target in ((np.zeros(4), 2), (rng.normal(size=50), 7), (np.array([1000.0, 0.0, -1000.0]), 1)):
        shifted_V = logits_V - logits_V.max()
        log_sum = np.log(np.exp(shifted_V).sum())
        gradient_V = np.exp(shifted_V - log_sum) - (np.arange(len(logits_V)) == target)
        cases.append(((logits_V, target), (log_sum - shifted_V[target], gradient_V)))

    def same(got: tuple[float, np.ndarray], expected: tuple[float, np.ndarray]) -> bool:
        return np.allclose(got[0], expected[0]) and np.allclose(got[1], expected[1])

    return check_cases("loss and gradient", answer, cases, same=same)


def check_merge(answer: Callable[[tuple[float, float], tuple[float, float]], tuple[float, float]]) -> Verdict:
    """Exercise 2: `answer(one, other)` merges two pairs (greatest logit, sum of powers relative to it)."""

    def pair(logits: np.ndarray) -> tuple[float, float]:
        return float(logits.max()), float(np.exp(logits - logits.max()).sum())

    cases = []
    for seed, sizes in enumerate(((3, 5), (7, 1), (2, 2))):
        one, other = (np.random.default_rng(seed).normal(scale=300.0, size=size) for size in sizes)
        cases.append(((pair(one), pair(other)), pair(np.concatenate([one, other]))))
        cases.append(((pair(other), pair(one)), pair(np.concatenate([one, other]))))
    return check_cases("merge", answer, cases, same=np.allclose)


def check_chance_up(answer: Callable[[float], float]) -> Verdict:
    """Exercise 3: `answer(x)` is the chance that stochastic rounding takes the bfloat16 farther from zero."""
    cases = []
    for x in (1.0, 1.0009765625, 1.00390625, 2.0 + 2.0**-8, 3.140625, -1.001953125):
        low_bits = int(np.float32(x).view(np.uint32)) & 0xFFFF
        cases.append(((x,), low_bits / 65_536))
    return check_cases("chance of rounding away from zero", answer, cases, same=np.isclose)


def check_momentum(kernel: Any) -> Verdict:
    """Exercise 4: `kernel[grid, block](weight_N, velocity_N, grad_N, learning_rate, beta)` updates both, in place."""

    def answer(n: int, grid: int) -> np.ndarray | None:
        before = _arrays(n)
        arrays = [host.to_device(x) for x in before]
        kernel[grid, 64](*arrays, np.float32(0.5), np.float32(0.75))
        after = np.stack([host.to_host(x) for x in arrays])
        return None if np.array_equal(after, before) else after

    cases = []
    for n, grid in ((64, 1), (100, 2), (1000, 3), (5, 1)):
        weight_N, velocity_N, grad_N = _arrays(n)
        velocity_N = np.float32(0.75) * velocity_N + grad_N
        cases.append(((n, grid), np.stack([weight_N - np.float32(0.5) * velocity_N, velocity_N, grad_N])))
    return check_cases("momentum (N, blocks)", answer, cases, same=np.array_equal)


def _arrays(n: int) -> np.ndarray:
    """Return weights, velocities and gradients, all multiples of 1/4 so small that the update is exact."""
    return (np.random.default_rng(n).integers(-32, 32, size=(3, n)) / 4).astype(np.float32)
