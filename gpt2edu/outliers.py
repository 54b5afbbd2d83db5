"""How unusual a loss or a gradient norm is, compared with those just before it."""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW = 128


class OutlierDetector:
    """Gives each new value its z-score within the last 128 values, itself included.

    Attributes:
        window: the values, oldest first; all that a checkpoint has to keep.

    Source: compare llm.c llmc/outlier_detector.h, which keeps running sums; here mean and deviation are computed
    from the window each time, so that they cannot drift.
    """

    def __init__(self, window: list[float] | None = None) -> None:
        self.window: deque[float] = deque(window or [], maxlen=WINDOW)

    def update(self, value: float) -> float:
        """Take in a value; return how many standard deviations it lies above the mean of the window.

        The answer is nan until the window was full before this value, and for a value that is not finite, which
        the window does not take in.
        """
        if not math.isfinite(value):
            return math.nan
        was_full = len(self.window) == WINDOW
        self.window.append(value)
        if not was_full:
            return math.nan
        mean = statistics.fmean(self.window)
        deviation = math.sqrt(statistics.fmean((x - mean) ** 2 for x in self.window))
        return (value - mean) / deviation if deviation else 0.0


def is_outlier(z: float, limit: float) -> bool:
    """Say whether a z-score is above `limit`; a limit of 0 switches the check off."""
    return limit != 0.0 and math.isfinite(z) and z > limit
