"""Several processes that train one model: who is there, and how they add and share what they hold.

MPI starts and places the processes ("ranks") and carries everything small through host memory. On
NVIDIA GPUs, NCCL moves the gradients and the parameters. A process that no MPI launcher started
never imports MPI.

Every rank owns the same slice of every layer of every tensor (`parameters.shards_of_rank`), in both
modes of training. A reduction always leaves each rank with the mean of its own slices; plain data
parallelism then gathers the gradients, ZeRO-1 the updated parameters. One order of additions, so the
two modes agree bit for bit.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from gpt2edu.errors import Gpt2EduError
from gpt2edu.launcher import HANG_EXIT_CODE, abort_ranks, end_all_ranks, import_mpi, launched_world, own_mpiexec
from gpt2edu.parameters import Shard
from gpt2edu.watchdog import Watchdog

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 20e-6, 1e-3  # between two looks whether the other ranks are there


class Communicator(ABC):
    """What a rank needs of the others; used as `with make_communicator(device) as communicator`.

    An exception that leaves the `with` block ends all ranks, for the others would wait forever.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # counted on this machine
    local_size: int = 1  # ranks on this machine
    names: Sequence[str] = ()  # of all ranks, for messages; none for a process alone

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here; waiting ranks sleep, so the last one may take hours."""

    @abstractmethod
    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return `root`'s value on every rank."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""

    @abstractmethod
    def begin_reduce_scatter_mean(self, flat: torch.Tensor, shards: Iterable[Shard]) -> Callable[[], object]:
        """Begin to replace this rank's `shards` of `flat` (n,) by the mean over ranks; return what completes it.

        Until then `flat` must not change at the shards of any rank; afterwards it is undefined at those of others.
        Every rank begins the same operations in the same order.
        """

    def reduce_scatter_mean(self, flat: torch.Tensor, shards: Iterable[Shard]) -> None:
        """Replace this rank's `shards` of `flat` (n,) by the mean over ranks; the rest of `flat` is left undefined."""
        self.begin_reduce_scatter_mean(flat, shards)()

    @abstractmethod
    def all_reduce_mean(self, flat: torch.Tensor) -> None:
        """Replace `flat` (n,) by its mean over ranks."""

    @abstractmethod
    def all_gather(self, flat: torch.Tensor, shards: Iterable[Shard]) -> None:
        """Fill all of `flat` (n,), each slice from the rank that owns it."""

    @abstractmethod
    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print `message` to stderr and end every rank."""

    def require_equal(self, what: str, value: Any) -> None:
        """Check that every rank holds the same `value`.

        Raises:
            Gpt2EduError: on every rank alike, when one differs.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise Gpt2EduError(
                    f"the ranks disagree on {what}: rank 0 has {values[0]!r} and rank {rank} has {other!r}; "
                    "start all ranks with the same command and the same files"
                )

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _traceback: object) -> None:
        return None


def rank_zero_print(communicator: Communicator, *values: object, **options: Any) -> None:
    """Print on rank 0 only, at once."""
    if communicator.rank == 0:
        print(*values, flush=True, **options)


