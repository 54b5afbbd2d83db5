"""Checks of chapter 12's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict


def check_with_temperature(answer: Callable[[Sequence[float], float], Sequence[float]]) -> Verdict:
    """Exercise 1: `answer(probabilities, temperature)` is the probabilities at that temperature."""
    cases = []
    for odds in ([16, 9, 4, 1], [1, 1], [5, 0.5, 100]):
        probabilities = [x / sum(odds) for x in odds]
        for temperature in (1.0, 0.5, 2.0):
            scores = np.log(probabilities) / temperature
            powers = np.exp(scores - scores.max())
            cases.append(((probabilities, temperature), powers / powers.sum()))
    return check_cases("probabilities at a temperature", answer, cases, same=np.allclose)


def check_bits_per_byte(answer: Callable[[float, int, int], float]) -> Verdict:
    """Exercise 2: `answer(nats_per_token, n_tokens, n_bytes)` is the loss in bits a byte."""
    cases = []
    for nats, n_tokens, n_bytes in ((math.log(2), 10, 10), (3.4, 1000, 4200), (4.1, 90_624, 206_000)):
        cases.append(((nats, n_tokens, n_bytes), nats * n_tokens / math.log(2) / n_bytes))
    return check_cases("bits a byte (nats a token, tokens, bytes)", answer, cases, same=np.isclose)


def check_nucleus(answer: Callable[[Sequence[float], float], list[int]]) -> Verdict:
    """Exercise 3: `answer(probabilities, top_p)` is the fewest best tokens that together have top_p, best first."""
    cases: list[tuple[tuple[list[float], float], list[int]]] = [
        (([0.5, 0.25, 0.125, 0.125], 0.75), [0, 1]),
        (([0.5, 0.25, 0.125, 0.125], 0.76), [0, 1, 2]),
        (([0.125, 0.25, 0.625], 0.5), [2]),
        (([0.125, 0.25, 0.625], 1.0), [2, 1, 0]),
        (([1.0], 0.1), [0]),
    ]
    return check_cases("tokens of top-p", answer, cases, same=lambda got, expected: list(got) == expected)


def check_round_to_bits(answer: Callable[[float, int], float]) -> Verdict:
    """Exercise 4: `answer(x, n_bits)` is the nearest number with so many significant bits, of two the even one."""
    cases = [
        ((1.0, 8), 1.0),
        ((1.1, 4), 1.125),
        ((17.0, 4), 16.0),  # half of the way: to the even fraction
        ((19.0, 4), 20.0),
        ((0.01, 8), 0.010009765625),
        ((-3.3, 2), -3.0),
        ((1000.0, 4), 1024.0),
        ((0.0, 4), 0.0),
    ]
    return check_cases("rounding (x, bits)", answer, cases)
