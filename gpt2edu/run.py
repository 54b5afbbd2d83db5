"""A run ready for its first step: everything it needs, found and checked before anything is written."""

from __future__ import annotations

import base64
import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2edu.backend import choose_backend, make_engine
from gpt2edu.checkpoint import Checkpoint, prune
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.describe import describe_run
from gpt2edu.distributed import Communicator
from gpt2edu.engine_protocol import Engine
from gpt2edu.errors import UsageError
from gpt2edu.flops import peak_flop_per_s
from gpt2edu.loader import TrainLoader, ValLoader
from gpt2edu.logger import MainLog, Throughput
from gpt2edu.outliers import OutlierDetector
from gpt2edu.resume import compare_with_saved, new_model, restore
from gpt2edu.run_inputs import check_data, check_model, choose_micro_batch, decide_batch, find_hellaswag, find_tokenizer
from gpt2edu.tokenizer import Tokenizer, save_tokenizer

WHOLE_SPLIT = 2**62  # tokens


@dataclass
class Run:
    """A run between its steps: what it works with, and what a checkpoint has to keep."""

    settings: TrainConfig  # every None that has a meaning is decided
    communicator: Communicator
    engine: Engine
    device_name: str
    peak_flop_per_s: float | None  # of one device; None where it is not known
    train_loader: TrainLoader
    val_loader: ValLoader
    tokenizer: Tokenizer | None  # None: samples are token ids
    hellaswag_path: Path | None  # None: no evaluation
    log: MainLog
    say: Callable[[str], None]
    first_step: int
    n_steps: int
    loss_outliers: OutlierDetector = field(default_factory=OutlierDetector)
    grad_outliers: OutlierDetector = field(default_factory=OutlierDetector)
    throughput: Throughput = field(default_factory=Throughput)
    bad_steps: int = 0  # in a row; a checkpoint is only written while it is 0

    @property
    def n_micro_steps(self) -> int:
        """Micro-batches of this rank in an optimizer step."""
        return self.train_loader.n_local // self.settings.micro_batch

    def extra_state(self) -> dict[str, Any]:
        """Return what a resume needs beside weights, moments and step, as JSON."""
        return {
            "loss_window": list(self.loss_outliers.window),
            "grad_norm_window": list(self.grad_outliers.window),
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
            "train_tokens": self.train_loader.n_tokens,
            "torch_rng": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
            **self.engine.extra_state(),
        }

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take over what `extra_state` gave; what is not there begins anew."""
        self.loss_outliers = OutlierDetector(extra.get("loss_window"))
        self.grad_outliers = OutlierDetector(extra.get("grad_norm_window"))
        if "torch_rng" in extra:
            torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(extra["torch_rng"])), dtype=torch.uint8))
        self.engine.load_extra_state(extra)


def prepare_run(
    settings: TrainConfig, device: torch.device, communicator: Communicator, say: Callable[[str], None]
) -> Run:
    """Check the settings against this machine and these files, and build the run.

    Raises:
        UsageError: a flag asks for what is not possible here.
        Gpt2EduError: a file is missing or damaged, or memory is short.
    """
    settings = dataclasses.replace(settings)
    if settings.num_processes not in (None, 1, communicator.world_size):
        wanted, started = settings.num_processes, communicator.world_size
        raise UsageError(f"-pn {wanted} but {started} started; start with mpirun -np {wanted}")
    if settings.overfit_one_batch:
        settings.train_pattern = settings.val_pattern
    settings.backend, backend_note = choose_backend(settings, device)
    manifest = check_data(settings, communicator)
    restored = restore(settings, communicator)
    config, flat_parameters = (restored.config, restored.flat_parameters) if restored else new_model(settings)
    check_model(settings, config, manifest)
    saved = restored.extra["settings"] if restored and restored.extra else {}
    decide_batch(settings, communicator.world_size, saved)
    train_loader = _train_loader(settings, config, communicator)
    notes = compare_with_saved(settings, restored, train_loader) if restored else []

    engine = make_engine(config, settings, communicator, device)
    engine.load_parameters(flat_parameters)
    if restored:
        engine.load_state_arrays(restored.state_arrays)
    if settings.micro_batch is None:
        settings.micro_batch = choose_micro_batch(engine, train_loader.n_local, communicator)
        notes.append(f"micro-batch: -b {settings.micro_batch}, chosen from free memory")
    tokenizer, tokenizer_note = find_tokenizer(settings, config, manifest)
    hellaswag_path, hellaswag_note = find_hellaswag(settings, config)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    n_steps = train_loader.steps_per_epoch if settings.max_steps == -1 else settings.max_steps
    run = Run(
        settings=settings,
        communicator=communicator,
        engine=engine,
        device_name=gpu or f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)",
        peak_flop_per_s=peak_flop_per_s(gpu, engine.dtype, tf32=bool(settings.tf32)),
        train_loader=train_loader,
        val_loader=_val_loader(settings, config, communicator),
        tokenizer=tokenizer,
        hellaswag_path=hellaswag_path,
        log=MainLog(None),
        say=say,
        first_step=restored.step if restored else 0,
        n_steps=n_steps,
    )
    if run.first_step > n_steps:
        raise UsageError(f"-x {n_steps}: the run in {settings.output_dir} is at step {run.first_step} already")
    if restored:
        run.load_extra_state(restored.extra or {})
    elif settings.resume:
        notes.append(f"-y 1: no checkpoint in {settings.output_dir} yet, starting at step 0")
    _open_output(run)
    say("\n".join([describe_run(run), *filter(None, [backend_note, tokenizer_note, hellaswag_note, *notes])]))
    return run


def _train_loader(settings: TrainConfig, config: ModelConfig, communicator: Communicator) -> TrainLoader:
    loader = TrainLoader(
        settings.train_pattern,
        settings.seq_len,
        settings.total_batch // settings.seq_len,
        order_ranks=settings.order_ranks,
        order_batch=settings.order_batch,
        rank=communicator.rank,
        world_size=communicator.world_size,
        vocab_size=config.vocab_size,
        shuffle=not settings.overfit_one_batch,
    )
    settings.order_batch = loader.order_batch
    if settings.max_steps == -1 and not loader.steps_per_epoch:
        raise UsageError(
            f"-d {settings.total_batch}: {settings.train_pattern} has only {loader.n_tokens:,} tokens, less than one "
            "step; use a smaller -d or more text, or say with -x how many steps to take"
        )
    return loader


def _val_loader(settings: TrainConfig, config: ModelConfig, communicator: Communicator) -> ValLoader:
    n_tokens = settings.val_max_batches
    if n_tokens == -1:
        n_tokens = WHOLE_SPLIT
    elif n_tokens is not None:
        n_tokens *= settings.micro_batch * settings.seq_len * communicator.world_size
    return ValLoader(
        settings.val_pattern,
        settings.seq_len,
        n_tokens=n_tokens,
        rank=communicator.rank,
        world_size=communicator.world_size,
        vocab_size=config.vocab_size,
    )


def _open_output(run: Run) -> None:
    """Remove what --overwrite allows, begin or continue `main.log`, and put our own vocabulary beside it."""
    settings = run.settings
    if run.communicator.rank == 0 and settings.output_dir is not None:
        folder = Path(settings.output_dir)
        run.log = MainLog(folder, resume=bool(settings.resume))
        for done in folder.glob("DONE_" + 8 * "[0-9]") if settings.overwrite else ():
            Checkpoint(folder, int(done.name.removeprefix("DONE_"))).remove()
        prune(folder, keep=0)  # what a killed run left half written
        if run.tokenizer and run.tokenizer.name != "gpt2":
            save_tokenizer(run.tokenizer, folder / "tokenizer.json")
    run.communicator.barrier()
