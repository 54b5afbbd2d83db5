"""The bench that names everything the GPU ran: `python -m gpt2edu.bench kernel_names`.

An optimizer step, a validation, HellaSwag and sampling of the numba engine run under torch's profiler. A row holds
the name of a device kernel or copy, how often it ran (`n_runs`) and how long a run took. `is_allowed` says what may
be there: the functions of `kernels`, copies and fills of memory, and NCCL.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import UsageError
from gpt2edu.evaluate import hellaswag_accuracy, validation_loss
from gpt2edu.hellaswag import Example, write_hellaswag
from gpt2edu.results import Row
from gpt2edu.run import Run, prepare_run
from gpt2edu.sample import generate
from gpt2edu.shards import write_shard
from gpt2edu.train import BatchStream, train_step

MICRO_STEPS = 2
SAMPLE_TOKENS = 4
EXAMPLES = 4
LIBRARIES = ("Memcpy ", "Memset ", "nccl")  # how the names of copies, fills and NCCL's kernels begin


def add_kernel_names(actions: Any) -> argparse.ArgumentParser:
    """Add the command `kernel_names` to the subcommands of `gpt2edu.bench`; return its parser."""
    parser = actions.add_parser("kernel_names", help="what runs on the device, by name", allow_abbrev=False)
    option = parser.add_argument
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option("-b", "--micro-batch", type=int, default=16, help="sequences at once, 4 or more (default %(default)s)")
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    return parser


def bench_kernel_names(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return a row for each device kernel of each phase.

    Raises:
        UsageError: there is no GPU to profile.
    """
    if device.type != "cuda":
        raise UsageError(f"kernel_names profiles a GPU, not {device.type}")
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        run = _prepare(arguments, device, Path(folder))
        dtype, shape = run.engine.dtype, {"B": arguments.micro_batch, "T": arguments.seq_len}
        return [
            {"op": phase, "variant": name, "dtype": dtype, "shape": shape, "n_runs": len(times_ms)}
            | {"median_ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}
            for phase, function in _phases(run, Path(folder)).items()
            for name, times_ms in sorted(device_times_ms(function).items())
        ]


def _prepare(arguments: argparse.Namespace, device: torch.device, folder: Path) -> Run:
    """Return a run on random tokens."""
    config = ModelConfig.from_descriptor(arguments.model)
    tokens_a_step = MICRO_STEPS * arguments.micro_batch * arguments.seq_len
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, tokens_a_step + 1)
    for split in ("train", "val"):
        write_shard(folder / f"random_{split}_000000.bin", tokens)
    settings = TrainConfig(
        train_pattern=str(folder / "random_train_*.bin"),
        val_pattern=str(folder / "random_val_*.bin"),
        model=arguments.model,
        micro_batch=arguments.micro_batch,
        seq_len=arguments.seq_len,
        total_batch=tokens_a_step,
        max_steps=10**6,
        backend="numba",
    )
    return prepare_run(settings, device, SingleProcess(), say=lambda _text: None)


def _phases(run: Run, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what a run does with the GPU, by name."""
    batches = BatchStream(run)
    engine, rows, communicator = run.engine, run.settings.micro_batch, run.communicator
    endings = [[3, 4], [5, 6, 7], [8], [9, 10]]
    write_hellaswag(folder / "hellaswag.bin", [Example([1, 2], endings, label=0)] * EXAMPLES)
    step = iter(range(10**6))
    return {
        "optimizer_step": lambda: train_step(run, next(step), batches),
        "validation": lambda: validation_loss(engine, run.val_loader, rows, communicator, None),
        "hellaswag": lambda: hellaswag_accuracy(
            engine, folder / "hellaswag.bin", rows, run.settings.seq_len, communicator
        ),
        "sampling": lambda: list(generate(engine.model, [0], SAMPLE_TOKENS, seed=0)),
    }


def device_times_ms(function: Callable[[], object]) -> dict[str, list[float]]:
    """Call a function until it repeats itself, then profile it; return the times of what ran on the device, by name."""
    function()  # compiles
    function()  # captures graphs, for which torch notes the state of its random generator on the device
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    times_ms: dict[str, list[float]] = defaultdict(list)
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times_ms[python_name(event.name) or event.name].append(event.time_range.elapsed_us() / 1e3)
    return times_ms


def _escaped(identifier: str) -> str:
    """Write a part of a Python name as Numba does in the name of a device function."""
    return re.sub(r"\W", lambda character: f"_{ord(character[0]):02x}", identifier)


def _parts(device_name: str) -> list[str]:
    """Split the name of a device function, C++'s mangled or readable one, into namespaces and function."""
    if not device_name.startswith("_ZN"):
        return re.split(r"[\[(<]", device_name)[0].split("::")
    parts, position = [], len("_ZN")
    while match := re.match(r"\d+", device_name[position:]):
        start = position + match.end()
        position = start + int(match[0])
        parts.append(device_name[start:position])
    return parts


def python_name(device_name: str) -> str | None:
    """Return the dotted name of the registered function that a device kernel was compiled from, None if there is none.

    Numba makes of module and function C++ namespaces, escapes what C++ does not allow in a name, and may put a
    namespace of its own before them.
    """
    from kernels.registry import all_kernels

    names = {f"{entry.function.__module__}.{entry.function.__qualname__}" for entry in all_kernels().values()}
    parts = _parts(device_name)
    if parts[0] == "cudapy":
        parts = parts[1:]
    return {tuple(map(_escaped, name.split("."))): name for name in names}.get(tuple(parts))


def is_allowed(variant: str) -> bool:
    """Say whether a row is of a function of `kernels`, of a copy or fill of memory, or of NCCL."""
    return variant.startswith(("kernels.", *LIBRARIES))
