"""Checkpoints: llm.c's model, state and DONE files, a JSON file for what those cannot hold, and checksums.

    model_00000200.bin         the parameters                              rank 0
    state_00000200_00003.bin   AdamW's moments and the loader's position   every rank
    extra_00000200.json        loss scaler, outlier windows, data order    rank 0
    DONE_00000200              size and SHA-256 of the others, last        rank 0

A run resumes from the newest checkpoint that verifies, on any number of ranks: moments are cut layer by layer
(`parameters.shards_of_rank`), so another rank's shard is pieced together from those that were saved.

Source: llm.c train_gpt2.cu, write_checkpoint @ f1e2ace.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write, sha256_file
from gpt2edu.loader import TrainLoader
from gpt2edu.state_file import ARRAY_NAMES, REMEDY, StateFile, open_state_files, read_shards, write_state_file
from gpt2edu.weights import read_model_file, write_model_file


@dataclass(frozen=True)
class Checkpoint:
    """The files of one step in a run's folder."""

    folder: Path
    step: int

    @property
    def model_path(self) -> Path:
        """The parameters."""
        return self.folder / f"model_{self.step:08d}.bin"

    @property
    def extra_path(self) -> Path:
        """What llm.c's files cannot hold."""
        return self.folder / f"extra_{self.step:08d}.json"

    @property
    def done_path(self) -> Path:
        """The mark of a finished checkpoint."""
        return self.folder / f"DONE_{self.step:08d}"

    def state_path(self, rank: int) -> Path:
        """The moments that `rank` owned."""
        return self.folder / f"state_{self.step:08d}_{rank:05d}.bin"

    def remove(self) -> None:
        """Delete the files, DONE first, so that what a kill leaves is no checkpoint."""
        states = self.folder.glob(f"state_{self.step:08d}_*.bin")
        for path in (self.done_path, self.extra_path, self.model_path, *states):
            path.unlink(missing_ok=True)


@dataclass
class Restored:
    """What `load_checkpoint` read."""

    config: ModelConfig
    step: int
    saved_ranks: int
    flat_parameters: Tensor  # (n,) fp32; the master weights where there are some
    state_arrays: dict[str, Tensor]  # m, v and perhaps master: fp32, this rank's shards
    extra: dict[str, Any] | None
    lost: str | None  # what a resume loses, to be printed, when there is no extra file


def save_checkpoint(
    folder: str | Path,
    step: int,
    *,
    config: ModelConfig,
    flat_parameters: Tensor,
    state_arrays: Mapping[str, Tensor],
    settings: TrainConfig,
    loader: TrainLoader,
    extra: Mapping[str, Any],
    communicator: Communicator,
) -> Checkpoint:
    """Write the checkpoint of `step`; every rank calls this. A checkpoint of the same step is replaced.

    Args:
        folder: the run's output folder; made when missing.
        step: optimizer steps done.
        config: the model's shape.
        flat_parameters: (n,) on any device, equal on all ranks; the file is bf16 where there is a master copy.
        state_arrays: m, v and perhaps master: this rank's shards (everything when the optimizer is not sharded).
        settings: of the run, kept for people to read.
        loader: the position in the data is its position after `step`.
        extra: what JSON can hold and a resume needs; the data order is added.
        communicator: the ranks.

    Raises:
        Gpt2EduError: the disk is full.
    """
    checkpoint = Checkpoint(Path(folder), step)
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    written = [checkpoint.state_path(communicator.rank)]
    if communicator.rank == 0:
        checkpoint.done_path.unlink(missing_ok=True)
        written += [checkpoint.model_path, checkpoint.extra_path]
        write_model_file(checkpoint.model_path, config, flat_parameters, "bf16" if "master" in state_arrays else "fp32")
        order = {"order_ranks": loader.order_ranks, "order_batch": loader.order_batch}
        everything = {"step": step, **order, "settings": dataclasses.asdict(settings), **extra}
        _write_json(checkpoint.extra_path, everything)
    position = loader.llmc_position(communicator.rank % loader.order_ranks, step)
    write_state_file(
        written[0],
        step=step,
        rank=communicator.rank,
        world_size=communicator.world_size,
        arrays=state_arrays,
        position=position,
        shuffle=loader.shuffle,
    )
    sums = {path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in written}
    all_sums = communicator.gather(sums)
    if communicator.rank == 0:
        _write_json(checkpoint.done_path, {"step": step, "files": {k: v for part in all_sums for k, v in part.items()}})
    communicator.barrier()
    return checkpoint


def prune(folder: str | Path, keep: int, major_every: int = 0) -> None:
    """Delete all but the newest `keep` finished checkpoints, and what killed writers left; rank 0 calls this.

    Args:
        folder: the run's output folder.
        keep: 0 keeps all.
        major_every: steps that this divides are never deleted; 0 protects none.
    """
    for pattern in ("model", "state", "extra", "DONE"):
        for leftover in Path(folder).glob(f".{pattern}_*.tmp"):
            leftover.unlink(missing_ok=True)
    for checkpoint in _finished(folder)[keep:] if keep else ():
        if not (major_every and checkpoint.step % major_every == 0):
            checkpoint.remove()


