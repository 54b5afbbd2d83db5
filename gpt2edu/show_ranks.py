"""What the chapter on many GPUs needs to show: programs on several ranks, memory, predictions, measurements."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2edu.communication import WORLDS, Cluster, Link, predict
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError
from gpt2edu.launcher import VARIABLES
from gpt2edu.machine import find_mpiexec
from gpt2edu.parameters import n_parameters
from gpt2edu.rank_lessons import MODEL
from gpt2edu.results import load_results
from gpt2edu.shards import write_shard
from gpt2edu.supervisor import supervise
from gpt2edu.table import Table

LIMIT_S = 120  # a rank that waits forever must not stop the notebook
WEIGHT_BYTES, GRADIENT_BYTES, STATE_BYTES = 2, 4, 12  # of a parameter: bf16; fp32; fp32 master weight, m and v
TOLD = re.compile(r"error: rank|restart \d|resuming at|stuck")
PROCESS = re.compile(r"process \d+ on \S+?(?=[)\s])")


def run_mpi(n: int, function: Callable[..., Any], *arguments: str) -> list[Any]:
    """Call a function of the package on `n` ranks that mpiexec starts; return what each returned, in rank order.

    It comes as JSON, so tuples are lists.

    Raises:
        Gpt2EduError: a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = ["-m", "gpt2edu.run_mpi", folder, function.__module__, function.__name__, *arguments]
        command = [find_mpiexec(), "-n", str(n), sys.executable, *program]
        process = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=_environment())
        if process.returncode:
            raise Gpt2EduError(f"a rank failed:\n{process.stderr}")
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(n)]


def _environment() -> dict[str, str]:
    """Return the environment without a launcher's variables, and with one thread a rank."""
    launchers = {name for pair in VARIABLES for name in pair}
    return {name: value for name, value in os.environ.items() if name not in launchers} | {"OMP_NUM_THREADS": "1"}


# --------------------------------------------------------------------------------------------------
# a tiny training


@contextlib.contextmanager
def tiny_training(n_steps: int) -> Iterator[tuple[Path, str]]:
    """Yield a folder with random tokens, and the flags that train a tiny model on them."""
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens.bin"
        write_shard(tokens, np.random.default_rng(0).integers(0, 10, 3000) ** 2)
        flags = f"-i {tokens} -j {tokens} -e {MODEL} -t 16 -d 128 -b 2 -x {n_steps} -l 0.01 -k constant -v 0 -s 0"
        yield Path(name), f"{flags} --device cpu"


def train_and_kill(n: int, *, rank: int, step: int, checkpoint_every: int, n_steps: int) -> tuple[list[str], bool]:
    """Train on `n` ranks, kill one after a step, and let the training be started again.

    Returns:
        What was said about it, and whether the last weights are, to the bit, those of a run that nobody disturbed.
    """
    with tiny_training(n_steps) as (folder, flags):
        flags += f" -n {checkpoint_every} -z 1"
        start = [find_mpiexec(), "-n", str(n), sys.executable, "-m", "gpt2edu.rank_lessons"]
        said, weights = io.StringIO(), []
        for name, dying in (("whole", -1), ("broken", rank)):
            death = [str(folder / "mark"), str(dying), str(step)]
            with contextlib.redirect_stdout(said):
                supervise([*start, *death], [*flags.split(), "-o", str(folder / name)], restarts=1)
            weights.append((folder / name / f"model_{n_steps:08d}.bin").read_bytes())
    lines = [PROCESS.sub("process ...", line) for line in said.getvalue().splitlines() if TOLD.search(line)]
    return lines, weights[0] == weights[1]


# --------------------------------------------------------------------------------------------------
# tables and plots


def show_rounds(histories: list[list[list[int]]]) -> Table:
    """Return the chunks of each rank (a row) after each round (a column); leading zeros show who is missing."""
    n = len(histories)
    rows = [[f"rank {rank}", *("  ".join(f"{chunk:0{n}d}" for chunk in state) for state in history)]
            for rank, history in enumerate(histories)]  # fmt: skip
    return Table(["", "before", *(f"after round {number}" for number in range(1, n))], rows)


def show_zero_memory(config: ModelConfig) -> Table:
    """Return what a rank holds of weights, gradients and the optimizer's state, with and without ZeRO-1."""
    rows = []
    for n in (1, 2, 4, 8, 64):
        sizes = (WEIGHT_BYTES + GRADIENT_BYTES, STATE_BYTES, STATE_BYTES / n)
        kept, plain, sharded = (size * n_parameters(config) / 1e9 for size in sizes)
        rows.append([str(n), *(f"{gb:.2f}" for gb in (kept, plain, kept + plain, sharded, kept + sharded))])
    header = ["ranks", "weights, gradients", "state, -z 0", "together", "state, -z 1", "together"]
    return Table(header, rows, "GB a rank.")


def plot_scaling(config: ModelConfig, flop_per_s: float, inside: Link, *networks: Link) -> None:
    """Draw the predicted share of computing in a step of 524,288 tokens, for `plt.show()`."""
    import matplotlib.pyplot as plt

    for network in networks:
        steps = [predict(config, 1024, 524_288, flop_per_s, n, Cluster(inside, network)) for n in WORLDS]
        (line,) = plt.plot(WORLDS, [100 * step.efficiency for step in steps], "o-", label=network.name)
        after = [100 * step.efficiency_after_backward for step in steps]
        plt.plot(WORLDS, after, ":", color=line.get_color(), label=f"{network.name}, sent after backward")
    plt.xscale("log", base=2)
    plt.xticks(WORLDS, map(str, WORLDS), fontsize=8)
    plt.ylim(0, 105)
    plt.xlabel("GPUs")
    plt.ylabel("computing, % of a step")
    plt.legend(fontsize=8)


def show_measured_sending(name: str = "ranks") -> Table:
    """Return what sending took on idle GPUs beside the prediction; one line says so where there are no numbers."""
    rows = [
        [
            *(f"{row['shape']['ranks']} {results.gpu}", row["variant"], row["dtype"], f"{row['median_ms']:,.1f}"),
            *(_cell(row, "predicted_ms"), _cell(row, "bus_gb_per_s", "{:,.0f}")),
        ]
        for results in load_results(name)
        for row in results.rows
        if row["op"] == "sending"
    ]
    if not rows:
        return Table(["results"], [[f"{name}: not measured yet"]])
    header = ["GPUs", "what", "dtype", "ms", "predicted", "GB/s sent"]
    return Table(header, rows, "Measured; the gradients or weights of GPT-2 124M.")


def show_measured_steps(name: str = "ranks") -> Table:
    """Return the measured steps on several GPUs beside the prediction; one line says so where there are none."""
    rows = []
    for results in load_results(name):
        for row in results.rows:
            if row["op"] == "step":
                shape, exposed = row["shape"], (_cell(row, "exposed_ms"), _cell(row, "after_backward_ms"))
                labels = [f"{shape['ranks']} {results.gpu}", row["variant"], str(shape["z"])]
                times = [f"{row['median_ms']:,.1f}", _cell(row, "predicted_ms"), _cell(row, "efficiency", "{:.1%}")]
                rows.append([*labels, *times, *exposed])
    if not rows:
        return Table(["results"], [[f"{name}: not measured yet"]])
    header = ["GPUs", "engine", "-z", "ms a step", "predicted", "efficiency", "not hidden, ms", "in one message, ms"]
    return Table(header, rows, "Measured in bf16; 524,288 tokens a step unless the file says otherwise.")


def _cell(row: Any, key: str, form: str = "{:z,.1f}") -> str:
    return form.format(row[key]) if key in row else ""
