"""Checks of chapter 6's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict
from kernels import host

WARP_SIZE = 32
EPSILON = 1e-5


def check_normalize(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Exercise 1: `answer(row_C, weight_C, bias_C)` is the layernorm of one row, epsilon 1e-5."""
    cases = []
    for seed, n_channels in ((0, 4), (1, 5), (2, 768)):
        row_C, weight_C, bias_C = np.random.default_rng(seed).normal(1.0, 2.0, size=(3, n_channels))
        deviation = np.sqrt(np.var(row_C) + EPSILON)
        cases.append(((row_C, weight_C, bias_C), (row_C - np.mean(row_C)) / deviation * weight_C + bias_C))
    constant_C = np.full(4, 7.0)
    cases.append(((constant_C, np.ones(4), np.ones(4)), np.ones(4)))
    return check_cases("normalize", answer, cases, same=np.allclose)


def check_held(answer: Callable[[int, int], set[int]]) -> Verdict:
    """Exercise 2: `answer(lane, n)` is the set of lanes whose numbers this lane has summed after n exchanges."""
    cases = []
    for lane, n_exchanges in ((0, 0), (0, 1), (5, 2), (31, 3), (12, 4), (7, 5)):
        held = {lane}
        for distance in (16, 8, 4, 2, 1)[:n_exchanges]:
            held |= {other ^ distance for other in held}
        cases.append(((lane, n_exchanges), held))
    return check_cases("held (lane, exchanges)", answer, cases, same=lambda got, expected: set(got) == expected)


def check_greatest(kernel: Any) -> Verdict:
    """Exercise 3: `kernel[blocks, 64](out_N, inp_NC)` writes the greatest magnitude of each row, a warp a row."""

    def answer(n_rows: int, n_channels: int, n_blocks: int) -> np.ndarray | None:
        out_N = host.to_device(np.full(n_rows, np.nan, np.float32))
        kernel[n_blocks, 64](out_N, host.to_device(_rows(n_rows, n_channels)))
        written_N = host.to_host(out_N)
        return None if np.isnan(written_N).all() else written_N

    cases = [
        (shape, np.abs(_rows(*shape[:2])).max(axis=1)) for shape in ((2, 32, 1), (3, 64, 2), (5, 77, 1), (4, 7, 4))
    ]
    return check_cases("greatest (N, C, blocks)", answer, cases, same=np.array_equal)


def check_rms_backward(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Exercise 4: `answer(grad_out_C, inp_C, weight_C)` is the gradient of the input of the root-mean-square norm."""
    cases = []
    for seed, n_channels in ((0, 3), (1, 8), (2, 50)):
        grad_out_C, inp_C, weight_C = np.random.default_rng(seed).normal(size=(3, n_channels))
        cases.append(((grad_out_C, inp_C, weight_C), _slopes(grad_out_C, inp_C, weight_C)))
    same = lambda got, expected: np.allclose(got, expected, atol=1e-6)  # noqa: E731
    return check_cases("rms_backward", answer, cases, same=same)


def _rows(n_rows: int, n_channels: int) -> np.ndarray:
    """Return numbers of both signs; the one of greatest magnitude of a row is negative in every other row."""
    rows_NC = np.random.default_rng(n_rows * n_channels).normal(size=(n_rows, n_channels)).astype(np.float32)
    rows_NC[::2, n_channels // 2] = -9
    return rows_NC


def _slopes(grad_out_C: np.ndarray, inp_C: np.ndarray, weight_C: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Return the gradient by small steps to both sides of each channel."""

    def loss(x_C: np.ndarray) -> float:
        return float((grad_out_C * weight_C * x_C / np.sqrt(np.mean(x_C**2) + EPSILON)).sum())

    steps_CC = step * np.eye(len(inp_C))
    return np.array([(loss(inp_C + step_C) - loss(inp_C - step_C)) / (2 * step) for step_C in steps_CC])
