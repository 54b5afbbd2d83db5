"""Averaging on several ranks: `mpiexec -n N python averaging_programs.py NAME ARGUMENTS`; see test_averaging.py."""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from rank_programs import CONFIG, random_flat

from gpt2edu.averaging import LADDER
from gpt2edu.distributed import Communicator, MpiCommunicator, make_communicator
from gpt2edu.errors import run_main
from gpt2edu.launcher import launched_world
from gpt2edu.parameters import shards_of_rank

WAYS = {**LADDER, "overlapped, bf16": functools.partial(LADDER["overlapped"], dtype=torch.bfloat16)}


class Counted:
    """Passes on what averaging asks of a communicator, and counts the messages."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator, self.n_messages, self.n_under_way = communicator, 0, 0
        self.world_size = communicator.world_size

    def all_reduce_mean(self, flat):
        self.n_messages += 1
        self.communicator.all_reduce_mean(flat)

    def begin_reduce_scatter_mean(self, flat, shards):
        self.n_messages += 1
        self.n_under_way += 1
        return self.communicator.begin_reduce_scatter_mean(flat, shards)

    def reduce_scatter_mean(self, flat, shards):
        self.n_messages += 1
        self.communicator.reduce_scatter_mean(flat, shards)

    def all_gather(self, flat, shards):
        self.communicator.all_gather(flat, shards)


def ladder(folder: str) -> None:
    """Average in every way, twice, and save what this rank got of its shards; buckets are complete in any order."""
    with make_communicator("cpu") as communicator:
        rank = communicator.rank
        shards = list(shards_of_rank(CONFIG, rank, communicator.world_size))
        found = {}
        for name, way in WAYS.items():
            flat, counted = torch.empty_like(random_flat(0)), Counted(communicator)
            averaging = way(counted, flat, shards)
            for turn in range(2):
                flat.copy_(random_flat(10 * turn + rank))
                for bucket, begun in ((1, 0), (0, 2)):  # the second waits for the first
                    averaging.ready(bucket)
                    if name.startswith("overlapped"):
                        assert counted.n_under_way == begun + 3 * turn
                averaging.finish()
                found[f"{name} {turn}"] = torch.cat([flat[shard.own] for shard in shards])
                averaging.gather()
                found[f"{name} {turn} whole"] = flat.clone()
            found[f"{name} messages"] = counted.n_messages / 2
        np.savez(Path(folder) / f"rank{rank}.npz", **found)


def shared_gpu(folder: str, *runs: str) -> None:
    """Run the training command with ranks that share a GPU: all they exchange goes through MPI's host buffers.

    Rank 0 saves loss and gradient norm of every step of all runs, every rank prints the bytes of its optimizer state.
    """
    from gpt2edu import train as command

    if launched_world()[1] > 1:
        command.make_communicator = lambda _device, _timeout: MpiCommunicator()
    outcomes = []
    command.report_step = lambda run, _step, outcome, _seconds: outcomes.append(
        (outcome.loss, outcome.grad_norm, sum(array.nbytes for array in run.engine.state_arrays().values()))
    )
    for arguments in runs:
        command.main(arguments.split())
    np.save(Path(folder) / f"outcomes{launched_world()[0]}.npy", np.array(outcomes))


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    run_main(lambda _: globals()[name](*arguments))
