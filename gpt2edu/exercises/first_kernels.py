"""Checks of chapter 4's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict
from kernels import SIMULATED, host
from kernels.simulator.execution import reversed_order

WARP_SIZE, SECTOR_BYTES = 32, 32
GUARD = 64
"""Elements on each side of an output that the reader's kernel must leave alone."""


def check_place(answer: Callable[[int, int], tuple[int, int, int]]) -> Verdict:
    """Exercise 1: `answer(i, block)` is (block index, warp in the block, lane) of the thread that owns element i."""
    cases = []
    for i, block in ((0, 64), (63, 64), (64, 64), (1000, 256), (999_999, 1024), (100, 96)):
        t = i % block
        cases.append(((i, block), (i // block, t // WARP_SIZE, t % WARP_SIZE)))
    return check_cases("place", answer, cases, same=lambda got, expected: tuple(got) == expected)


def check_scale(kernel: Any) -> Verdict:
    """Exercise 2: `kernel[grid, block](out_N, inp_N, factor)` multiplies, whatever the size and the launch."""

    def answer(n: int, grid: int, block: int) -> np.ndarray | None:
        return _run(kernel, grid, block, n, _numbers(n), np.float32(1.5))

    launches = ((64, 1, 64), (100, 2, 64), (1, 1, 32), (100, 1, 32), (50, 3, 32))
    cases = [((n, grid, block), _numbers(n) * np.float32(1.5)) for n, grid, block in launches]
    return check_cases("scale (N, blocks, threads)", answer, cases, same=np.array_equal)


def check_sectors(answer: Callable[[int, int], int]) -> Verdict:
    """Exercise 3: `answer(stride, itemsize)` counts the sectors of a load where lane l reads element l * stride."""
    cases = []
    for stride, itemsize in ((1, 4), (2, 4), (8, 4), (100, 4), (1, 2), (3, 2), (5, 2), (0, 4), (1, 16)):
        touched = {
            byte // SECTOR_BYTES
            for lane in range(WARP_SIZE)
            for byte in range(lane * stride * itemsize, (lane * stride + 1) * itemsize)
        }
        cases.append(((stride, itemsize), len(touched)))
    return check_cases("sectors (stride, bytes of an element)", answer, cases)


def check_neighbours(kernel: Any) -> Verdict:
    """Exercise 4: with blocks of 64, thread t writes the greatest of elements t - 1, t and t + 1 of its block."""

    def answer(n_blocks: int) -> np.ndarray | None:
        x = _numbers(64 * n_blocks)
        out = _run(kernel, n_blocks, 64, x.size, x)
        if out is not None and SIMULATED:
            with reversed_order():
                other = _run(kernel, n_blocks, 64, x.size, x)
            if not np.array_equal(out, other):
                raise ValueError("the result depends on the order in which threads run: is a barrier missing?")
        return out

    cases = []
    for n_blocks in (1, 3, 8):
        padded = np.pad(_numbers(64 * n_blocks).reshape(n_blocks, 64), ((0, 0), (1, 1)), mode="edge")
        cases.append(((n_blocks,), np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:]).ravel()))
    return check_cases("neighbours (blocks)", answer, cases, same=np.array_equal)


def _numbers(n: int) -> np.ndarray:
    """Return n different small numbers, in no simple order."""
    return np.random.default_rng(n).permutation(n).astype(np.float32) - 5


def _run(kernel: Any, grid: int, block: int, n: int, *inputs: Any) -> np.ndarray | None:
    """Launch the reader's kernel; None if it wrote nothing.

    Raises:
        ValueError: it wrote outside its output.
    """
    around = host.to_device(np.full(n + 2 * GUARD, np.nan, np.float32))
    kernel[grid, block](
        around[GUARD : GUARD + n], *(host.to_device(x) if isinstance(x, np.ndarray) else x for x in inputs)
    )
    written = host.to_host(around)
    outside = np.delete(written, np.s_[GUARD : GUARD + n])
    if not np.isnan(outside).all():
        raise ValueError("it wrote outside out_N")
    out = written[GUARD : GUARD + n]
    return None if np.isnan(out).all() else out
