"""The bench of the numba engine's start, in fresh processes: `python -m gpt2edu.bench start_up`.

The first process finds no compiled kernels and compiles them, the others load what it kept on disk. `imports` is the
time from the start of a process until the engine could be made; `first step` what a validation batch and an optimizer
step take then, the first of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import DATA_VARIABLE
from gpt2edu.results import Row

KEPT_RUNS = 2


def add_start_up(actions: Any) -> argparse.ArgumentParser:
    """Add the command `start_up` to the subcommands of `gpt2edu.bench`; return its parser."""
    parser = actions.add_parser("start_up", help="the first step, with and without kept kernels", allow_abbrev=False)
    option = parser.add_argument
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option("-b", "--micro-batch", type=int, default=16, help="sequences at once (default %(default)s)")
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    return parser


def bench_start_up(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return a row for the imports and one for the first step, cold and with kept kernels.

    Raises:
        UsageError: there is no GPU to compile for.
        Gpt2EduError: a process failed.
    """
    if device.type != "cuda":
        raise UsageError(f"start_up compiles for a GPU, not for {device.type}")
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        cold, *kept = [_start(arguments, folder) for _ in range(1 + KEPT_RUNS)]
    return start_rows(cold, kept, {"B": arguments.micro_batch, "T": arguments.seq_len})


def _start(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Start a process that keeps compiled kernels in a folder; return what it measured."""
    shape = map(str, (arguments.micro_batch, arguments.seq_len))
    command = [sys.executable, "-m", "gpt2edu.bench_start_up", arguments.model, *shape, repr(time.time())]
    result = subprocess.run(command, env=os.environ | {DATA_VARIABLE: folder}, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise Gpt2EduError("the process that was started failed; see above")
    return json.loads(result.stdout)


def start_rows(cold: dict[str, Any], kept: Sequence[dict[str, Any]], shape: dict[str, int]) -> list[Row]:
    """Return rows of what the processes measured."""

    def row(variant: str, times_ms: Sequence[float]) -> Row:
        what = {"op": "start_up", "variant": variant, "dtype": cold["dtype"], "shape": shape, "n_runs": len(times_ms)}
        return what | {"median_ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}

    return [
        row("imports", [one["imports_ms"] for one in (cold, *kept)]),
        row("first step, kernels compiled", [cold["first_step_ms"]]),
        row("first step, kernels kept on disk", [one["first_step_ms"] for one in kept]),
    ]


# ----------------------------------------------------------------------------------------------------
# in a process of its own


def main(arguments: Sequence[str]) -> None:
    """Take a validation batch and a step, and print what that and the imports before it took."""
    model, micro_batch, seq_len, started = arguments
    imports_s = time.time() - float(started)
    B, T = int(micro_batch), int(seq_len)
    config, settings = ModelConfig.from_descriptor(model), TrainConfig(model=model, seq_len=T, micro_batch=B)
    tokens_BS = np.random.default_rng(0).integers(0, config.vocab_size, (B, T + 1))
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    start = time.perf_counter()
    engine = NumbaEngine(config, settings, SingleProcess(), torch.device("cuda"))
    engine.losses(inputs_BT, targets_BT).cpu()
    engine.accumulate(inputs_BT, targets_BT, 1)
    engine.reduce()
    engine.update(learning_rate=1e-4, weight_decay=0.1, grad_scale=1.0, step=1)
    torch.cuda.synchronize()
    first_step_s = time.perf_counter() - start
    print(json.dumps({"imports_ms": 1e3 * imports_s, "first_step_ms": 1e3 * first_step_s, "dtype": engine.dtype}))


if __name__ == "__main__":
    main(sys.argv[1:])
