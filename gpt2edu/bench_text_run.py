"""The bench that learns: a few hundred steps on real text from one start, whose loss curves are kept and plotted.

How far may the hand-written kernels be from PyTorch? Rounding alone drives two runs apart. So two runs of PyTorch that
differ only in how a step is cut into micro-batches are the yardstick (`Comparison`).
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpt2edu.config import TrainConfig
from gpt2edu.distributed import Communicator, SingleProcess
from gpt2edu.errors import UsageError
from gpt2edu.flops import flop_per_token
from gpt2edu.logger import MainLog
from gpt2edu.results import Row
from gpt2edu.run import prepare_run
from gpt2edu.train import BatchStream, TrainResult, train_step, validate

WARMUP_SHARE = 5  # the learning rate rises over a fifth of the steps
RUNS = ("torch:16", "torch:8", "numba:16", "sm_80:16")
ALLOWED_SPREADS = 3  # of PyTorch's, between the training losses of the engines
ALLOWED_VALIDATION = 0.02  # nats a token, between the last validation losses


def add_text_run(actions: Any) -> argparse.ArgumentParser:
    """Add the command `text_run` to the subcommands of `gpt2edu.bench`; return its parser."""
    parser = actions.add_parser("text_run", help="loss curves on real text, at most one pass", allow_abbrev=False)
    option = parser.add_argument
    option("-i", "--train-pattern", required=True, help="training shards, as for gpt2edu.train")
    option("-j", "--val-pattern", required=True, help="validation shards")
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option(
        "--runs",
        nargs="+",
        type=_run_of,
        default=[_run_of(run) for run in RUNS],
        metavar="ENGINE:B",
        help=f"engine and micro-batch of each run; sm_80 is numba with the A100's kernels (default {' '.join(RUNS)})",
    )
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    option("-d", "--total-batch", type=int, default=32_768, help="tokens a step (default %(default)s)")
    option("-x", "--steps", type=int, default=200, help="optimizer steps (default %(default)s)")
    option("-v", "--val-every", type=int, default=50, help="validate every so many steps (default %(default)s)")
    return parser


def _run_of(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(torch|numba|sm_80):(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no run such as torch:16, numba:8 or sm_80:8")
    return match[1], int(match[2])


def bench_text_run(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Train once for each run, from the same weights on the same sequences, and print how far the engines are apart.

    Raises:
        UsageError: the text is too short for one pass.
    """
    rows = [text_run(arguments, device, *run, SingleProcess()) for run in arguments.runs]
    for comparison in compare_engines(rows):
        print(comparison)
    return rows


def text_run(
    arguments: argparse.Namespace, device: torch.device, engine: str, micro_batch: int, communicator: Communicator
) -> Row:
    """Train once and return the results row with the losses; all ranks take part and get the same.

    Raises:
        UsageError: the text is too short for one pass.
    """
    settings = TrainConfig(
        backend="torch" if engine == "torch" else "numba",
        arch="sm_80" if engine == "sm_80" else None,
        train_pattern=arguments.train_pattern,
        val_pattern=arguments.val_pattern,
        model=arguments.model,
        micro_batch=micro_batch,
        seq_len=arguments.seq_len,
        total_batch=arguments.total_batch,
        max_steps=arguments.steps,
        learning_rate=6e-4,
        warmup_steps=arguments.steps // WARMUP_SHARE,
        final_lr_fraction=0.1,
        weight_decay=0.1,
        recompute=0,
    )
    run = prepare_run(settings, device, communicator, say=lambda _text: None)
    one_pass = run.train_loader.steps_per_epoch
    if run.n_steps > one_pass:
        raise UsageError(f"-x {run.n_steps}: {arguments.train_pattern} lasts for {one_pass} steps of one pass")
    run.log = log = _Curve()
    batches = BatchStream(run)
    times_ms = []
    for step in range(run.n_steps + 1):
        if step % arguments.val_every == 0 or step == run.n_steps:
            validate(run, step, TrainResult())
        if step < run.n_steps:
            start = time.perf_counter()
            outcome = train_step(run, step, batches)
            times_ms.append(1e3 * (time.perf_counter() - start))
            log.train_loss.append(outcome.loss)
    times_ms = times_ms[1:]  # the first one compiles
    median_ms = statistics.median(times_ms)
    config, tokens = run.engine.config, run.settings.total_batch
    shape = {"B": micro_batch, "T": settings.seq_len, "tokens": tokens, "L": config.n_layers, "C": config.channels}
    return {
        "op": "text_run",
        "variant": f"{engine} engine, B={micro_batch}",
        "dtype": run.engine.dtype,
        "shape": shape,
        "n_runs": len(times_ms),
        "median_ms": median_ms,
        "min_ms": min(times_ms),
        "max_ms": max(times_ms),
        "tokens_per_s": tokens / median_ms * 1e3,
        "tflop_per_s": flop_per_token(config, settings.seq_len) * tokens / median_ms * 1e3 / 1e12,
        "train_loss": log.train_loss,
        "validation_loss": log.validation_loss,
    }


@dataclass(frozen=True)
class Comparison:
    """How far apart the runs are, in nats a token; training losses by their mean distance over the later half."""

    engine: str  # that is compared with PyTorch's
    spread: float  # training losses of PyTorch with two micro-batches
    difference: float  # training losses of the engines with the same micro-batch
    validation: float  # their last validation losses

    @property
    def holds(self) -> bool:
        """Whether the engines agree as well as they should."""
        return self.difference <= ALLOWED_SPREADS * self.spread and self.validation <= ALLOWED_VALIDATION

    def __str__(self) -> str:
        """Return the yardstick and the verdict in a line."""
        return (
            f"training losses of the later half differ by {self.difference:.4f} nats between {self.engine} and torch, "
            f"by {self.spread:.4f} between two runs of torch ({ALLOWED_SPREADS} times that is allowed); the last "
            f"validation losses by {self.validation:.4f} ({ALLOWED_VALIDATION}): {'good' if self.holds else 'TOO FAR'}"
        )


def compare_engines(rows: Sequence[Row]) -> list[Comparison]:
    """Return how far each of our runs is from PyTorch's of the same micro-batch, if that and another one are there."""
    found = []
    by_run = {(row["variant"].partition(" ")[0], row["shape"]["B"]): row for row in rows}
    for (engine, micro_batch), ours in by_run.items():
        theirs = by_run.get(("torch", micro_batch))
        others = [row for (name, B), row in by_run.items() if name == "torch" and B != micro_batch]
        if engine != "torch" and theirs and others:
            last = [row["validation_loss"][-1][1] for row in (ours, theirs)]
            spread, difference = distance(theirs, others[0]), distance(ours, theirs)
            found.append(Comparison(engine, spread, difference, abs(last[0] - last[1])))
    return found


def distance(one: Row, other: Row) -> float:
    """Return the mean distance of two runs' training losses over the later half, in nats a token."""
    pairs = list(zip(one["train_loss"], other["train_loss"], strict=True))
    return statistics.fmean(abs(a - b) for a, b in pairs[len(pairs) // 2 :])


class _Curve(MainLog):
    """Keeps the losses with all their digits instead of writing them."""

    def __init__(self) -> None:
        super().__init__(None)
        self.train_loss: list[float] = []
        self.validation_loss: list[list[float]] = []  # [step, nats a token]

    def log_validation(self, step: int, loss: float) -> None:
        """Keep a validation loss."""
        self.validation_loss.append([step, loss])
