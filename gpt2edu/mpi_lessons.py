"""Small programs of several ranks, from hello world to a ring, that the book runs and shows.

`gpt2edu.show_ranks.run_mpi` starts each on several ranks and collects what they return.
"""

from __future__ import annotations

import numpy as np

from gpt2edu.launcher import import_mpi


def hello() -> str:
    """Say who this is."""
    world = import_mpi().COMM_WORLD
    return f"I am rank {world.rank} of {world.size}"


def pass_on() -> int:
    """Send a number to the next rank, and return the one that came from the rank before."""
    world = import_mpi().COMM_WORLD
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    return world.sendrecv(10 * world.rank, dest=right, source=left)


def together() -> tuple[str, list[int], int]:
    """Return what three collective operations give this rank."""
    world = import_mpi().COMM_WORLD
    told = world.bcast("hello" if world.rank == 0 else None, root=0)
    numbers = world.allgather(10 * world.rank)
    total = world.allreduce(10 * world.rank)
    return told, numbers, total


def reduce_around(world, chunks: np.ndarray) -> list[list[int]]:
    """Reduce-scatter on a ring: let chunk r on rank r be the sum over ranks; return the chunks after each round."""
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    history = [chunks.tolist()]
    for round_number in range(world.size - 1):
        sent = (world.rank - round_number - 1) % world.size
        added = (sent - 1) % world.size  # what the left neighbour sends
        chunks[added] += world.sendrecv(chunks[sent], dest=right, source=left)
        history.append(chunks.tolist())
    return history


def gather_around(world, chunks: np.ndarray) -> list[list[int]]:
    """All-gather on a ring: copy chunk r of each rank r to all; return the chunks after each round."""
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    history = [chunks.tolist()]
    for round_number in range(world.size - 1):
        sent = (world.rank - round_number) % world.size
        received = (sent - 1) % world.size
        chunks[received] = world.sendrecv(chunks[sent], dest=right, source=left)
        history.append(chunks.tolist())
    return history


def ring() -> tuple[list[list[int]], list[list[int]]]:
    """Return this rank's chunks after each round of both halves; a number's digits tell whose share is in it.

    Rank 0 counts ones, rank 1 tens, rank 2 hundreds.
    """
    world = import_mpi().COMM_WORLD
    chunks = np.arange(1, world.size + 1) * 10**world.rank
    return reduce_around(world, chunks), gather_around(world, chunks)
