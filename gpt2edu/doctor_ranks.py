"""Are these ranks ready to train? `mpirun -np N python -m gpt2edu.doctor --mpi`: who is where, and how fast it is."""

from __future__ import annotations

import platform
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpt2edu.distributed import Communicator, make_communicator, refuse_shared_gpus
from gpt2edu.doctor import Check
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.launcher import launched_world
from gpt2edu.parameters import ParameterTensor, Shard

HANG_TIMEOUT_S = 60.0
GPU_BYTES, HOST_BYTES = 1 << 28, 1 << 22  # of a buffer, in all
REPEATS = 5
SLOW_BYTES_PER_S = 5e9  # less than half of what PCIe 3 carries
TOPOLOGY = "nvidia-smi topo -m; NCCL_DEBUG=INFO mpiexec -n 2 python -m gpt2edu.doctor --mpi"


@dataclass(frozen=True)
class Seat:
    """Where a rank is, and what it works with."""

    machine: str
    local_rank: int
    gpu: str | None  # name
    gpu_id: str | None  # UUID
    versions: str


def own_seat(local_rank: int) -> Seat:
    """Return this rank's seat: the GPU that training would give it."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    n_gpus = torch.cuda.device_count()
    if not n_gpus:
        return Seat(socket.gethostname(), local_rank, None, None, versions)
    gpu = torch.cuda.get_device_properties(local_rank % n_gpus)
    return Seat(socket.gethostname(), local_rank, gpu.name, str(gpu.uuid), versions)


def examine_ranks() -> list[Check]:
    """Run the checks; every rank calls this, and all get the same lines.

    Raises:
        UsageError: this process was started alone.
    """
    if launched_world()[1] == 1:
        raise UsageError("--mpi examines several ranks: mpiexec -n 2 python -m gpt2edu.doctor --mpi")
    with make_communicator("cpu", HANG_TIMEOUT_S) as ranks:
        seats = ranks.gather(own_seat(ranks.local_rank))
        checks = [check_seats(ranks.names, seats), check_versions(seats), check_gpus(seats)]
        with_gpus = checks[-1].ok and seats[0].gpu is not None
        if not with_gpus:
            return [*checks, *check_sums(ranks, torch.device("cpu"))]
    with make_communicator("cuda", HANG_TIMEOUT_S) as ranks:
        return [*checks, *check_sums(ranks, torch.device("cuda", torch.cuda.current_device()))]


def check_seats(names: Sequence[str], seats: Sequence[Seat]) -> Check:
    """Which rank is where: all on the map."""
    lines = [
        f"{name}, its number {seat.local_rank} there: {f'{seat.gpu} {seat.gpu_id}' if seat.gpu else 'no GPU'}"
        for name, seat in zip(names, seats, strict=True)
    ]
    machines = Counter(seat.machine for seat in seats)
    return Check("ranks", True, "\n".join([f"{len(seats)} on {len(machines)} machines", *lines]))


def check_versions(seats: Sequence[Seat]) -> Check:
    """The same software everywhere."""
    different = [rank for rank, seat in enumerate(seats) if seat.versions != seats[0].versions]
    if not different:
        return Check("software", True, f"the same on all ranks: {seats[0].versions}")
    rank = different[0]
    found = f"rank 0 has {seats[0].versions}, and rank {rank} on {seats[rank].machine} has {seats[rank].versions}"
    return Check("software", False, found, f"on {seats[rank].machine}: make environment")


def check_gpus(seats: Sequence[Seat]) -> Check:
    """A GPU for each rank, of one kind, or none at all."""
    if not any(seat.gpu for seat in seats):
        return Check("GPUs", True, "none; ranks train on processors")
    try:
        refuse_shared_gpus([(seat.machine, seat.gpu_id) for seat in seats])
    except Gpt2EduError as problem:
        remedy = "nvidia-smi -L on each machine; then mpiexec -n as many ranks as it lists"
        return Check("GPUs", False, str(problem), remedy)
    kinds = Counter(seat.gpu for seat in seats)
    if len(kinds) > 1:
        found = " and ".join(f"{n} x {kind}" for kind, n in kinds.items())
        return Check("GPUs", True, f"one each, but {found}: all wait for the slower ones")
    return Check("GPUs", True, f"one each: {seats[0].gpu}")


def check_sums(ranks: Communicator, device: torch.device) -> list[Check]:
    """The mean over ranks, sent as in training, is right; and how fast it comes."""
    size = (GPU_BYTES if device.type == "cuda" else HOST_BYTES) // 4 // ranks.world_size
    whole = ParameterTensor("test", (size * ranks.world_size,), 0, stacked=False, decayed=False)
    shards = [Shard(whole, ranks.rank * size, size, 0)]
    pattern = torch.arange(whole.size, device=device, dtype=torch.float32) % 1024
    flat, seconds = torch.empty_like(pattern), []
    for _ in range(REPEATS):
        flat.copy_(pattern * (ranks.rank + 1))
        ranks.barrier()
        _wait(device)
        started = time.perf_counter()
        ranks.reduce_scatter_mean(flat, shards)
        ranks.all_gather(flat, shards)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    error = float(((flat - pattern * (ranks.world_size + 1) / 2) / (pattern + 1)).abs().max())
    errors, slowest = zip(*ranks.gather((error, min(seconds))), strict=True)
    how = "NCCL" if device.type == "cuda" else "MPI through host memory"
    wrong = [rank for rank, value in enumerate(errors) if not value < 1e-5]
    if wrong:
        return [Check("all-reduce", False, f"{how}: ranks {wrong} got wrong sums", "nvidia-smi -q -d ECC,ROW_REMAPPER")]
    correct = Check("all-reduce", True, f"{how}: correct on all {ranks.world_size} ranks")
    return [correct, judge_bandwidth(4 * whole.size, max(slowest), ranks.world_size, device.type)]


def judge_bandwidth(n_bytes: int, seconds: float, world_size: int, kind: str) -> Check:
    """Return the bus bandwidth: what each rank sent of the buffer in both directions of the sum, by the time it took.

    Source: nccl-tests, doc/PERFORMANCE.md, "Bus bandwidth": 2 (n - 1) / n x size / time for an all-reduce.
    """
    bus = 2 * (world_size - 1) / world_size * n_bytes / seconds
    found = f"{bus / 1e9:.2f} GB/s for {n_bytes / 1e6:.0f} MB in {1000 * seconds:.2f} ms"
    if kind == "cuda" and bus < SLOW_BYTES_PER_S:
        return Check("bus bandwidth", False, f"{found}: slower than any link between GPUs", TOPOLOGY)
    return Check("bus bandwidth", True, found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
