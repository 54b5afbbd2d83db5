"""The checks behind the book's exercises, one module a chapter.

A check calls the reader's function on small cases and prints one verdict line. A starter that returns
None or raises NotImplementedError is "not yet" rather than wrong; no check lets an exception out, so a
notebook runs to its end whatever the reader wrote.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from gpt2edu.show import Verdict, show_check

NOT_YET = "not yet: the starter is still in place"


def check_cases(
    name: str,
    answer: Callable[..., Any],
    cases: Iterable[tuple[tuple[Any, ...], Any]],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> Verdict:
    """Print whether `answer(*arguments)` gives the expected value in every case, and return it.

    Args:
        name: the exercise, as the verdict line calls it.
        answer: the reader's function.
        cases: pairs of (arguments, expected value); the first one that fails is shown.
        same: compares the reader's value with the expected one (for arrays, pass `np.allclose` or the like).
    """
    n_cases = 0
    for arguments, expected in cases:
        shown = ", ".join(map(_short, arguments))
        try:
            got = answer(*arguments)
            if got is None:
                return show_check(name, False, NOT_YET)
            right = bool(same(got, expected))
        except NotImplementedError:
            return show_check(name, False, NOT_YET)
        except Exception as problem:  # whatever the reader's code raises is a verdict, not a crash
            return show_check(name, False, f"{shown} raised {type(problem).__name__}: {problem}")
        if not right:
            return show_check(name, False, f"for {shown} got {_short(got)}, expected {_short(expected)}")
        n_cases += 1
    return show_check(name, True, f"all {n_cases} cases")


def _short(value: Any) -> str:
    """Return `value` on one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