class SingleProcess(Communicator):
    """One process: it owns everything, and nothing needs to move."""

    def barrier(self) -> None:
        """Do nothing."""

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return `value`."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return `[value]`."""
        return [value]

    def begin_reduce_scatter_mean(self, flat: torch.Tensor, shards: Iterable[Shard]) -> Callable[[], object]:
        """Leave `flat`: the mean over one rank."""
        return lambda: None

    def all_reduce_mean(self, flat: torch.Tensor) -> None:
        """Leave `flat`: the mean over one rank."""

    def all_gather(self, flat: torch.Tensor, shards: Iterable[Shard]) -> None:
        """Leave `flat`: this rank owns all of it."""

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print `message` and exit."""
        print(message, file=sys.stderr, flush=True)
        sys.exit(code)


class MpiCommunicator(Communicator):
    """Ranks that MPI started, exchanging host memory. The sum of a reduction is taken in rank order."""

    def __init__(self) -> None:
        """Join the ranks; a launcher of another MPI than mpi4py's ends them.

        Raises:
            Gpt2EduError: mpi4py or its MPI library is missing.
        """
        self._mpi = import_mpi()
        self._world = self._mpi.COMM_WORLD
        self.rank, self.world_size = launched_world()
        if self.world_size != self._world.size:
            end_all_ranks(
                Gpt2EduError(
                    f"the launcher started {self.world_size} processes but mpi4py's MPI sees {self._world.size}, so "
                    f"they are different MPIs: start with {own_mpiexec()}, or under Slurm with srun --mpi=pmi2"
                )
            )
        node = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.rank, node.size
        node.Free()
        self.hang_timeout_s: float | None = None  # a watchdog is kept in the `with` block when it is set
        self._watchdog: Watchdog | None = None
        self.names = self.gather(f"rank {self.rank} is process {os.getpid()} on {socket.gethostname()}")
        sys.excepthook = lambda _kind, problem, _traceback: end_all_ranks(problem)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._begin()
        self._wait(self._world.Ibarrier())

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return `root`'s value (any object that pickles)."""
        return self.gather(value if self.rank == root else None)[root]

    def gather(self, value: Any) -> list[Any]:
        """Return all ranks' values (any objects that pickle)."""
        self._begin()
        own = self._mpi.pickle.dumps(value)
        sizes = np.empty(self.world_size, np.int32)
        self._wait(self._world.Iallgather(np.array([len(own)], np.int32), sizes))
        received = bytearray(sizes.sum())
        self._wait(self._world.Iallgatherv(own, (received, sizes)))
        ends = np.cumsum(sizes)
        return [self._mpi.pickle.loads(received[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def begin_reduce_scatter_mean(self, flat: torch.Tensor, shards: Iterable[Shard]) -> Callable[[], object]:
        """Begin to send every rank its slices, all in one message; what arrives is added in rank order.

        MPI's own reduce-scatter adds in an order that depends on the algorithm it picks.
        """
        self._begin()
        shards = list(shards)
        sent = torch.cat([self._by_rank(flat, shard) for shard in shards], dim=1).cpu()
        received = torch.empty_like(sent)
        request = self._world.Ialltoall(_bits(sent), _bits(received))

        def complete() -> None:
            self._wait(request)
            _put([flat[shard.own] for shard in shards], self._mean(received).to(flat.device))

        return complete

    def all_reduce_mean(self, flat: torch.Tensor) -> None:
        """Send all of `flat` to every rank, which adds what arrives in rank order: simple, and more than needed."""
        self._begin()
        received = torch.empty(self.world_size, len(flat), dtype=flat.dtype)
        self._wait(self._world.Iallgather(_bits(flat.cpu()), _bits(received)))
        flat.copy_(self._mean(received))

    def all_gather(self, flat: torch.Tensor, shards: Iterable[Shard]) -> None:
        """Send this rank's slices, all in one message, to every rank."""
        self._begin()
        shards = list(shards)
        sent = torch.cat([flat[shard.own] for shard in shards]).cpu()
        received = sent.new_empty(self.world_size, len(sent))
        self._wait(self._world.Iallgather(_bits(sent), _bits(received)))
        _put([self._by_rank(flat, shard) for shard in shards], received.to(flat.device))

    def abort(self, message: str, code: int = 1) -> NoReturn:
        """Print `message` and end every rank with exit code `code`."""
        abort_ranks(message, code)

    def __enter__(self) -> Communicator:
        if self.hang_timeout_s:
            names = [name.replace(" is process ", " (process ") + ")" for name in self.names]
            end = functools.partial(abort_ranks, code=HANG_EXIT_CODE)
            self._watchdog = Watchdog(self.rank, names, self._open_store(), self.hang_timeout_s, end)
            self.barrier()
            self._watchdog.start()
        return self

    def __exit__(self, _kind: object, problem: BaseException | None, _traceback: object) -> None:
        leaves_well = isinstance(problem, SystemExit) and not problem.code
        if problem is not None and not leaves_well:
            end_all_ranks(problem)
        if self._watchdog:
            self._watchdog.stop()

    def _open_store(self) -> dist.TCPStore:
        """Return a connection to a new store that rank 0 holds; every rank calls this."""
        host = "127.0.0.1" if self.local_size == self.world_size else socket.gethostname()
        # port 0: the system picks a free one, and rank 0 holds it from then on
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if self.rank == 0 else None
        host, port = self.broadcast((host, store.port if store else None))
        return store or dist.TCPStore(host, port)

    def _begin(self) -> None:
        """Let the others know that this rank has come to its next operation."""
        if self._watchdog:
            self._watchdog.begin_operation()

    def _wait(self, request: Any) -> None:
        """Wait until an operation is complete; MPI's own wait would keep a core busy, which other ranks may need."""
        pause_s = SHORTEST_PAUSE_S
        while not request.Test():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if self._watchdog:
            self._watchdog.end_operation()

    def _mean(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the mean of the ranks' parts (world_size, k), added in rank order in fp32."""
        mean = parts[0].float()
        for part in parts[1:]:
            mean += part
        return mean.div_(self.world_size)

    def _by_rank(self, flat: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Return a view of what `shard` and its equals on the other ranks cover: (world_size, shard.size)."""
        return flat[shard.all_ranks].view(self.world_size, -1)


class NcclCommunicator(MpiCommunicator):
    """Ranks with one NVIDIA GPU each: NCCL moves device buffers, MPI everything else."""

    def __init__(self) -> None:
        """Give this rank its GPU (it becomes torch's current device) and join NCCL.

        Raises:
            Gpt2EduError: on every rank alike, when two ranks would share a GPU.
        """
        super().__init__()
        n_gpus = torch.cuda.device_count()
        device = torch.device("cuda", self.local_rank % n_gpus) if n_gpus else None
        name = socket.gethostname()
        uuid = str(torch.cuda.get_device_properties(device).uuid) if device else None
        refuse_shared_gpus(self.gather((name, uuid)))
        torch.cuda.set_device(device)
        store = self._open_store()
        dist.init_process_group("nccl", store=store, rank=self.rank, world_size=self.world_size, device_id=device)
        # the same two functions, renamed by torch 2.13
        self._reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        self._all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def begin_reduce_scatter_mean(self, flat: torch.Tensor, shards: Iterable[Shard]) -> Callable[[], object]:
        """Begin to reduce in place, on a stream of NCCL's own after what is on the current one; the host never waits.

        Completing it makes the current stream wait. NCCL sends a group of operations as one.
        """
        self._begin()
        with dist._coalescing_manager(async_ops=True) as group:
            for shard in shards:
                self._reduce_scatter(flat[shard.own], flat[shard.all_ranks], dist.ReduceOp.AVG)
        return group.wait

    def all_reduce_mean(self, flat: torch.Tensor) -> None:
        """Reduce in place on the device; the host does not wait."""
        self._begin()
        dist.all_reduce(flat, dist.ReduceOp.AVG)

    def all_gather(self, flat: torch.Tensor, shards: Iterable[Shard]) -> None:
        """Gather in place on the device, all slices as one group; the host does not wait."""
        self._begin()
        with dist._coalescing_manager():
            for shard in shards:
                self._all_gather(flat[shard.all_ranks], flat[shard.own])

    def __exit__(self, kind: object, problem: BaseException | None, traceback_: object) -> None:
        super().__exit__(kind, problem, traceback_)
        dist.destroy_process_group()


def make_communicator(device: str, hang_timeout_s: float | None = None) -> Communicator:
    """Return the communicator for this process: alone, or one of several ranks on "cpu" or "cuda".

    With `hang_timeout_s`, a rank for which the others wait longer ends all ranks (`gpt2edu.watchdog`).

    Raises:
        Gpt2EduError: MPI is missing. Any other error prints its sentence once and ends all ranks.
    """
    if launched_world()[1] == 1:
        return SingleProcess()
    with MpiCommunicator() as communicator:
        communicator.require_equal("--device", device)
        if not device.startswith(("cuda", "cpu")):
            raise Gpt2EduError(f"--device {device} has no several ranks: use cpu or cuda, or start without mpirun")
        chosen = NcclCommunicator() if device.startswith("cuda") else communicator
    chosen.hang_timeout_s = hang_timeout_s
    return chosen


def refuse_shared_gpus(gpus: Sequence[tuple[str, str | None]]) -> None:
    """Check that no two ranks have the same (machine, GPU), and that each rank has one.

    Raises:
        Gpt2EduError: they do; the sentence says how many ranks fit.
    """
    for rank, (machine, gpu) in enumerate(gpus):
        if gpu is None:
            raise Gpt2EduError(f"rank {rank} finds no GPU on {machine}: check nvidia-smi there, or use --device cpu")
        if (machine, gpu) in gpus[:rank]:
            n_there = len({pair for pair in gpus if pair[0] == machine})
            raise Gpt2EduError(
                f"ranks {gpus.index((machine, gpu))} and {rank} would share a GPU of {machine}: "
                f"start at most {n_there} ranks there (mpiexec -n)"
            )


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of the host as MPI takes it; NumPy has no bfloat16, but the bits are only moved."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _put(slices: list[torch.Tensor], values: torch.Tensor) -> None:
    """Copy `values` (..., k) to slices that lie one after another in it."""
    for target, part in zip(slices, values.split([target.shape[-1] for target in slices], dim=-1), strict=True):
        target.copy_(part)
