"""Stopping a run early and in order: SIGTERM and Ctrl-C let the step finish."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from gpt2edu.distributed import Communicator


class StopRequest:
    """Notes SIGTERM and Ctrl-C while its `with` block runs; a second Ctrl-C stops at once (KeyboardInterrupt).

    Attributes:
        signal: the number of the first signal that came, None before.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if sys.stderr.isatty():
            os.write(2, b"\nfinishing this step; Ctrl-C again stops at once\n")  # print() is not safe in a handler

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def agree(communicator: Communicator, stop: int | None) -> int | None:
    """Return the signal that any rank has noted: all ranks stop at the same step."""
    return max(communicator.gather(stop or 0)) or None


def farewell(stopped_by: int, step: int, output_dir: str | None) -> str:
    """Return the sentence that says what stopped the run and how to go on."""
    name = signal.Signals(stopped_by).name
    if output_dir is None:
        return f"stopped by {name} after step {step}; nothing was saved, for there is no -o"
    return f"stopped by {name} after step {step}; go on with the same command and -y 1"
