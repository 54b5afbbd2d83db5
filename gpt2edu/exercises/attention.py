"""Checks of chapter 7's exercises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict

Running = tuple[float, float, np.ndarray]
"""Of some keys: the greatest score, the sum of weights relative to it, and the sum of values so weighted."""


def check_tiles_visited(answer: Callable[[int, int], int]) -> Verdict:
    """Exercise 1: `answer(T, tile)` counts the tiles of T x T causal scores that hold at least one pair that counts."""
    cases = []
    for T, tile in ((6, 1), (1024, 64), (1024, 128), (100, 64), (1, 64), (65, 32)):
        firsts = range(0, T, tile)
        visited = sum(s <= min(t + tile, T) - 1 for t in firsts for s in firsts)
        cases.append(((T, tile), visited))
    return check_cases("tiles visited (T, tile)", answer, cases)


def check_merge(answer: Callable[[Running, Running], Running]) -> Verdict:
    """Exercise 2: `answer(one, other)` merges what two threads kept of different keys of one query."""
    cases = []
    for seed, sizes in enumerate(((3, 5), (1, 7), (4, 4))):
        rng = np.random.default_rng(seed)
        scores = [rng.normal(scale=200.0, size=size) for size in sizes]
        values = [rng.normal(size=(size, 4)) for size in sizes]
        kept = [_running(s, v) for s, v in zip(scores, values, strict=True)]
        expected = _running(np.concatenate(scores), np.concatenate(values))
        cases += [((*kept,), expected), ((*kept[::-1],), expected)]

    def same(got: Running, expected: Running) -> bool:
        return all(np.allclose(a, b) for a, b in zip(got, expected, strict=True))

    return check_cases("merge", answer, cases, same=same)


def check_grad_scores(answer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Exercise 3: `answer(scores_S, grad_probabilities_S)` is the gradient of the scores before the softmax."""
    cases = []
    for seed, size in enumerate((2, 5, 30)):
        scores_S, grad_S = np.random.default_rng(seed).normal(size=(2, size))
        steps_SS = 1e-5 * np.eye(size)
        up_S, down_S = ((_softmax(scores_S + sign * steps_SS) * grad_S).sum(axis=1) for sign in (1, -1))
        cases.append(((scores_S, grad_S), (up_S - down_S) / 2e-5))

    def same(got: np.ndarray, expected: np.ndarray) -> bool:
        return np.allclose(got, expected, atol=1e-7)

    return check_cases("gradient of the scores", answer, cases, same=same)


def check_attend(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """Exercise 4: `answer(query_D, key_SD, value_SD)` is one query's output, from single keys and values in turn."""
    cases = []
    for seed, (n_keys, D) in enumerate(((1, 4), (10, 8), (57, 16))):
        rng = np.random.default_rng(seed)
        query_D, key_SD, value_SD = 30 * rng.normal(size=D), rng.normal(size=(n_keys, D)), rng.normal(size=(n_keys, D))
        expected_D = _softmax(key_SD @ query_D / np.sqrt(D)) @ value_SD
        cases.append(((query_D, _OneByOne(key_SD), _OneByOne(value_SD)), expected_D))
    return check_cases("attend", answer, cases, same=np.allclose)


class _OneByOne:
    """Rows that can only be taken one after the other, as a kernel meets them."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __iter__(self):  # noqa: ANN204 (an iterator of rows)
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"{len(self._rows)} rows"


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _running(scores_S: np.ndarray, value_SD: np.ndarray) -> Running:
    weights_S = np.exp(scores_S - scores_S.max())
    return float(scores_S.max()), float(weights_S.sum()), weights_S @ value_SD
