"""Start a training on several ranks, watch over it, and start it again when it breaks: `python -m gpt2edu.launch`.

mpiexec ends a job when one of its processes dies, and says which process it was; this says which rank.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from gpt2edu.cli import parse_settings
from gpt2edu.errors import UsageError, run_main
from gpt2edu.machine import find_mpiexec

EXAMPLE = """\
example
  python -m gpt2edu.launch -n 8 --restarts 3 -- -i 'train_*.bin' -j 'val_*.bin' -o log124M -e d12 -b 64 -z 1 -n 1000"""
KILLED = re.compile(r"=   PID (\d+) RUNNING AT (\S+)")  # as mpiexec of MPICH says it
RANK_OF_PROCESS = re.compile(r"rank (\d+) is process (\d+) on (\S+)")  # as `distributed.rank_names` says it
FOR_A_PERSON_TO_MEND = {2}  # exit code of a wrong command line


class Job:
    """One start of the ranks: its output is passed on, and read for who is who and who died."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._ranks: dict[tuple[str, str], str] = {}  # by process and machine
        self.died: str | None = None

    def forward(self, number: int, _frame: object) -> None:
        """Pass a signal on to the ranks, which stop after their step."""
        self._process.send_signal(number)

    def run(self) -> int:
        """Print what the ranks print until they end; return mpiexec's exit code."""
        assert self._process.stdout
        for line in self._process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            for rank, process, machine in RANK_OF_PROCESS.findall(line):
                self._ranks[process, machine] = rank
            if killed := KILLED.search(line):
                process, machine = killed.groups()
                rank = self._ranks.get((process, machine), "?")
                self.died = f"rank {rank} (process {process} on {machine}) died"
        return self._process.wait()


def supervise(start: Sequence[str], flags: Sequence[str], restarts: int) -> int:
    """Run a training until it ends well, or has broken more often than `restarts`; return its exit code.

    Args:
        start: the command that starts the ranks, up to training's flags.
        flags: training's.
        restarts: how often it may be started again, each time from the last complete checkpoint.
    """
    flags, stopped_by = list(flags), None
    for attempt in range(restarts + 1):
        job = Job([*start, *flags])

        def stop(number: int, frame: object, job: Job = job) -> None:
            nonlocal stopped_by
            stopped_by = number
            job.forward(number, frame)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        code = job.run()
        if code == 0 or stopped_by or code in FOR_A_PERSON_TO_MEND:
            return code
        what = job.died or f"the job ended with exit code {code}"
        if attempt == restarts:
            print(f"{what}; go on from the last complete checkpoint with the same command and -y 1", flush=True)
            return code or 1
        print(f"{what}; restart {attempt + 1} of {restarts}, from the last complete checkpoint", flush=True)
        flags = [*(flag for flag in flags if flag != "--overwrite"), "-y", "1"]
    raise AssertionError("every attempt returns or is followed by another")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the training's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.launch",
        description="Start gpt2edu.train on several ranks with mpiexec, and start it again when it breaks.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", dest="ranks", type=int, required=True, metavar="N", help="ranks: one for each GPU")
    parser.add_argument("--hostfile", metavar="FILE", help="machines to start on, one a line")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="start again up to N times (default 0)")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --, the flags of gpt2edu.train")
    options = parser.parse_args(argv)
    flags = options.flags[1:] if options.flags[:1] == ["--"] else options.flags
    settings = parse_settings(flags)  # a wrong one is said once, before anything is started
    if options.restarts < 0 or options.ranks < 1:
        raise UsageError("-n is at least 1 and --restarts at least 0")
    if options.restarts and not (settings.output_dir and settings.checkpoint_every):
        raise UsageError("--restarts goes on from checkpoints, and there are none without -o FOLDER and -n STEPS")
    hosts = ["-f", options.hostfile] if options.hostfile else []
    start = [find_mpiexec(), *hosts, "-n", str(options.ranks), sys.executable, "-m", "gpt2edu.train"]
    return supervise(start, flags, options.restarts)


if __name__ == "__main__":
    run_main(main)
