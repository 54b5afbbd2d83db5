"""Programs that train on several ranks, which the book runs with `gpt2edu.show_ranks.run_mpi`."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import torch

from gpt2edu import train as trainer
from gpt2edu.averaging import LADDER
from gpt2edu.cli import parse_settings
from gpt2edu.config import ModelConfig
from gpt2edu.distributed import make_communicator
from gpt2edu.errors import run_main
from gpt2edu.parameters import n_parameters, shards_of_rank
from gpt2edu.run import prepare_run

MODEL = "d2,h2,c16,t16,v100"


def train_runs(*lines: str) -> list[dict[str, Any]]:
    """Train once for each line of flags, with the trainer's own steps; return what came of each on this rank."""
    found = []
    for line in lines:
        settings = parse_settings(line.split())
        with make_communicator("cpu") as ranks:
            run = prepare_run(settings, torch.device("cpu"), ranks, say=lambda _text: None)
            batches = trainer.BatchStream(run)
            losses = [trainer.train_step(run, step, batches).loss for step in range(run.n_steps)]
            state = sum(array.nbytes for array in run.engine.state_arrays().values())
            weights = _checksum(run.engine.whole_parameters())
        found.append({"losses": losses, "weights": weights, "state_bytes": state})
    return found


def average(*names: str) -> dict[str, tuple[str, int]]:
    """Average random gradients in each way of the ladder; return a checksum of this rank's part, and the messages."""
    config = ModelConfig.from_descriptor(MODEL)
    found = {}
    with make_communicator("cpu") as ranks:
        shards = list(shards_of_rank(config, ranks.rank, ranks.world_size))
        generator = torch.Generator().manual_seed(ranks.rank)
        gradients = torch.randn(n_parameters(config), generator=generator)
        for name in names:
            flat, messages = gradients.clone(), []
            for method in ("begin_reduce_scatter_mean", "all_reduce_mean"):
                _note_calls(ranks, method, messages)
            LADDER[name](ranks, flat, shards).finish()
            own = torch.cat([flat[shard.offset : shard.offset + shard.size] for shard in shards])
            found[name] = _checksum(own), len(messages)
    return found


def _checksum(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def _note_calls(ranks: Any, method: str, calls: list[str]) -> None:
    function = getattr(type(ranks), method)

    def noting(*arguments: object) -> Any:
        calls.append(method)
        return function(ranks, *arguments)

    vars(ranks)[method] = noting


def train_and_die(mark: str, rank: str, step: str, *flags: str) -> int:
    """Train; after a step one rank kills itself as `kill -9` would, unless the file `mark` says it has done so."""
    report = trainer.report_step

    def die(run, number, outcome, seconds):
        report(run, number, outcome, seconds)
        if number + 1 == int(step) and run.communicator.rank == int(rank) and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.report_step = die
    return trainer.main(flags)


if __name__ == "__main__":
    import sys

    run_main(lambda _: train_and_die(*sys.argv[1:]))
