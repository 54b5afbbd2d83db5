"""The bench of several GPUs, which starts ranks by mpiexec: `python -m gpt2edu.bench ranks`.

For one number of ranks after another it measures what sending takes and what steps take, and puts beside it what
`gpt2edu.communication` predicts.

With several ranks three kinds of step take turns: as in training; with the gradients sent only after the backward pass;
and with nothing sent at all, whose results are wrong but whose time is that of computing alone. What a step takes more
than the last is the communication that is not hidden.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2edu.averaging import LADDER, Grouped, Overlapped
from gpt2edu.bench_step import add_shape_options, train_settings, trainer_step
from gpt2edu.bench_text_run import distance, text_run
from gpt2edu.bench_timing import time_interleaved
from gpt2edu.communication import INFINIBAND, Cluster, link_of_gpu, predict, ring_seconds, step_traffic
from gpt2edu.config import ModelConfig
from gpt2edu.distributed import Communicator, make_communicator, rank_zero_print
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.flops import flop_per_token, mfu
from gpt2edu.machine import find_mpiexec
from gpt2edu.parameters import n_parameters, shards_of_rank
from gpt2edu.results import Row, read_results
from gpt2edu.run import prepare_run
from gpt2edu.torch_engine import choose_device

HANG_TIMEOUT_S = 120.0
SEND_REPEATS = 8  # the first two untimed
TEXT_MICRO_BATCH = 16
WEIGHT_BYTES = {"numba": 2, "torch": 4}  # of a weight that ZeRO-1 gathers, when the products are in bf16


def add_ranks(actions: Any) -> argparse.ArgumentParser:
    """Add the command `ranks` to the subcommands of `gpt2edu.bench`; return its parser."""
    parser = actions.add_parser("ranks", help="steps and communication of several GPUs", allow_abbrev=False)
    add_shape_options(parser)
    option = parser.add_argument
    option("-n", "--ranks", type=int, nargs="+", help="numbers of ranks to start (default: 1 2 4 8, as far as GPUs go)")
    option("--engines", nargs="*", default=["numba", "torch"], choices=("numba", "torch"), help="default both")
    option("-z", "--zero-stages", type=int, nargs="+", default=[0, 1], choices=(0, 1), help="default 0 1")
    option("--blocks", type=int, default=2, help="turns of each kind of step (default %(default)s)")
    option("--block-steps", type=int, default=3, help="timed steps in a turn (default %(default)s)")
    option("--warmup", type=int, default=2, help="untimed steps before the first turn (default %(default)s)")
    option("--earlier", type=Path, nargs="*", default=[], metavar="FILE", help="take over the rows of these results")
    option("-i", "--train-pattern", help="shards of text: loss curves as well")
    option("-j", "--val-pattern", help="validation shards of the text")
    option("-x", "--steps", type=int, default=300, help="steps on the text (default %(default)s)")
    option("--text-engine", default="numba", choices=("numba", "torch"), help="default numba")
    option("--text-micro-batches", type=int, nargs="+", help="of one rank (default 16 8, to see its own spread)")
    option("--text-batch", type=int, default=32_768, help="tokens of such a step (default %(default)s)")
    option("-v", "--val-every", type=int, default=100, help="validate every so many of them (default %(default)s)")
    return parser


def bench_ranks(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Start each number of ranks in turn; return the rows of all, those taken over among them, with predictions.

    Raises:
        UsageError: there are fewer GPUs.
        Gpt2EduError: ranks failed.
    """
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 2
    arguments.ranks = arguments.ranks or [n for n in (1, 2, 4, 8) if n <= n_gpus]
    if device.type == "cuda" and max(arguments.ranks) > n_gpus:
        raise UsageError(f"-n {max(arguments.ranks)}: this machine has {n_gpus} GPUs")
    rows = [row for path in arguments.earlier for row in read_results(path).rows]
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        for n in arguments.ranks:
            path = Path(folder) / f"{n}.json"
            options = json.dumps(vars(arguments) | {"folder": folder, "rows": str(path)}, default=str)
            command = [find_mpiexec(), "-n", str(n), sys.executable, "-m", "gpt2edu.bench_ranks", options]
            if subprocess.run(command).returncode:
                raise Gpt2EduError(f"{n} ranks failed; see above")
            rows += json.loads(path.read_text())
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    rows = [add_prediction(row, rows, ModelConfig.from_descriptor(arguments.model), gpu) for row in rows]
    report_text(rows)
    return rows


