"""Checks of chapter 10's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict


def check_order_of_additions(answer: Callable[[int, int], list[int]]) -> Verdict:
    """Exercise 1: `answer(chunk, n)` is the order in which the ring adds the ranks' parts of a chunk."""
    cases = []
    for n in (2, 4, 5):
        for chunk in range(n):
            order, rank = [], chunk
            for _ in range(n):
                rank = rank + 1 if rank + 1 < n else 0
                order.append(rank)
            cases.append(((chunk, n), order))
    return check_cases("order of additions (chunk, n)", answer, cases, same=lambda got, order: list(got) == order)


def check_sent_bytes(answer: Callable[[int, int, int], float]) -> Verdict:
    """Exercise 2: `answer(n_parameters, n, zero_stage)` is what a rank of a ring sends in a step."""
    cases = []
    for n_parameters in (1000, 124_475_904):
        for n in (1, 2, 8):
            for zero_stage in (0, 1):
                a_chunk = n_parameters / n
                gathered = 2 if zero_stage else 4
                cases.append(((n_parameters, n, zero_stage), (n - 1) * a_chunk * (4 + gathered)))
    return check_cases("bytes sent (parameters, ranks, -z)", answer, cases, same=np.isclose)


def check_rank_bytes(answer: Callable[[int, int, int], float]) -> Verdict:
    """Exercise 3: `answer(n_parameters, n, stage)` is what a rank holds with ZeRO of this stage."""
    cases = []
    for n_parameters in (1000, 124_475_904):
        for n in (1, 8, 64):
            for stage in (0, 1, 2, 3):
                parts = [(2, stage == 3), (4, stage >= 2), (12, stage >= 1)]
                n_bytes = sum(size * n_parameters / (n if is_shared else 1) for size, is_shared in parts)
                cases.append(((n_parameters, n, stage), n_bytes))
    return check_cases("bytes held (parameters, ranks, stage)", answer, cases, same=np.isclose)


def check_exposed_ms(answer: Callable[[Sequence[float], Sequence[float]], float]) -> Verdict:
    """Exercise 4: `answer(ready_ms, send_ms)` is how long the last bucket arrives after the end of backward."""
    lists = (
        ([10], [4]),
        ([10, 20, 30], [4, 4, 4]),  # each is gone before the next is ready
        ([10, 20, 30], [25, 4, 4]),  # the first holds up the others
        ([10, 20, 30], [12, 12, 12]),
        ([0, 0, 50, 50], [30, 30, 1, 2]),
    )
    cases = []
    for ready_ms, send_ms in lists:
        arrived = max(ready_ms[first] + sum(send_ms[first:]) for first in range(len(ready_ms)))
        cases.append(((ready_ms, send_ms), arrived - ready_ms[-1]))
    return check_cases("not hidden", answer, cases, same=np.isclose)
