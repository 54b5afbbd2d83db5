"""What the tests run on several ranks: `mpiexec -n N python rank_programs.py NAME ARGUMENTS`."""

import itertools
import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import make_communicator, rank_zero_print
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.launcher import launched_world
from gpt2edu.parameters import n_parameters, shards_of_rank

CONFIG = ModelConfig.from_descriptor("d2,h3,c48,t12,v100")  # 1, 2, 3 and 4 ranks divide its tensors


def random_flat(seed: int) -> torch.Tensor:
    """Return values whose sum depends on the order of addition."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-12, 12, (n_parameters(CONFIG),), generator=generator)
    return torch.randn(n_parameters(CONFIG), generator=generator) * 2.0**scale


def collectives(folder: str) -> None:
    """Save what each rank gets."""
    with make_communicator("cpu") as communicator:
        rank = communicator.rank
        shards = list(shards_of_rank(CONFIG, rank, communicator.world_size))
        flat = random_flat(rank)
        communicator.reduce_scatter_mean(flat, shards)
        own = torch.cat([flat[shard.offset : shard.offset + shard.size] for shard in shards])
        communicator.all_gather(flat, shards)
        communicator.require_equal("nothing", 5)
        np.savez(
            Path(folder) / f"rank{rank}.npz",
            own=own,
            all=flat,
            gathered=communicator.gather(rank * 10),
            broadcast=communicator.broadcast(f"from {rank}", root=2),
            local_rank=communicator.local_rank,
            world_size=communicator.world_size,
        )
        rank_zero_print(communicator, "printed")
        communicator.barrier()


def fail(kind: str) -> None:
    """Fail on all ranks or on one, while the others wait."""
    if kind == "early" or (kind == "early one" and launched_world()[0] == 1):
        raise UsageError("-z 7 is wrong")
    with make_communicator("cpu") as communicator:
        if kind == "all":
            raise Gpt2EduError("the file is missing")
        if kind == "disagree":
            communicator.require_equal("the step", communicator.rank)
        if communicator.rank == 1:
            if kind == "one":
                raise Gpt2EduError("the disk of rank 1 is full")
            if kind == "defect":
                raise ZeroDivisionError("a defect")
            if kind == "abort":
                communicator.abort("stop", 5)
            if kind == "exit":
                print("no reason", file=sys.stderr)
                sys.exit(4)
        communicator.barrier()


def uncaught() -> None:
    """Raise outside of `with` and of `run_main`, on one rank."""
    communicator = make_communicator("cpu")
    if communicator.rank == 1:
        raise ZeroDivisionError("a defect")
    communicator.barrier()


def one_gpu() -> None:
    """Start as if the machine had one GPU."""
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="the only one")
    make_communicator("cuda")


def checkpoint(folder: str) -> None:
    """Save a checkpoint of known arrays, sharded."""
    from gpt2edu.checkpoint import save_checkpoint  # late: the other programs start faster without
    from gpt2edu.loader import TrainLoader

    with make_communicator("cpu") as communicator:
        ranks = {"rank": communicator.rank, "world_size": communicator.world_size}
        shards = list(shards_of_rank(CONFIG, **ranks))
        whole = {"m": random_flat(1), "v": random_flat(2)}
        save_checkpoint(
            Path(folder) / "run",
            6,
            config=CONFIG,
            flat_parameters=random_flat(0),
            state_arrays={k: torch.cat([a[s.offset : s.offset + s.size] for s in shards]) for k, a in whole.items()},
            settings=TrainConfig(),
            loader=TrainLoader(Path(folder) / "*.bin", 8, 8, **ranks, vocab_size=100),
            extra={},
            communicator=communicator,
        )


def train(folder: str, *runs: str) -> None:
    """Run the training command once for each line of arguments, and save what came of all steps.

    Rank 0 saves loss and gradient norm of each step, every rank the tokens that it put into the model.
    """
    from gpt2edu import train as command

    outcomes, tokens = [], []

    class NotedBatches(command.BatchStream):
        def advance(self):
            tokens.append(self.current[0])  # the engine has just taken them
            super().advance()

    command.BatchStream = NotedBatches
    command.report_step = lambda _run, _step, outcome, _seconds: outcomes.append((outcome.loss, outcome.grad_norm))
    for arguments in runs:
        command.main(arguments.split())
    rank = launched_world()[0]
    np.save(Path(folder) / f"tokens{rank}.npy", np.concatenate(tokens).reshape(len(outcomes), -1, tokens[0].shape[1]))
    if rank == 0:
        np.save(Path(folder) / "outcomes.npy", np.array(outcomes))


def doctor(kind: str = "") -> int:
    """Examine the ranks; if the sum is to be wrong, rank 1 spoils what it receives."""
    from gpt2edu.distributed import MpiCommunicator
    from gpt2edu.doctor import main

    if kind == "wrong" and launched_world()[0] == 1:
        gather = MpiCommunicator.all_gather

        def spoil(self, flat, shards):
            gather(self, flat, shards)
            flat[3] += 1

        MpiCommunicator.all_gather = spoil
    return main(["--mpi"])


def stuck(kind: str, rank: str) -> None:
    """Let one rank stop being a process that runs, or one that comes to the next operation, and the others wait."""
    with make_communicator("cpu", hang_timeout_s=2.0) as communicator:
        for name in communicator.names:
            rank_zero_print(communicator, name)
        for operation in range(100):
            if operation == 5 and communicator.rank == int(rank):
                if kind == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    time.sleep(1000)
            time.sleep(0.01)
            communicator.gather(operation)


def train_and_die(folder: str, deaths: str, *arguments: str) -> None:
    """Run the training command; in each start the next of `deaths` comes to pass, if any is left.

    Args:
        folder: where a file says when each of them came.
        deaths: separated by commas, each "place/rank/call/signal": the rank sends itself the signal in the call of that
            number, counted from 1, of what `place` names.
        arguments: of training.
    """
    from gpt2edu import checkpoint
    from gpt2edu import train as command
    from gpt2edu.distributed import MpiCommunicator

    pending = [death for death in deaths.split(",") if not mark_of(folder, death).exists()]
    if pending:
        place, rank, call, signal_name = pending[0].split("/")
        owner, name = {
            "step": (command, "report_step"),
            "collective": (MpiCommunicator, "_wait"),
            "checkpoint": (checkpoint, "sha256_file"),
        }[place]
        function, count = getattr(owner, name), itertools.count(1)

        def dying(*values, **options):
            if launched_world()[0] == int(rank) and next(count) == int(call):
                mark_of(folder, pending[0]).write_text(str(time.time()))
                os.kill(os.getpid(), signal.Signals[signal_name])
            return function(*values, **options)

        setattr(owner, name, dying)
    command.main(arguments)


def mark_of(folder: str | Path, death: str) -> Path:
    """Return the file that is there when a death has come to pass."""
    return Path(folder) / death.replace("/", "_")


def kernels(folder: str, *runs: str) -> None:
    """Run the training command with the numba engine in the simulator, once for each line of arguments.

    Rank 0 saves loss and gradient norm of every step of all runs; every rank the bytes of its optimizer state.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "gpt2edu"))
    from host_operations import HOST_OPERATIONS

    from gpt2edu import passes
    from gpt2edu import train as command

    for name, operation in HOST_OPERATIONS.items():
        setattr(passes, name, operation)
    outcomes, n_bytes = [], []

    def note(run, _step, outcome, _seconds):
        outcomes.append((outcome.loss, outcome.grad_norm))
        n_bytes[:] = [sum(array.nbytes for array in run.engine.state_arrays().values())]

    command.report_step = note
    for arguments in runs:
        command.main([*arguments.split(), "--backend", "numba"])
        rank = launched_world()[0]
        print(f"rank {rank} has {n_bytes[0]} bytes", file=sys.stderr)
    if rank == 0:
        np.save(Path(folder) / "outcomes.npy", np.array(outcomes))


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "uncaught":
        uncaught()
    else:
        run_main(lambda _: globals()[name](*arguments))