# --------------------------------------------------------------------------------------------------
# on each rank


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as one of the ranks; rank 0 writes the rows."""
    (options,) = sys.argv[1:] if argv is None else argv
    arguments = argparse.Namespace(**json.loads(options))
    device = choose_device(arguments.device)
    with make_communicator(device.type, HANG_TIMEOUT_S) as ranks:
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        rows = sending_rows(arguments, device, ranks) if ranks.world_size > 1 else []
        for engine in arguments.engines:
            for zero_stage in arguments.zero_stages if ranks.world_size > 1 else [0]:
                rows.append(step_row(arguments, device, ranks, engine, zero_stage))
                rank_zero_print(ranks, json.dumps(rows[-1]))  # should the next one fail
                gc.collect()  # an engine's graphs hold its memory in a circle
        if arguments.train_pattern:
            rows += text_rows(arguments, device, ranks)
        if ranks.rank == 0:
            Path(arguments.rows).write_text(json.dumps(rows))
    return 0


def sending_rows(arguments: argparse.Namespace, device: torch.device, ranks: Communicator) -> list[Row]:
    """Time every way to average the gradients, and both all-gathers, while nothing is computed."""
    config = ModelConfig.from_descriptor(arguments.model)
    shards = list(shards_of_rank(config, ranks.rank, ranks.world_size))
    flat = torch.zeros(n_parameters(config), device=device)
    halves = flat.to(torch.bfloat16)
    calls: dict[str, Callable[[], None]] = {name: way(ranks, flat, shards).finish for name, way in LADDER.items()}
    calls["overlapped, bf16"] = Overlapped(ranks, flat, shards, torch.bfloat16).finish
    calls["all-gather, fp32"] = lambda: ranks.all_gather(flat, shards)
    calls["all-gather, bf16"] = lambda: ranks.all_gather(halves, shards)
    rows = []
    for name, call in calls.items():
        times_ms = []
        for _ in range(SEND_REPEATS):
            ranks.barrier()
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            times_ms.append(1e3 * (time.perf_counter() - start))
        row = _row("sending", name, _slowest(ranks, times_ms)[2:], {"ranks": ranks.world_size, "n": len(flat)})
        n_bytes, _ = _sent(name, config, ranks.world_size)
        rows.append(
            row | {"dtype": "bf16" if "bf16" in name else "fp32", "bus_gb_per_s": n_bytes / row["median_ms"] / 1e6}
        )
    return rows


def _sent(name: str, config: ModelConfig, world_size: int) -> tuple[float, int]:
    """Return the bytes that a rank sends for one of the calls above, and the number of messages."""
    traffic = step_traffic(config, world_size, zero_stage=0)
    way, _, dtype = name.partition(", ")
    n_slices = len(list(shards_of_rank(config, 0, world_size)))
    messages = {"all-reduce": 2, "reduce-scatter": n_slices, "overlapped": traffic.n_buckets}
    factor = 2.0 if way == "all-reduce" else 0.5 if dtype == "bf16" else 1.0
    return factor * traffic.reduce_bytes, messages.get(way, 1)


def step_row(
    arguments: argparse.Namespace, device: torch.device, ranks: Communicator, engine: str, zero_stage: int
) -> Row:
    """Time the steps of an engine on random tokens."""
    settings = ranks.broadcast(train_settings(arguments, device, Path(arguments.folder)) if ranks.rank == 0 else None)
    settings = dataclasses.replace(settings, backend=engine, zero_stage=zero_stage)
    settings.compile = settings.compile if engine == "torch" else None
    run = prepare_run(settings, device, ranks, say=lambda _text: None)
    step = trainer_step(run)
    kinds = {"as in training": step}
    if ranks.world_size > 1:
        kinds["nothing sent"] = _unsent(ranks, step)
    if ranks.world_size > 1 and not settings.compile:  # torch.compile's model has all gradients at the end anyway
        kinds["after backward"] = _after_backward(run.engine, step)
    times = time_interleaved(
        kinds,
        n_blocks=arguments.blocks,
        block_steps=arguments.block_steps,
        warmup=arguments.warmup,
        sync=lambda: _synchronize(device),
    )
    slowest = {kind: _slowest(ranks, values) for kind, values in times.items()}
    config, tokens = run.engine.config, settings.total_batch
    shape = {"ranks": ranks.world_size, "B": settings.micro_batch, "T": settings.seq_len, "tokens": tokens}
    shape |= {"L": config.n_layers, "C": config.channels, "z": zero_stage}
    row = _row("step", engine, slowest["as in training"], shape) | {"dtype": run.engine.dtype}
    seconds = row["median_ms"] / 1e3
    row["tokens_per_s"] = tokens / seconds
    row["tflop_per_s"] = flop_per_token(config, settings.seq_len) * tokens / seconds / ranks.world_size / 1e12
    if run.peak_flop_per_s:
        row["mfu"] = mfu(config, settings.seq_len, tokens / seconds / ranks.world_size, run.peak_flop_per_s)
    if ranks.world_size > 1:
        medians = {kind: statistics.median(values) for kind, values in slowest.items()}
        row["exposed_ms"] = medians["as in training"] - medians["nothing sent"]
        if "after backward" in medians:
            row["after_backward_ms"] = medians["after backward"] - medians["nothing sent"]
    return row


def _after_backward(engine: Any, step: Callable[[], None]) -> Callable[[], None]:
    """Return the step with all gradients sent in one message when backward is over."""
    overlapped = engine.averaging
    grouped = Grouped(overlapped.communicator, overlapped.gradients, overlapped.shards)

    def take() -> None:
        engine.averaging = grouped
        step()
        engine.averaging = overlapped

    return take


def _unsent(ranks: Communicator, step: Callable[[], None]) -> Callable[[], None]:
    """Return the step without what goes between GPUs; the ranks still agree on the loss through MPI."""

    def take() -> None:
        with _silence(ranks):
            step()

    return take


@contextlib.contextmanager
def _silence(ranks: Communicator) -> Iterator[None]:
    """Hide the methods of the class that send."""
    vars(ranks)["begin_reduce_scatter_mean"] = lambda _flat, _shards: lambda: None
    vars(ranks)["all_gather"] = lambda _flat, _shards: None
    try:
        yield
    finally:
        del vars(ranks)["begin_reduce_scatter_mean"], vars(ranks)["all_gather"]


def text_rows(arguments: argparse.Namespace, device: torch.device, ranks: Communicator) -> list[Row]:
    """Train on real text; one rank does it twice, with different micro-batches, for its own spread."""
    n_sequences = arguments.text_batch // arguments.seq_len // ranks.world_size
    sizes = [min(TEXT_MICRO_BATCH, n_sequences)]
    if ranks.world_size == 1:
        sizes = arguments.text_micro_batches or [sizes[0], sizes[0] // 2]
    text = argparse.Namespace(**vars(arguments) | {"total_batch": arguments.text_batch})
    rows = []
    for micro_batch in sizes:
        row = text_run(text, device, arguments.text_engine, micro_batch, ranks)
        row["shape"]["ranks"] = ranks.world_size
        rows.append(row)
        gc.collect()
    return rows


def _row(op: str, variant: str, times_ms: list[float], shape: dict[str, int]) -> Row:
    times = {"median_ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}
    return {"op": op, "variant": variant, "shape": shape, "n_runs": len(times_ms), **times}


def _slowest(ranks: Communicator, times_ms: list[float]) -> list[float]:
    """Return each time of the rank that took longest."""
    return [max(times) for times in zip(*ranks.gather(times_ms), strict=True)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --------------------------------------------------------------------------------------------------
# afterwards


def add_prediction(row: Row, rows: Sequence[Row], config: ModelConfig, gpu: str) -> Row:
    """Return a row with what the communication model predicts, and how it compares with one rank."""
    n, cluster = row["shape"]["ranks"], Cluster(link_of_gpu(gpu), INFINIBAND)
    if row["op"] == "sending":
        return row | {"predicted_ms": 1e3 * ring_seconds(*_sent(row["variant"], config, n), n, cluster)}
    alone = [r for r in rows if r["op"] == "step" and r["variant"] == row["variant"] and r["shape"]["ranks"] == 1]
    if row["op"] != "step" or not alone or n == 1:
        return row
    one_s, shape = alone[0]["median_ms"] / 1e3, row["shape"]
    flop_per_s = flop_per_token(config, shape["T"]) * shape["tokens"] / one_s
    sizes = config, shape["T"], shape["tokens"]
    weight_bytes = WEIGHT_BYTES[row["variant"]]
    step = predict(*sizes, flop_per_s, n, cluster, shape["z"], weight_bytes)
    # out of a model that torch.compile has made one piece of all gradients come at the end
    exposed_s = step.exposed_s if row["variant"] == "numba" else step.reduce_s + step.gather_s
    sent = {r["variant"]: r["median_ms"] for r in rows if r["op"] == "sending" and r["shape"]["ranks"] == n}
    gathered = "all-gather, bf16" if shape["z"] and weight_bytes == 2 else "all-gather, fp32"
    return row | {
        "efficiency": 1e3 * one_s / (n * row["median_ms"]),
        "predicted_ms": 1e3 * (step.compute_s + exposed_s),
        "exposed_share": row["exposed_ms"] / (sent["overlapped"] + sent[gathered]),
    }


def report_text(rows: Sequence[Row]) -> None:
    """Print how far the losses of several ranks are from those of one, beside the distance of that one from itself."""
    text = [row for row in rows if row["op"] == "text_run"]
    alone = [row for row in text if row["shape"]["ranks"] == 1]
    if len(alone) == 2:
        print(f"later half of the losses: one GPU with two micro-batches differs by {distance(*alone):.5f} nats")
        for row in text:
            if row["shape"]["ranks"] > 1:
                print(f"  {row['shape']['ranks']} GPUs from one: {distance(row, alone[0]):.5f} nats")


if __name__ == "__main__":
    run_main(main)
