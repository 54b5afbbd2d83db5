"""The MPI launcher (mpiexec, srun): whether it started this process among others, and how to end them all.

A process that was started alone never imports MPI.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gpt2edu.errors import Gpt2EduError

# how MPICH and Intel MPI, Open MPI, and srun tell a process its rank and the number of ranks. A Slurm batch
# script has SLURM_PROCID as well; only a process of srun has the number of tasks of its step.
VARIABLES = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
RANK_ZERO_SPEAKS_S = 3.0  # by then rank 0 has said what it found, on a busy machine too, and has ended the others
HANG_EXIT_CODE = 75  # "temporary failure, try again" in sysexits.h
FORWARDING_S = 0.5  # the launcher drops the output that it has not passed on when a job is aborted
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent ends


def launched_world(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (rank, number of ranks) as the launcher set them; (0, 1) for a process started alone."""
    for rank_name, size_name in VARIABLES:
        if rank_name in environ and int(environ.get(size_name, 1)) > 1:
            return int(environ[rank_name]), int(environ[size_name])
    return 0, 1


def guard_rank() -> None:
    """Go on in a child, if this is one of several ranks; this process waits, and says it when a signal ends the child.

    A launcher ends the other ranks when one dies, and then may name any of them. Ctrl-C and SIGTERM reach the whole
    process group. Without Linux there is no guard, for nothing would end the child of a guard that is killed.
    """
    rank, n_ranks = launched_world()
    if n_ranks == 1 or sys.platform != "linux":
        return
    sys.stdout.flush()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        name, code = signal.Signals(-code).name, 128 - code
        where = f"process {child} on {socket.gethostname()}"
        print(f"error: rank {rank} ({where}) died of {name}", file=sys.stderr, flush=True)
        time.sleep(FORWARDING_S)
    os._exit(code)


def end_all_ranks(problem: BaseException) -> NoReturn:
    """End every rank because of `problem`. What all ranks found is printed once: rank 0 speaks first and ends them.

    It takes no part in any collective operation, for the other ranks may be anywhere.
    """
    rank = launched_world()[0]
    if rank:
        with contextlib.suppress(Gpt2EduError):
            import_mpi()  # so that rank 0 can reach this one
        time.sleep(RANK_ZERO_SPEAKS_S + 0.05 * rank)
    where = f"rank {rank}: " if rank else ""
    if isinstance(problem, Gpt2EduError):
        abort_ranks(f"error: {where}{problem}", problem.exit_code)
    if isinstance(problem, KeyboardInterrupt):
        abort_ranks("interrupted", 130)
    if isinstance(problem, SystemExit):
        code, message = (problem.code, "") if isinstance(problem.code, int) else (1, str(problem.code))
        abort_ranks(message, code)
    abort_ranks(where + "".join(traceback.format_exception(problem)), 1)


def abort_ranks(message: str, code: int) -> NoReturn:
    """Print `message` to stderr, if there is one, and end every rank with exit code `code`."""
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    time.sleep(FORWARDING_S)
    try:
        import_mpi().COMM_WORLD.Abort(code)
    finally:
        os._exit(code)


def own_mpiexec() -> str:
    """Return the mpiexec that was installed beside this Python, if there is one."""
    path = Path(sys.executable).with_name("mpiexec")
    return str(path) if path.exists() else "the mpiexec of the MPI that mpi4py was built for"


def import_mpi() -> Any:
    """Import MPI, which starts it and waits for the other ranks to do so.

    Raises:
        Gpt2EduError: there is no mpi4py, or no MPI library for it.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as problem:
        reason = str(problem).splitlines()[0]
        raise Gpt2EduError(
            f"several processes were started but MPI cannot be loaded ({reason}); pip install mpi4py mpich"
        ) from problem
    return MPI
