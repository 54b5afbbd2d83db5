"""Errors a person can mend: one clear sentence, an exit code, no traceback.

Raise `UsageError` when the command line is wrong and `Gpt2EduError` for everything else that
the user can put right (a truncated file, a full disk, a missing folder). The message names the
file or flag, says what was wrong, and says what to do. Anything else that is raised is a defect of
ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class Gpt2EduError(Exception):
    """A problem outside the program that the user can put right."""

    exit_code = 1


class UsageError(Gpt2EduError):
    """The command line asks for something impossible or contradictory."""

    exit_code = 2


def run_main(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a command's `main(argv)` and leave with its exit code.

    `Gpt2EduError` prints as one `error: ...` line on stderr, once for all ranks; a full disk and Ctrl-C do so too. A
    rank that is killed is named.
    """
    from gpt2edu.launcher import end_all_ranks, guard_rank, launched_world  # which needs this module

    guard_rank()
    try:
        code = main(None) or 0
    except Gpt2EduError as problem:
        if launched_world()[1] > 1:
            end_all_ranks(problem)
        print(f"error: {problem}", file=sys.stderr)
        code = problem.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        print(f"error: {disk_full_message(problem.filename)}", file=sys.stderr)
        code = 1
    sys.exit(code)


def disk_full_message(path: object) -> str:
    """Return the one sentence for a full disk while `path` was written."""
    where = f" while writing {path}" if path else ""
    return f"the disk is full{where}; free some space and run the same command again, nothing is lost"
