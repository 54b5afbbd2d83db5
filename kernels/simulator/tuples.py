# ruff: noqa: D103 (the descriptions are in kernels/tuples.py)
"""The stand-ins of `kernels.tuples` in the simulator."""

from __future__ import annotations

import functools
from collections.abc import Callable


def _each(function: Callable, arguments: tuple, group: int) -> tuple:
    n = len(arguments[0])
    results = []
    for i in range(n // group):
        row = []
        for argument in arguments:
            if isinstance(argument, tuple) and len(argument) in (n, n // 2):
                size = len(argument) * group // n
                part = argument[size * i : size * (i + 1)]
                row.append(part[0] if size == 1 else part)
            else:
                row.append(argument)
        value = function(i, *row)
        results += value if isinstance(value, tuple) else [value]
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
