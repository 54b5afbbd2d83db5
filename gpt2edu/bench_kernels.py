"""Check and time the kernels of a training step beside PyTorch's: `python -m gpt2edu.bench <op>` and `all`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2edu.bench_ops import GROUPS, OPS
from gpt2edu.bench_ops.case import QUICK, Case, Checked, Draw, Sizes, check
from gpt2edu.bench_timing import Plan, Timing, measure_ceilings, n_rotating, time_calls
from gpt2edu.errors import Gpt2EduError
from gpt2edu.results import Row, read_results


def add_kernels(actions: Any) -> list[argparse.ArgumentParser]:
    """Add `all`, the groups and the single ops to the subcommands of `gpt2edu.bench`; return their parsers."""
    parsers = [actions.add_parser("all", help="every op, a results file a group", allow_abbrev=False)]
    for name in GROUPS:
        ops = [op for op, group in OPS.items() if group == name]
        parsers.append(actions.add_parser(name, help=", ".join(ops) or f"the op {name}", allow_abbrev=False))
    parsers += [actions.add_parser(op, allow_abbrev=False) for op in OPS]  # without help, so not listed
    for parser in parsers:
        option = parser.add_argument
        option("--quick", action="store_true", help="tiny shapes, only to see that it works; always so on a CPU")
        option("--no-ladder", action="store_true", help="leave out the early steps, measure what is used")
        option("--bursts", type=int, default=9, help="measurements of each variant (default %(default)s)")
        option("--sustained", type=float, default=0.5, metavar="S", help="seconds of the long bursts (default 0.5)")
        option("--seed", type=int, default=0, help="of the order of the variants (default %(default)s)")
        option("--compare", type=Path, nargs="+", metavar="FILE", help="results files to compare with")
    return parsers


@dataclass
class Measured:
    """What one results file will hold, and what went wrong on the way."""

    name: str
    rows: list[Row]
    ceilings: dict[str, float]
    problems: list[str]


def bench_kernels(arguments: argparse.Namespace, device: torch.device) -> Iterator[Measured]:
    """Measure the groups that were asked for, one after the other; a case that fails is reported and left out."""
    sizes = QUICK if arguments.quick or device.type != "cuda" else Sizes()
    plan = Plan(arguments.bursts, min(3, arguments.bursts), arguments.sustained, arguments.seed)
    if sizes is QUICK:
        plan = Plan(n_bursts=1, n_slow_bursts=1, sustained_s=0.0, seed=arguments.seed)
    names = list(GROUPS) if arguments.action == "all" else [arguments.action]
    with side_stream(device) as stream:
        cases = {name: GROUPS[OPS.get(name, name)](device, sizes) for name in names}
        cases = {name: [c for c in found if name not in OPS or c.op == name] for name, found in cases.items()}
        progress = Progress(sum(map(len, cases.values())))
        for name in names:
            measured = Measured(name, [], measure_ceilings(device, plan), [])
            for case in cases[name]:
                measure_case(case, measured, arguments.no_ladder, device, stream, plan, progress.say)
                progress.n_done += 1
            yield measured


class Progress:
    """Prints lines that begin with how far the measurement is and how long it will still take."""

    def __init__(self, n_cases: int):
        self.n_cases, self.n_done, self._start = n_cases, 0, time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line."""
        elapsed = time.perf_counter() - self._start
        left = f"{elapsed / self.n_done * (self.n_cases - self.n_done):4.0f} s left" if self.n_done else 11 * " "
        print(f"[{self.n_done + 1}/{self.n_cases} {elapsed:4.0f} s {left}] {text}", flush=True)


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[Any]:
    """Run on a stream that can be captured, and give it as launchers take it."""
    if device.type != "cuda":
        yield 0
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream.cuda_stream


