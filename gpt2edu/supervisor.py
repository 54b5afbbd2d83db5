"""Start a training, watch over it, and start it again when it breaks."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2edu.stopping import StopRequest

DIED = re.compile(r"error: (rank \d+ \(process \d+ on \S+\) (?:died of \w+|is stuck))")  # the first to say so is right
FOR_A_PERSON_TO_MEND = {2}  # exit code of a wrong command line


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    Attributes:
        code: its exit code, 128 + the signal's number for a process that one killed.
        stopped_by: the signal that was passed on to it.
        what: a few words on what broke, naming the rank that died.
    """

    code: int
    stopped_by: int | None
    what: str


class Job:
    """One start of a training: its output is passed on, and read for who died."""

    def __init__(self, command: Sequence[str]) -> None:
        # a session of its own: a Ctrl-C at the terminal then reaches the ranks once, from here
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def send_signal(self, number: int) -> None:
        """Pass a signal on: the ranks stop after their step."""
        self._process.send_signal(number)

    def run(self, stopped_by: int | None) -> tuple[int, str]:
        """Print what the ranks print until they end; return the exit code, and what happened to them."""
        if stopped_by:
            self.send_signal(stopped_by)
        found = ""
        assert self._process.stdout
        for line in self._process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if not found and (died := DIED.search(line)):
                found = died[1]
        code = self._process.wait()
        if code < 0:
            return 128 - code, f"process {self._process.pid} died of {signal.Signals(-code).name}"
        return code, found or f"training ended with exit code {code}"


def supervise(start: Sequence[str], flags: Sequence[str], restarts: int) -> Ended:
    """Run a training until it ends well, or has broken more often than `restarts`.

    SIGTERM and Ctrl-C are passed on to it, and end it.

    Args:
        start: the command that starts it, alone or on several ranks, up to training's flags.
        flags: training's.
        restarts: how often it may be started again, each time from the last complete checkpoint.
    """
    job: Job | None = None
    stopped_by: int | None = None

    def stop(number: int, _frame: object) -> None:
        nonlocal stopped_by
        stopped_by = stopped_by or number
        if job:
            job.send_signal(number)

    previous = {number: signal.signal(number, stop) for number in StopRequest.SIGNALS}
    try:
        for attempt in range(restarts + 1):
            job = Job([*start, *(going_on(flags) if attempt else flags)])
            code, what = job.run(stopped_by)
            if code == 0 or stopped_by or code in FOR_A_PERSON_TO_MEND or attempt == restarts:
                break
            print(f"{what}; restart {attempt + 1} of {restarts}, from the last complete checkpoint", flush=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return Ended(code, stopped_by, what)


def going_on(flags: Sequence[str]) -> list[str]:
    """Return training's flags for one that goes on from its checkpoints."""
    return [*(flag for flag in flags if flag != "--overwrite"), "-y", "1"]
