# ruff: noqa: D103 (the descriptions are in kernels/tuples.py)
"""The stand-ins of `kernels.tuples` in the simulator."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable


def _each(function: Callable, arguments: tuple, group: int) -> tuple:
    n = len(arguments[0])
    parts = []
    for argument in arguments:
        is_spread = isinstance(argument, tuple) and len(argument) in (n, n // 2)
        share = len(argument) * group // n if is_spread else 0
        if share == 0:
            parts.append(itertools.repeat(argument, n // group))
        elif share == 1:
            parts.append(argument)
        else:
            parts.append([argument[i : i + share] for i in range(0, len(argument), share)])
    results = []
    for i, row in enumerate(zip(*parts, strict=True)):
        value = function(i, *row)
        if isinstance(value, tuple):
            results += value
        else:
            results.append(value)
    return tuple(results)


def each(function: Callable, arguments: tuple) -> tuple:
    return _each(function, arguments, 1)


def each_pair(function: Callable, arguments: tuple) -> tuple:
    return _each(function, arguments, 2)


def each_four(function: Callable, arguments: tuple) -> tuple:
    return _each(function, arguments, 4)


def fold(function: Callable, values: tuple, start):
    even, odd = functools.reduce(function, values[0::2]), functools.reduce(function, values[1::2])
    return function(start, function(even, odd))


def upper_row(values: tuple) -> tuple:
    return tuple(x for i, x in enumerate(values) if not i & 2)


def lower_row(values: tuple) -> tuple:
    return tuple(x for i, x in enumerate(values) if i & 2)
