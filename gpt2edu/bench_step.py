"""Whole optimizer steps against each other: the trainer and a bare PyTorch loop, or the two engines."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2edu.bench_timing import time_interleaved
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.flops import flop_per_token
from gpt2edu.model import GPT2
from gpt2edu.results import Row
from gpt2edu.run import Run, prepare_run
from gpt2edu.shards import write_shard
from gpt2edu.torch_engine import DTYPES
from gpt2edu.train import GRAD_CLIP, BatchStream, report_step, train_step

BASELINE = "bare PyTorch loop"
DATA_STEPS = 4  # optimizer steps in the random data; the loader goes round


def add_steps(actions: Any) -> list[argparse.ArgumentParser]:
    """Add `train_loop` and `step` to the subcommands of `gpt2edu.bench`; return their parsers."""
    parsers = [
        actions.add_parser("train_loop", help="the trainer against a bare PyTorch loop", allow_abbrev=False),
        actions.add_parser("step", help="a training step of the numba engine against PyTorch's", allow_abbrev=False),
    ]
    for parser in parsers:
        add_shape_options(parser)
        option = parser.add_argument
        option("--blocks", type=int, default=5, help="turns of each (default %(default)s)")
        option("--block-steps", type=int, default=5, help="timed steps in a turn (default %(default)s)")
        option("--warmup", type=int, default=3, help="untimed steps before the first turn (default %(default)s)")
    parsers[1].add_argument(
        "--sizes",
        nargs="+",
        type=_size_of,
        default=[],
        metavar="MODEL:B:TOKENS",
        help="further models, micro-batches and tokens a step to measure after the first, such as d12:4:32768",
    )
    return parsers


def _size_of(text: str) -> tuple[str, int, int]:
    model, *numbers = text.split(":")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no MODEL:B:TOKENS such as d12:4:32768")
    return model, int(numbers[0]), int(numbers[1])


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the model and the size of a step."""
    option = parser.add_argument
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option("-b", "--micro-batch", type=int, default=64, help="sequences at once (default %(default)s)")
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    option("-d", "--total-batch", type=int, default=524_288, help="tokens a step (default %(default)s)")
    option("-r", "--recompute", type=int, default=0, choices=(0, 1, 2), help="as in gpt2edu.train (default 0)")


class BareLoop:
    """The step one writes in an afternoon: torch.compile, autocast, clipping, fused AdamW, one batch on the device."""

    def __init__(self, settings: TrainConfig, n_micro_steps: int, dtype: str, device: torch.device):
        config = ModelConfig.from_descriptor(settings.model)
        self.device, self.dtype, self.n_micro_steps = device, dtype, n_micro_steps
        model = GPT2(config, device=device)
        model.init_weights(settings.seed)
        model.recompute = settings.recompute
        self.parameters = list(model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
        self.losses = torch.compile(model.losses, dynamic=False) if settings.compile else model.losses
        shape = (2, settings.micro_batch, settings.seq_len)
        self.inputs_BT, self.targets_BT = torch.randint(config.vocab_size, shape, device=device)

    def step(self) -> None:
        """Take one optimizer step."""
        for _ in range(self.n_micro_steps):
            with torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32"):
                loss = self.losses(self.inputs_BT, self.targets_BT).mean() / self.n_micro_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, GRAD_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def trainer_step(run: Run) -> Callable[[], None]:
    """Return what takes a run's next step as training would: loader, engine, log line."""
    batches, step = BatchStream(run), 0

    def take() -> None:
        nonlocal step
        start = time.perf_counter()
        outcome = train_step(run, step, batches)
        report_step(run, step, outcome, time.perf_counter() - start)
        step += 1

    return take


def bench_train_loop(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time the trainer with PyTorch's engine and the bare loop, in the same run."""
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        settings = train_settings(arguments, device, Path(folder))
        run = prepare_run(settings, device, SingleProcess(), say=lambda _text: None)
        bare = BareLoop(run.settings, run.n_micro_steps, run.engine.dtype, device)
        times = _time(arguments, device, {"trainer, torch engine": trainer_step(run), BASELINE: bare.step})
    return step_rows(times, BASELINE, run)


def bench_step(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time the trainer with either engine, in the same run, for the first size and the further ones."""
    rows = []
    first = (arguments.model, arguments.micro_batch, arguments.total_batch)
    for model, micro_batch, total_batch in (first, *arguments.sizes):
        size = {"model": model, "micro_batch": micro_batch, "total_batch": total_batch}
        rows += _bench_size(argparse.Namespace(**(vars(arguments) | size)), device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _bench_size(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        torch_settings = train_settings(arguments, device, Path(folder))
        numba_settings = dataclasses.replace(torch_settings, backend="numba", compile=None)
        engines = {"numba": numba_settings, "torch": torch_settings}
        runs = {
            name: prepare_run(settings, device, SingleProcess(), say=lambda _text: None)
            for name, settings in engines.items()
        }
        times = _time(arguments, device, {name: trainer_step(run) for name, run in runs.items()})
    return step_rows(times, "torch", runs["torch"])


def _time(
    arguments: argparse.Namespace, device: torch.device, steps: dict[str, Callable[[], None]]
) -> dict[str, list[float]]:
    return time_interleaved(
        steps,
        n_blocks=arguments.blocks,
        block_steps=arguments.block_steps,
        warmup=arguments.warmup,
        sync=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
    )


def step_rows(times: dict[str, list[float]], baseline: str, run: Run) -> list[Row]:
    """Return the results rows of milliseconds a step; all steps are of the shape of `run`."""
    config, settings = run.engine.config, run.settings
    shape = {"B": settings.micro_batch, "T": settings.seq_len, "tokens": settings.total_batch, "L": config.n_layers}
    shape |= {"C": config.channels, "V": config.vocab_size, "recompute": settings.recompute}
    work_tflop = flop_per_token(config, settings.seq_len) * settings.total_batch / 1e12
    baseline_ms = statistics.median(times[baseline])
    rows = []
    for name, values in times.items():
        median_ms = statistics.median(values)
        row = {"op": "step", "variant": name}
        row |= {"dtype": run.engine.dtype, "shape": shape, "n_runs": len(values)}
        row |= {"median_ms": median_ms, "min_ms": min(values), "max_ms": max(values)}
        row |= {"tokens_per_s": settings.total_batch / median_ms * 1e3, "tflop_per_s": work_tflop / median_ms * 1e3}
        rows.append(row | {"torch_ms": baseline_ms, "torch_ratio": baseline_ms / median_ms})
    return rows


def train_settings(arguments: argparse.Namespace, device: torch.device, folder: Path) -> TrainConfig:
    """Return the settings of PyTorch's engine, and write the random tokens that the trainer reads."""
    config = ModelConfig.from_descriptor(arguments.model)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, DATA_STEPS * arguments.total_batch + 1)
    write_shard(folder / "random_train_000001.bin", tokens)
    write_shard(folder / "random_val_000000.bin", tokens[: arguments.total_batch + 1])
    return TrainConfig(
        train_pattern=str(folder / "random_train_*.bin"),
        val_pattern=str(folder / "random_val_*.bin"),
        model=arguments.model,
        micro_batch=arguments.micro_batch,
        seq_len=arguments.seq_len,
        total_batch=arguments.total_batch,
        weight_decay=0.1,
        learning_rate=6e-4,
        recompute=arguments.recompute,
        max_steps=10**6,
        val_every=0,
        sample_every=0,
        backend="torch",
        compile=int(device.type == "cuda"),
    )
