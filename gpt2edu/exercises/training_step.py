"""Checks of chapter 9's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict

Lifetime = tuple[int, int, int]
"""Of a buffer: its bytes, and the numbers of the first and the last operation that use it."""


def check_kept_bytes(answer: Callable[[int, int, int, int, int], int]) -> Verdict:
    """Exercise 1: `answer(B, T, C, L, recompute)` is the bytes of the layers' bf16 arrays that backward needs."""
    cases = []
    for B, T, C, L in ((64, 1024, 768, 12), (4, 1024, 1600, 48), (1, 8, 16, 1)):
        for recompute in (0, 1, 2):
            of_layer = {"stream": 2 * C, "qkv": 3 * C, "mixed": C, "expanded": 4 * C}
            n = L * sum(of_layer.values())
            n += (1 if recompute >= 1 else L) * 4 * C
            n += (1 if recompute >= 2 else L) * 2 * C
            cases.append(((B, T, C, L, recompute), 2 * B * T * n))
    return check_cases("bytes kept (B, T, C, L, recompute)", answer, cases)


def check_accumulated(answer: Callable[[list[np.ndarray], list[int]], np.ndarray]) -> Verdict:
    """Exercise 2: `answer(means, n_tokens)` is the gradient of the mean loss over all tokens of all micro-batches."""
    rng = np.random.default_rng(0)
    cases = []
    for n_tokens in ([8, 8], [8, 8, 3], [1, 100], [5]):
        gradients = [rng.normal(size=(n, 4)) for n in n_tokens]  # a row a token
        means = [gradient_N4.mean(axis=0) for gradient_N4 in gradients]
        cases.append(((means, n_tokens), np.concatenate(gradients).mean(axis=0)))
    return check_cases("accumulated gradient", answer, cases, same=np.allclose)


def check_peak_bytes(answer: Callable[[Sequence[Lifetime]], int]) -> Verdict:
    """Exercise 3: `answer(buffers)` is the least memory that holds every buffer while it is in use."""
    cases = []
    lists: tuple[list[Lifetime], ...] = (
        [(100, 0, 1)],
        [(100, 0, 1), (50, 2, 3)],  # one after the other
        [(100, 0, 2), (50, 2, 3)],  # both in operation 2
        [(10, 0, 9), (20, 1, 8), (40, 2, 3), (40, 4, 5)],
        [(7, 3, 3), (5, 0, 6), (9, 5, 6), (1, 4, 4)],
    )
    for buffers in lists:
        times = range(1 + max(last for _, _, last in buffers))
        peak = max(sum(size for size, first, last in buffers if first <= time <= last) for time in times)
        cases.append(((buffers,), peak))
    return check_cases("peak memory", answer, cases)


def check_floor_ms(answer: Callable[[int, int, int, float, float], float]) -> Verdict:
    """Exercise 4: `answer(M, K, N, tflop_per_s, gb_per_s)` is the least ms of a bf16 product (M, K) by (K, N)."""
    cases = []
    for M, K, N in ((65_536, 768, 3072), (65_536, 768, 50_304), (1, 768, 3072), (65_536, 16, 16)):
        for tflop_per_s, gb_per_s in ((700.0, 3000.0), (250.0, 1800.0)):
            arithmetic_ms = 2 * M * K * N / tflop_per_s / 1e9
            bytes_ms = 2 * (M * K + K * N + M * N) / gb_per_s / 1e6
            cases.append(((M, K, N, tflop_per_s, gb_per_s), max(arithmetic_ms, bytes_ms)))
    return check_cases("floor (M, K, N, TFLOP/s, GB/s)", answer, cases, same=np.isclose)
