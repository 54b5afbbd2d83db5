"""Beginning and going on: which checkpoint a run starts from, and whether it is still the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from gpt2edu.checkpoint import Restored, find_checkpoint, load_checkpoint
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.errors import UsageError
from gpt2edu.loader import TrainLoader
from gpt2edu.model import GPT2
from gpt2edu.weights import load_model

# of the settings that change what a run computes: those that a resume must keep, and those it may change
KEPT_ON_RESUME = {
    "seq_len": "-t",
    "total_batch": "-d",
    "order_ranks": "--order-ranks",
    "order_batch": "--order-batch",
    "overfit_one_batch": "-a",
}
TOLD_ON_RESUME = {
    "max_steps": "-x",
    "scheduler": "-k",
    "learning_rate": "-l",
    "warmup_steps": "-u",
    "final_lr_fraction": "-q",
    "weight_decay": "-c",
    "skip_loss_z": "-sl",
    "skip_grad_z": "-sg",
    "dtype": "--dtype",
    "backend": "--backend",
    "arch": "--arch",
}


def restore(settings: TrainConfig, communicator: Communicator) -> Restored | None:
    """Return the newest checkpoint of -o for -y 1; refuse to begin again over a finished one without --overwrite."""
    if settings.output_dir is None:
        return None
    if not settings.resume:
        finished = sorted(Path(settings.output_dir).glob("DONE_*"))
        if finished and not settings.overwrite:
            raise UsageError(
                f"-o {settings.output_dir} holds a finished checkpoint ({finished[-1].name}); "
                "go on with it: -y 1, or remove it and begin again: --overwrite"
            )
        return None
    found = communicator.broadcast(find_checkpoint(settings.output_dir) if communicator.rank == 0 else None)
    if found is None:
        return None
    ranks = (communicator.rank, communicator.world_size) if settings.zero_stage == 1 else (0, 1)
    expected = None if _is_file(settings.model) else _described(settings.model)
    return load_checkpoint(found, expected=expected, rank=ranks[0], world_size=ranks[1])


def _is_file(spec: str) -> bool:
    return spec.endswith(".bin") or "/" in spec or Path(spec).exists()


def _described(descriptor: str) -> ModelConfig:
    try:
        return ModelConfig.from_descriptor(descriptor)
    except UsageError as problem:
        raise UsageError(f"-e: {problem}") from problem


def new_model(settings: TrainConfig) -> tuple[ModelConfig, Tensor]:
    """Read -e, or draw the weights of a descriptor with --seed."""
    if settings.model.endswith(".bin") and not Path(settings.model).exists():
        raise UsageError(f"-e {settings.model}: no such file; name one, or a new model such as -e d12")
    if _is_file(settings.model):
        return load_model(settings.model)
    model = GPT2(_described(settings.model))
    model.init_weights(settings.seed)
    return model.config, model.flat_parameters


def compare_with_saved(settings: TrainConfig, restored: Restored, loader: TrainLoader) -> list[str]:
    """Refuse a resume that would not be the same run; return notes on what may differ but changes the result."""
    if restored.lost:
        return [restored.lost]
    saved, current = restored.extra["settings"], dataclasses.asdict(settings)
    changed = [
        f"{flag} {saved.get(name)} is now {current[name]}"
        for name, flag in KEPT_ON_RESUME.items()
        if saved.get(name) != current[name]
    ]
    saved_tokens = restored.extra.get("train_tokens", loader.n_tokens)
    if saved_tokens != loader.n_tokens:
        changed.append(f"-i had {saved_tokens:,} tokens and has {loader.n_tokens:,}")
    if changed:
        raise UsageError(
            f"-y 1: the run in {settings.output_dir} was another one ({'; '.join(changed)}); "
            "give these as they were, or another folder with -o"
        )
    notes = [
        f"note: {flag} was {saved.get(name)} and is now {current[name]}, which changes the run from here on"
        for name, flag in TOLD_ON_RESUME.items()
        if saved.get(name) != current[name]
    ]
    return [f"resuming at step {restored.step}, saved by {restored.saved_ranks} ranks", *notes]
