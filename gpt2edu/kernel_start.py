"""What a run does before its first launch: compile its kernels with all cores of the machine, and say what is tuned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tqdm import tqdm

from gpt2edu.distributed import Communicator
from gpt2edu.errors import Gpt2EduError
from kernels.launch import Launch
from kernels.matmul import tuning
from kernels.precompile import compile_in_processes, current_capability, missing, usable_cores


def compile_ahead(launches: Iterable[Launch], communicator: Communicator) -> None:
    """Compile the kernels of these launches that are new to this machine; ranks of one machine share the work.

    Each rank begins at another place of the list and passes over what another rank has finished. No rank waits for the
    others: what is not there yet when it is launched is compiled then.
    """
    jobs = missing(launches)
    n_ranks = communicator.local_size
    n_workers = max(1, usable_cores() // n_ranks)
    if len(jobs) < 2 or n_workers * n_ranks < 2:
        return
    start = len(jobs) * communicator.local_rank // n_ranks
    done = compile_in_processes(jobs[start:] + jobs[:start], n_workers, current_capability())
    hidden = True if communicator.rank else None  # None: shown on a terminal only
    for _ in tqdm(done, "compiling kernels", len(jobs), leave=False, unit="kernel", disable=hidden):
        pass


def tuning_note(device: torch.device) -> str:
    """Return where the choices for the matrix products on this GPU come from.

    Raises:
        Gpt2EduError: the file that holds them is damaged.
    """
    try:
        return tuning.describe(torch.cuda.get_device_name(device))
    except ValueError as problem:
        raise Gpt2EduError(str(problem)) from problem
