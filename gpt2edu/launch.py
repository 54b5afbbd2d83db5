"""Start a training on several ranks, watch over it, and start it again when it breaks: `python -m gpt2edu.launch`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpt2edu.cli import parse_settings
from gpt2edu.errors import UsageError, run_main
from gpt2edu.machine import find_mpiexec
from gpt2edu.supervisor import supervise

EXAMPLE = """\
example
  python -m gpt2edu.launch -n 8 --restarts 3 -- -i 'train_*.bin' -j 'val_*.bin' -o log124M -e d12 -b 64 -z 1 -n 1000"""


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
    ended = supervise(start, flags, options.restarts)
    if ended.code and not ended.stopped_by:
        print(f"{ended.what}; go on from the last complete checkpoint with the same command and -y 1", flush=True)
    return ended.code


if __name__ == "__main__":
    run_main(main)
