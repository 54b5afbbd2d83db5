"""What the chapters' cells tagged `gpu` call: measure again here, and say whether the stored table holds.

GPUs and their clocks differ, so no milliseconds are compared but shares: what an operation reaches of this GPU's own
ceiling (a large copy, or a large product, measured in the same cell) beside the same share in `book/results`. The
verdict says the same on every GPU that runs the kernels as well as the one of the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from gpt2edu.bench_kernels import Measured, measure_case, report_problems, side_stream
from gpt2edu.bench_ops import GROUPS, OPS
from gpt2edu.bench_ops.case import Case, Sizes
from gpt2edu.bench_step import step_rows, train_settings, trainer_step
from gpt2edu.bench_timing import Plan, measure_ceilings, time_interleaved
from gpt2edu.distributed import SingleProcess
from gpt2edu.results import Row, load_results
from gpt2edu.run import prepare_run
from gpt2edu.show import Verdict, show_check
from kernels import SIMULATED

KEPT = 0.8  # of the stored share of the ceiling; clocks and neighbours cost a little
STEP_BYTES = 40e9  # free memory that a step of B=64 is tried with
SKIPPED = "skipped: to measure, the kernels need an NVIDIA GPU that knows bf16 (compute capability 8.0 or more)"
SHORT = Plan(n_bursts=5, n_slow_bursts=3, sustained_s=0.0)


def measure_again(*ops: str) -> None:
    """Check and time what is used of each op, at the first shape of its table, and print a verdict for each."""
    if SIMULATED:
        print(SKIPPED)
        return
    device = torch.device("cuda")
    ceilings = measure_ceilings(device, SHORT)
    with side_stream(device) as stream:
        for op in ops:
            group = OPS.get(op, op)
            case = _only_used(next(case for case in GROUPS[group](device, Sizes()) if case.op == op))
            measured = Measured(group, [], ceilings, [])
            measure_case(case, measured, True, device, stream, SHORT, say=lambda _line: None)
            report_problems(measured.problems)
            now = next(row for row in measured.rows if row["variant"] == "production")
            stored = [row for results in load_results(group) for row in results.rows if row["op"] == op]
            _verdict(now, (row for row in stored if row["variant"] == "production" and row["shape"] == now["shape"]))


def measure_step_again() -> None:
    """Time optimizer steps of GPT-2 124M with the numba engine, and print whether they are as fast as the table's."""
    if SIMULATED:
        print(SKIPPED)
        return
    device = torch.device("cuda")
    if torch.cuda.mem_get_info(device)[0] < STEP_BYTES:
        print(f"skipped: a step of B=64 needs {STEP_BYTES / 1e9:.0f} GB of free GPU memory")
        return
    shape = argparse.Namespace(model="d12", micro_batch=64, seq_len=1024, total_batch=524_288, recompute=0)
    with tempfile.TemporaryDirectory(prefix="gpt2edu-book-") as folder:
        settings = dataclasses.replace(train_settings(shape, device, Path(folder)), backend="numba", compile=None)
        run = prepare_run(settings, device, SingleProcess(), say=lambda _line: None)
        step = {"numba": trainer_step(run)}
        times = time_interleaved(step, n_blocks=1, block_steps=3, warmup=1, sync=torch.cuda.synchronize)
        (now,) = step_rows(times, "numba", run)
    ceiling = measure_ceilings(device, SHORT)["matmul_tflop_per_s"]
    rows = [row for results in load_results("step") for row in results.rows]
    stored = [row for row in rows if (row["variant"], row["shape"]) == ("numba", now["shape"])]
    _verdict(now | {"ceiling_share": now["tflop_per_s"] / ceiling}, stored)


def _only_used(case: Case) -> Case:
    """Return a case with the variant that is used, and one of PyTorch's as the yardstick of its error."""
    yardstick = dict([next(iter(case.theirs.items()))])
    return dataclasses.replace(case, ours={"production": case.ours["production"]}, theirs=yardstick)


def _verdict(now: Row, stored: Iterable[Row]) -> Verdict:
    """Print whether a row reaches the share of the ceiling that the table has for it."""
    shape = " ".join(f"{letter}={size}" for letter, size in now["shape"].items() if letter in "BTNMCFKVHD")
    name = f"{now['op']} {shape}"
    shares = [row["ceiling_share"] for row in stored if "ceiling_share" in row]
    if not shares or "ceiling_share" not in now:
        return show_check(name, False, "there is nothing in the tables to compare with")
    holds = now["ceiling_share"] >= KEPT * min(shares)
    # a share that does not hold is worth its numbers; one that does must read the same everywhere
    detail = "as near to the ceiling as in the table" if holds else f"{now['ceiling_share']:.2f}, not {min(shares):.2f}"
    return show_check(name, holds, detail)
