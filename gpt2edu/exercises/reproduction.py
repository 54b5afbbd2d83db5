"""Checks of chapter 11's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.schedule import learning_rate_at
from gpt2edu.show import Verdict

LOG = """s:0 tel:11.0092
s:0 trl:11.0091 lr:0.000001 norm:15.37
s:250 tel:6.1710
s:250 eval:0.2519
s:500 tel:5.3743
s:750 tel:4.9000"""
RESTARTED = """s:0 tel:6.2500
s:10 tel:5.0000
s:20 tel:9.9000
s:10 trl:5.1000 lr:0.003000 norm:1.10
s:20 tel:4.5000
s:30 tel:4.2500"""


def check_learning_rate(answer: Callable[[int, float, int, int], float]) -> Verdict:
    """Exercise 1: `answer(step, peak, warmup_steps, n_steps)` is the recipe's learning rate, a cosine down to 0."""
    cases = []
    for peak, warmup_steps, n_steps in ((6e-4, 700, 18_865), (1.0, 4, 12), (3e-3, 0, 10)):
        for step in sorted({0, max(warmup_steps - 1, 0), warmup_steps, n_steps // 2, n_steps - 1}):
            exact = learning_rate_at(
                step, scheduler="cosine", peak=peak, warmup_steps=warmup_steps, n_steps=n_steps, final_fraction=0.0
            )
            cases.append(((step, peak, warmup_steps, n_steps), exact))
    return check_cases("learning rate (step, peak, warm-up, steps)", answer, cases, same=_close)


def _close(got: float, expected: float) -> bool:
    return bool(np.isclose(got, expected, rtol=1e-6, atol=1e-12))


def check_best_ending(answer: Callable[[Sequence[Sequence[float]]], int]) -> Verdict:
    """Exercise 2: `answer(losses)` is the number of the ending whose tokens have the lowest mean loss."""
    cases: list[tuple[tuple[list[list[float]]], int]] = [
        (([[6.0, 5.0], [4.0, 1.0, 2.0, 3.0, 2.5], [7.0, 4.0, 4.0], [3.0, 4.0, 8.0]],), 1),
        (([[2.0], [1.0, 1.5], [3.0], [1.0, 9.0]],), 1),
        (([[5.0, 5.0], [4.0], [1.0, 6.0, 1.0], [8.0]],), 2),
        (([[1.0, 1.0], [1.0], [2.0], [3.0]],), 0),  # of equal ones the first
    ]
    return check_cases("the ending with the lowest mean", answer, cases)


def check_steps_done_twice(answer: Callable[[Sequence[int], int], int]) -> Verdict:
    """Exercise 3: `answer(kills, every)` is how many steps a run with those hard kills does again.

    A kill at step k comes before a checkpoint of step k is written.
    """
    cases = []
    for kills, every in (([12_300], 5_000), ([], 100), ([5_000], 5_000), ([199, 201, 500], 100), ([1, 2, 3], 10)):
        again = sum(kill - _newest_before(kill, every) for kill in kills)
        cases.append(((kills, every), again))
    return check_cases("steps done twice (kills, every)", answer, cases)


def _newest_before(kill: int, every: int) -> int:
    return (kill - 1) // every * every if kill else 0


def check_validation_curve(answer: Callable[[str], dict[int, float]]) -> Verdict:
    """Exercise 4: `answer(text)` is the validation losses of a main.log by step; of two for a step, the later."""
    cases = [
        ((LOG,), {0: 11.0092, 250: 6.1710, 500: 5.3743, 750: 4.9}),
        ((RESTARTED,), {0: 6.25, 10: 5.0, 20: 4.5, 30: 4.25}),
        (("",), {}),
    ]
    return check_cases("validation losses of a log", answer, cases)