def measure_case(
    case: Case,
    measured: Measured,
    no_ladder: bool,
    device: torch.device,
    stream: Any,
    plan: Plan,
    say: Callable[[str], None],
) -> None:
    """Check, time, and add the rows of one case."""
    if no_ladder:
        for step in set(case.ours) - {"production"}:
            del case.ours[step]
    try:
        checked = check(case, device, stream)
        timings = _time(case, checked, device, stream, plan)
    except Exception as problem:  # whatever a kernel or a library raises; the other cases are worth measuring still
        measured.problems.append(f"{case}: {type(problem).__name__}: {problem}")
        say("".join(traceback.format_exception(problem)))
        return
    finally:
        _free_memory(device)
    for name, reason in checked.refused.items():
        say(f"{case} {name}: not for this machine or shape ({reason})")
    measured.problems += [f"{case} {name}: {problem}" for name, problem in checked.wrong.items()]
    rows = make_rows(case, checked, timings, measured.ceilings)
    measured.rows += rows
    for row, timing in zip(rows, timings.values(), strict=True):
        say(line_of(row) + ("" if timing.captured or device.type != "cuda" else " (not captured in a graph)"))


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _time(case: Case, checked: Checked, device: torch.device, stream: Any, plan: Plan) -> dict[str, Timing]:
    """Time the variants that passed, PyTorch's last."""
    right = [name for name in case.ours if name not in checked.wrong | checked.refused]
    first = case.make(Draw(device))
    bytes_of_set = sum(x.nbytes for x in vars(first).values())
    sets = [first, *(case.make(Draw(device, seed)) for seed in range(1, n_rotating(bytes_of_set, device)))]
    calls = {name: [case.ours[name](buffers, stream) for buffers in sets] for name in right}
    calls |= {name: [variant(buffers) for buffers in sets] for name, variant in case.theirs.items()}
    sustained = frozenset({"production", *case.theirs}) if case.sustained else frozenset()
    return time_calls(calls, device, plan, sustained)


def make_rows(case: Case, checked: Checked, timings: dict[str, Timing], ceilings: dict[str, float]) -> list[Row]:
    """Return the results rows of a case; `torch_ms` is the fastest of PyTorch's variants."""
    torch_ms = min(timings[name].median_ms for name in case.theirs)
    rows = []
    for name, timing in timings.items():
        median_ms = timing.median_ms
        row = {"op": case.op, "variant": name, "dtype": case.dtype, "shape": case.shape}
        row |= {"n_runs": len(timing.bursts_ms), "median_ms": median_ms}
        row |= {"min_ms": min(timing.bursts_ms), "max_ms": max(timing.bursts_ms)}
        if case.flop:
            row["tflop_per_s"], ceiling = case.flop / median_ms / 1e9, ceilings.get("matmul_tflop_per_s")
        else:
            row["gb_per_s"], ceiling = case.n_bytes / median_ms / 1e6, ceilings.get("copy_gb_per_s")
        if ceiling:
            row["ceiling_share"] = row["tflop_per_s" if case.flop else "gb_per_s"] / ceiling
        row |= {"torch_ms": torch_ms, "torch_ratio": torch_ms / median_ms}
        row |= {"max_error": checked.errors[name], "baseline_error": checked.baseline_error}
        if case.memory and name in checked.peak_bytes:
            row["peak_bytes"] = checked.peak_bytes[name]
        if timing.sustained_ms:
            row["sustained_ms"] = timing.sustained_ms
        rows.append(row)
    return rows


def line_of(row: Row) -> str:
    """Return a results row as one line."""
    shape = " ".join(f"{letter}={size}" for letter, size in row["shape"].items())
    rate = f"{row['gb_per_s']:6.0f} GB/s" if "gb_per_s" in row else f"{row['tflop_per_s']:6.1f} TFLOP/s"
    share = f" {row['ceiling_share']:4.0%} of ceiling" if "ceiling_share" in row else ""
    long = f", sustained {row['sustained_ms']:.3f}" if "sustained_ms" in row else ""
    errors = f"error {row['max_error']:.2g} (torch {row['baseline_error']:.2g})"
    speed = f"{row['torch_ratio']:.3f}x torch"
    return (
        f"{row['op']} {shape} {row['variant']:<20} {row['median_ms']:9.4f} ms{long}, {rate}{share}, {speed}, {errors}"
    )


# ---- comparison ----------------------------------------------------------------------------------------------------


def compare(rows: list[Row], files: list[Path]) -> str:
    """Return a table of these rows against earlier files: milliseconds before and now, and before over now.

    Raises:
        Gpt2EduError: a file is not a results file.
    """
    before = {_key(row): row["median_ms"] for file in files for row in read_results(file).rows}
    lines = [f"{'variant':<78} {'before':>10} {'now':>10}  before/now"]
    for row in rows:
        shape = " ".join(f"{letter}={size}" for letter, size in row["shape"].items())
        label = f"{row['op']} {shape} {row['dtype']} {row['variant']}"
        old = before.get(_key(row), math.nan)
        lines.append(f"{label:<78} {old:10.4f} {row['median_ms']:10.4f}  {old / row['median_ms']:10.3f}")
    return "\n".join(lines)


def _key(row: Row) -> tuple:
    return row["op"], row["variant"], row["dtype"], tuple(row["shape"].items())


def report_problems(problems: list[str]) -> None:
    """Raise if something went wrong.

    Raises:
        Gpt2EduError: names every case that failed.
    """
    if problems:
        raise Gpt2EduError(f"{len(problems)} failed, the rest is written:\n  " + "\n  ".join(problems))