def find_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that verifies; None where there is none at all.

    One that fails is passed over for the one before, with a message on stderr. An empty DONE file (llm.c's own)
    is taken without verification, and said so.

    Raises:
        Gpt2EduError: there are checkpoints and none verifies.
    """
    problems = []
    for checkpoint in _finished(folder):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        problems.append(f"checkpoint {checkpoint.step}: {problem}")
        print(f"{folder}: {problems[-1]}; passing over it for the one before", file=sys.stderr, flush=True)
    if problems:
        raise Gpt2EduError(
            f"{folder} holds no checkpoint that can be trusted ({problems[0]}); "
            "restore its files from a copy, or begin again with --overwrite"
        )
    return None


def find_problem(checkpoint: Checkpoint) -> str | None:
    """Compare a checkpoint with the sizes and checksums in its DONE file; return what is wrong with it."""
    try:
        text = checkpoint.done_path.read_bytes()
        files = json.loads(text)["files"] if text.strip() else {}
        for name, expected in files.items():
            path = checkpoint.folder / name
            if path == checkpoint.extra_path and not path.exists():
                continue  # a resume works without it; load_checkpoint says what is lost
            size = path.stat().st_size
            if size != expected["size"]:
                return f"{name} has {size:,} bytes instead of {expected['size']:,}"
            if sha256_file(path) != expected["sha256"]:
                return f"{name} is damaged (its SHA-256 differs)"
        if not files:
            _open(checkpoint)
            print(f"{checkpoint.done_path} is empty, as llm.c's are: taken without checksums", file=sys.stderr)
    except OSError as problem:
        return f"{Path(problem.filename).name} cannot be read ({problem.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint.done_path.name} cannot be read as JSON"
    except Gpt2EduError as problem:
        return str(problem)
    return None


def _finished(folder: str | Path) -> list[Checkpoint]:
    """Return the checkpoints that have a DONE file, newest first."""
    names = (re.fullmatch(r"DONE_(\d+)", path.name) for path in Path(folder).glob("DONE_*"))
    steps = sorted((int(name[1]) for name in names if name), reverse=True)
    return [Checkpoint(Path(folder), step) for step in steps]


def load_checkpoint(
    checkpoint: Checkpoint, *, expected: ModelConfig | None = None, rank: int = 0, world_size: int = 1
) -> Restored:
    """Read a checkpoint that any number of ranks wrote.

    Args:
        checkpoint: from `find_checkpoint`.
        expected: the shape that `-e` asks for; None takes what is there.
        rank: whose shards `state_arrays` shall hold,
        world_size: of how many; (0, 1) is everything.

    Raises:
        Gpt2EduError: a file is missing, cut short, or of another kind or model.
    """
    config, flat_parameters, files = _open(checkpoint)
    if expected is not None and expected != config:
        raise Gpt2EduError(
            f"{checkpoint.model_path} is another model than -e names ({_difference(config, expected)}); "
            "give -e as it was when the run began, or another folder with -o"
        )
    saved_ranks = files[0].saved_ranks
    names = ARRAY_NAMES[: len(files[0].arrays)]
    arrays = {name: read_shards(config, files, name, rank, world_size) for name in names}
    if "master" in names:
        flat_parameters = read_shards(config, files, "master", 0, 1)
    extra, lost = None, None
    if checkpoint.extra_path.exists():
        extra = _read_extra(checkpoint)
    else:
        lost = (
            f"{checkpoint.extra_path} is missing: the loss scaler and the outlier windows begin anew, and the data "
            f"goes on in the order of --order-ranks and --order-batch as they are now ({saved_ranks} ranks wrote it)"
        )
    return Restored(config, checkpoint.step, saved_ranks, flat_parameters, arrays, extra, lost)


def _open(checkpoint: Checkpoint) -> tuple[ModelConfig, Tensor, list[StateFile]]:
    """Read the model file and open the state files; what does not fit raises Gpt2EduError."""
    config, flat_parameters = read_model_file(checkpoint.model_path)
    return config, flat_parameters, open_state_files(checkpoint.state_path, checkpoint.step, config)


def _read_extra(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return json.loads(checkpoint.extra_path.read_text("utf-8"))
    except ValueError as problem:
        raise Gpt2EduError(f"{checkpoint.extra_path} is not JSON ({problem}); {REMEDY}") from problem


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")


def _difference(found: ModelConfig, expected: ModelConfig) -> str:
    names = [field.name for field in dataclasses.fields(found)]
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in names]
    return ", ".join(f"{name} {have}, not {wanted}" for name, have, wanted in pairs if have != wanted)
