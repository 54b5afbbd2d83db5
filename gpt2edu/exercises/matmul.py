"""Checks of chapter 5's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict
from kernels import host

TILE = 16


def check_linear_backward(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple]) -> Verdict:
    """Exercise 1: `answer(grad_out_MN, inp_MK, weight_NK)` is the gradients of the input, the weight and the bias."""
    cases = []
    for seed, (M, N, K) in enumerate(((1, 2, 3), (5, 4, 7), (9, 1, 2))):
        rng = np.random.default_rng(seed)
        grad_out_MN, inp_MK, weight_NK = rng.normal(size=(M, N)), rng.normal(size=(M, K)), rng.normal(size=(N, K))
        expected = (
            np.einsum("mn,nk->mk", grad_out_MN, weight_NK),
            np.einsum("mn,mk->nk", grad_out_MN, inp_MK),
            np.einsum("mn->n", grad_out_MN),
        )
        cases.append(((grad_out_MN, inp_MK, weight_NK), expected))

    def same(got: tuple, expected: tuple) -> bool:
        shapes = [np.shape(g) for g in got] == [e.shape for e in expected]
        return shapes and all(np.allclose(g, e) for g, e in zip(got, expected, strict=True))

    return check_cases("gradients of a linear layer", answer, cases, same=same)


def check_flop_per_byte(answer: Callable[[int, int, int], float]) -> Verdict:
    """Exercise 2: `answer(rows, columns, itemsize)` is the FLOP for each byte that a block loads for its tile."""
    cases = []
    for rows, columns, itemsize in ((1, 1, 4), (16, 16, 4), (128, 128, 2), (128, 256, 2)):
        terms = 1024
        flop, n_bytes = 2 * rows * columns * terms, (rows + columns) * terms * itemsize
        cases.append(((rows, columns, itemsize), flop / n_bytes))
    return check_cases("FLOP per byte (rows, columns, itemsize)", answer, cases, same=np.isclose)


def check_swizzle(answer: Callable[[int, int], int]) -> Verdict:
    """Exercise 3: `answer(row, piece)` is where 16-byte piece `piece` of `row` lies, so that nobody meets in a bank."""

    def conflicts(row_of_eight: int) -> tuple[int, int] | None:
        rows = range(8 * row_of_eight, 8 * row_of_eight + 8)
        places = [[answer(row, piece) for piece in range(8)] for row in rows]
        if any(place is None for line in places for place in line):
            return None
        lost = sum(sorted(line) != list(range(8)) for line in places)
        meetings = sum(8 - len({line[piece] for line in places}) for piece in range(8))
        return lost, meetings

    return check_cases("rows with lost pieces, meetings in a bank", conflicts, [((n,), (0, 0)) for n in range(4)])


def check_tile_product(kernel: Any) -> Verdict:
    """Exercise 4: `kernel[(J/16, I/16), (16, 16)](out_IJ, a_IK, b_KJ)`, sizes multiples of 16, through shared tiles."""

    def answer(I: int, J: int, K: int) -> np.ndarray | None:  # noqa: E741 (the axis letter)
        a_IK, b_KJ = _operands(I, J, K)
        out_IJ = host.to_device(np.full((I, J), np.nan, np.float32))
        kernel[(J // TILE, I // TILE), (TILE, TILE)](out_IJ, host.to_device(a_IK), host.to_device(b_KJ))
        written_IJ = host.to_host(out_IJ)
        return None if np.isnan(written_IJ).all() else written_IJ

    cases = []
    for sizes in ((16, 16, 16), (32, 16, 48), (16, 48, 32)):
        a_IK, b_KJ = _operands(*sizes)
        cases.append((sizes, a_IK @ b_KJ))
    return check_cases("product by tiles (I, J, K)", answer, cases, same=np.array_equal)


def _operands(I: int, J: int, K: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: E741 (the axis letter)
    """Return small whole numbers, whose products and sums are exact in any order."""
    rng = np.random.default_rng(I + 2 * J + 3 * K)
    return tuple(rng.integers(-4, 5, size=shape).astype(np.float32) for shape in ((I, K), (K, J)))
