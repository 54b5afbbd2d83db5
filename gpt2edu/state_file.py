"""llm.c's state file: one rank's AdamW moments and the loader's position, and reading them for any number of ranks.

A header of 256 int32; m, v and perhaps master weights, fp32, this rank's shards one after another; then, when the data
is shuffled, the loader's permutations and its generator. All little-endian.

Source: llm.c train_gpt2.cu, save_state, and llmc/dataloader.h @ f1e2ace.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write
from gpt2edu.loader import LlmcPosition
from gpt2edu.parameters import n_parameters, shards_of_rank

MAGIC, VERSION = 20240527, 1
HEADER_BYTES = 1024
GENERATOR_BYTES = 2520  # the struct mt19937_state
# llm.c's seed for stochastic rounding, plus the rank; the torch engine rounds to nearest and draws nothing
ROUNDING_SEED = 13371337
ARRAY_NAMES = ("m", "v", "master")
REMEDY = "delete that step's DONE file to go on from the checkpoint before, or restore the file"


def write_state_file(
    path: Path,
    *,
    step: int,
    rank: int,
    world_size: int,
    arrays: Mapping[str, Tensor],
    position: LlmcPosition,
    shuffle: bool,
) -> None:
    """Write a state file.

    Args:
        path: its name.
        step: optimizer steps done.
        rank: of `world_size` ranks, the one that writes.
        world_size: ranks that write.
        arrays: m, v and perhaps master, on any device: the rank's shards, or everything.
        position: of the loader.
        shuffle: whether the loader shuffles; otherwise its permutations are left out.
    """
    chosen = [arrays[name] for name in ARRAY_NAMES if name in arrays]
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:6] = MAGIC, VERSION, world_size, rank, len(chosen) == 3, shuffle
    header[10] = step
    header[20:24].view("<u8")[:] = ROUNDING_SEED + rank  # now, and at the last update
    header[30:34].view("<u8")[:] = position.shard_index, position.sample_index
    with atomic_write(path) as file:
        file.write(header)
        for array in chosen:
            file.write(array.detach().to("cpu", torch.float32).contiguous().numpy())
        if shuffle:
            for order in (position.shard_order, position.sample_order):
                file.write(struct.pack("<Q", len(order)))
                file.write(order.astype("<i4"))
            file.write(position.rng_state)


@dataclass(frozen=True)
class StateFile:
    """A checked state file of one rank; its arrays are mapped, not read."""

    saved_ranks: int
    n_parts: int  # ranks that the arrays were cut for: saved_ranks with ZeRO-1, otherwise 1
    part: int
    arrays: np.ndarray  # (2 or 3, elements a part) fp32: m, v and perhaps master


def open_state_files(path_of_rank: Callable[[int], Path], step: int, config: ModelConfig) -> list[StateFile]:
    """Open the state files that together hold all of a checkpoint's arrays.

    Args:
        path_of_rank: where each rank's file is.
        step: they must be of this step.
        config: they must be of this model.

    Raises:
        Gpt2EduError: one is missing, cut short, of another kind, or not of its name.
    """
    first = _open_state_file(path_of_rank(0), 0, step, config)
    return [first, *(_open_state_file(path_of_rank(rank), rank, step, config) for rank in range(1, first.n_parts))]


def read_shards(config: ModelConfig, files: Sequence[StateFile], name: str, rank: int, world_size: int) -> Tensor:
    """Piece together `rank`'s shards of m, v or master, fp32, whatever the number of ranks that saved them.

    A layer of a tensor lies in equal slices in `files`; the wanted slice takes what overlaps it from each.
    """
    result = np.empty(n_parameters(config) // world_size, dtype=np.float32)
    saved = zip(*(shards_of_rank(config, file.part, file.n_parts) for file in files), strict=True)
    for wanted, parts in zip(shards_of_rank(config, rank, world_size), saved, strict=True):
        for file, part in zip(files, parts, strict=True):
            start = max(wanted.offset, part.offset)
            size = min(wanted.offset + wanted.size, part.offset + part.size) - start
            if size > 0:
                target = wanted.state_offset + start - wanted.offset
                source = part.state_offset + start - part.offset
                result[target : target + size] = file.arrays[ARRAY_NAMES.index(name), source : source + size]
    return torch.from_numpy(result)


def _open_state_file(path: Path, rank: int, step: int, config: ModelConfig) -> StateFile:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as problem:
        raise Gpt2EduError(f"{path} cannot be read ({problem.strerror}); {REMEDY}") from problem
    words = np.frombuffer(header.ljust(HEADER_BYTES, b"\0"), dtype="<i4")
    if tuple(words[:2]) != (MAGIC, VERSION):
        raise Gpt2EduError(
            f"{path} is no state file of version {VERSION} (it starts with {words[0]}, not {MAGIC}); {REMEDY}"
        )
    if (words[3], words[10]) != (rank, step):
        raise Gpt2EduError(f"{path} says it is of rank {words[3]} and step {words[10]}, not of its name; {REMEDY}")
    saved_ranks, n_arrays, shuffle = int(words[2]), 3 if words[4] else 2, bool(words[5])
    for n_parts in (saved_ranks, 1):  # the header does not say whether the arrays are shards, the size does
        n_elements = n_parameters(config) // n_parts
        body_end = HEADER_BYTES + 4 * n_arrays * n_elements
        if size == body_end + (_loader_bytes(path, body_end) if shuffle else 0):
            arrays = np.memmap(path, "<f4", "r", HEADER_BYTES, (n_arrays, n_elements))
            return StateFile(saved_ranks, n_parts, rank % n_parts, arrays)
    raise Gpt2EduError(f"{path} is cut short or of another model than its model file; {REMEDY}")


def _loader_bytes(path: Path, offset: int) -> int:
    """Return how many bytes the loader's part that begins at `offset` says it has."""
    total = GENERATOR_BYTES
    with open(path, "rb") as file:
        for _ in ("shards", "samples"):
            file.seek(min(offset, path.stat().st_size))
            n_bytes = 8 + 4 * int.from_bytes(file.read(8), "little")
            total += n_bytes
            offset += n_bytes
    return total
