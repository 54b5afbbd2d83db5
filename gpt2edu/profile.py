"""Where the time of a training step goes: `python -m gpt2edu.profile`.

One step of the numba engine runs under torch's profiler. The engine's launches are known in their order, so each
kernel on the device finds the operation that it is a part of, and its time stands beside the least that it could be:
the arithmetic at the rate of a large product, the bytes at the rate of a large copy, both measured in the same run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2edu.bench_step import add_shape_options, train_settings
from gpt2edu.bench_timing import Plan, measure_ceilings
from gpt2edu.config import ModelConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.kernel_adamw import vector_spans
from gpt2edu.machine import describe_machine
from gpt2edu.parameters import n_parameters, shards_of_rank
from gpt2edu.passes import Passes
from gpt2edu.results import RESULTS_DIR, Row, write_results
from gpt2edu.run import Run, prepare_run
from gpt2edu.train import BatchStream, train_step
from gpt2edu.work import Work, work_of

EXAMPLES = """examples:
  python -m gpt2edu.profile                               124M, B=64, one step of 524,288 tokens
  python -m gpt2edu.profile --arch sm_80 --timeline t.svg   the A100's kernels, and a picture of one micro-batch
"""
WARMUP_STEPS = 2
IDLE, COPY = "idle", "copies and fills"
GROUPS = {
    "matmul": ("matmul_forward", "matmul_grad_input", "matmul_grad_weight"),
    "attention": ("attention_forward", "attention_backward"),
    "layernorm": ("layernorm_forward", "residual_layernorm_forward", "layernorm_backward"),
    "classifier": ("fused_classifier",),
}
"""Operations that have one colour in the picture; all others share another."""
COLOURS = {
    "matmul": "#2563eb",
    "attention": "#16a34a",
    "layernorm": "#d97706",
    "classifier": "#9333ea",
    "other": "#64748b",
}


@dataclass(frozen=True)
class Part:
    """One launch of a micro-step: the operation it belongs to, and that one's work if it is its first launch."""

    operation: str
    work: Work


class RecordingPasses(Passes):
    """Remembers which operation each launch belongs to."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.parts: list[Part] = []

    def _do(self, operation: Callable, *arguments: object, **keywords: object) -> None:
        before = len(self._launches)
        super()._do(operation, *arguments, **keywords)
        name = operation.__name__
        for place in range(len(self._launches) - before):
            self.parts.append(Part(name, Work() if place else work_of(name, arguments, keywords)))


@dataclass(frozen=True)
class DeviceEvent:
    """A kernel or copy on the device; microseconds since the first one began."""

    name: str
    start_us: float
    end_us: float


def device_events(function: Callable[[], object]) -> list[DeviceEvent]:
    """Run a function under the profiler and return what the device did, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    found = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    found.sort(key=lambda event: event.time_range.start)
    first = found[0].time_range.start
    return [DeviceEvent(e.name, e.time_range.start - first, e.time_range.end - first) for e in found]


def is_kernel(event: DeviceEvent) -> bool:
    """Tell kernels from copies and fills."""
    return not event.name.startswith(("Memcpy", "Memset"))


def label(events: Sequence[DeviceEvent], parts: Sequence[Part]) -> list[tuple[DeviceEvent, Part]]:
    """Give each event its operation.

    Args:
        events: in order; copies among them.
        parts: of all kernels of the step, in order.

    Raises:
        Gpt2EduError: there are more or fewer kernels than launches.
    """
    n_kernels = sum(map(is_kernel, events))
    if n_kernels != len(parts):
        raise Gpt2EduError(f"the device ran {n_kernels} kernels, but the step has {len(parts)} launches")
    remaining = iter(parts)
    return [(event, next(remaining) if is_kernel(event) else Part(COPY, Work())) for event in events]


def step_parts(run: Run) -> list[Part]:
    """Return the parts of a whole optimizer step, in the order in which the engine launches them."""
    engine, settings = run.engine, run.settings
    passes = engine.recorded_passes(settings.micro_batch, settings.seq_len, run.n_micro_steps, RecordingPasses)
    passes.micro_step(1.0)
    passes.embedding_gradient()
    return whole_step(passes.parts, run.n_micro_steps, engine.config, engine.dtype)


def whole_step(micro_step: list[Part], n_micro_steps: int, config: ModelConfig, dtype: str) -> list[Part]:
    """Return the parts of a step of one rank: its beginning, each micro-step's parts, the norm and the update."""
    n = n_parameters(config)
    bf16_bytes = 2 if dtype == "bf16" else 0
    start = [Part("zero", Work(n_bytes=4 * n)), Part("zero", Work())]
    end = [Part("total", Work())] * 2 + [Part("global_norm", Work(n_bytes=4 * n)), Part("global_norm", Work())]
    end += [Part("adamw_update", Work(n_bytes=(28 + bf16_bytes) * n))]
    rounded = vector_spans(shards_of_rank(config, 0, 1)) if dtype == "bf16" else []
    end += [Part("cast", Work(n_bytes=6 * span.size)) for span in rounded]
    return start + micro_step * n_micro_steps + end


def rows_of(
    labelled: Sequence[tuple[DeviceEvent, Part]], ceilings: dict[str, float], dtype: str, shape: dict[str, int]
) -> list[Row]:
    """Return a row for each operation, for the idle time, and for the whole step; `floor_ms` is the least possible."""
    whole_ms = max(event.end_us for event, _ in labelled) / 1e3
    rows, busy_ms = [], 0.0
    for operation in dict.fromkeys(part.operation for _, part in labelled):
        own = [(event, part.work) for event, part in labelled if part.operation == operation]
        ms = sum(event.end_us - event.start_us for event, _ in own) / 1e3
        flop, n_bytes = sum(work.flop for _, work in own), sum(work.n_bytes for _, work in own)
        busy_ms += ms
        row = _row(operation, ms, len(own), dtype, shape)
        if flop:
            row |= {"tflop_per_s": flop / ms / 1e9, "floor_ms": flop / ceilings["matmul_tflop_per_s"] / 1e9}
        elif n_bytes:
            row |= {"gb_per_s": n_bytes / ms / 1e6, "floor_ms": n_bytes / ceilings["copy_gb_per_s"] / 1e6}
        rows.append(row | ({"ceiling_share": row["floor_ms"] / ms} if "floor_ms" in row else {}))
    rows.sort(key=lambda row: -row["median_ms"])
    rows.append(_row(IDLE, max(0.0, whole_ms - busy_ms), 1, dtype, shape))
    floor_ms = sum(row.get("floor_ms", 0.0) for row in rows)
    return [
        *rows,
        _row("step", whole_ms, 1, dtype, shape) | {"floor_ms": floor_ms, "ceiling_share": floor_ms / whole_ms},
    ]


def _row(operation: str, ms: float, n_runs: int, dtype: str, shape: dict[str, int]) -> Row:
    times = {"median_ms": ms, "min_ms": ms, "max_ms": ms}
    return {"op": operation, "variant": "production", "dtype": dtype, "shape": shape, "n_runs": n_runs, **times}


def table(rows: Iterable[Row]) -> str:
    """Return the rows as text: launches, milliseconds, share of the step, rate, and share of the ceiling."""
    rows = list(rows)
    whole_ms = rows[-1]["median_ms"]
    lines = [
        f"{'operation':<28} {'launches':>8} {'ms':>9} {'share':>6} {'rate':>14} {'floor ms':>9} {'of ceiling':>10}"
    ]
    for row in rows:
        rate = f"{row['tflop_per_s']:,.0f} TFLOP/s" if "tflop_per_s" in row else ""
        rate = f"{row['gb_per_s']:,.0f} GB/s" if "gb_per_s" in row else rate
        floor = f"{row['floor_ms']:9.2f} {row['ceiling_share']:10.0%}" if "floor_ms" in row else ""
        share = row["median_ms"] / whole_ms
        lines.append(
            f"{row['op']:<28} {row['n_runs']:>8} {row['median_ms']:9.2f} {share:6.1%} {rate:>14} {floor}".rstrip()
        )
    return "\n".join(lines)


def group_of(operation: str) -> str:
    """Return the colour group of an operation."""
    return next((name for name, members in GROUPS.items() if operation in members), "other")


def draw_timeline(labelled: Sequence[tuple[DeviceEvent, Part]], path: Path, n_micro_steps: int) -> None:
    """Draw what the device did during the second micro-batch, a line a group."""
    from matplotlib.figure import Figure

    end_us = max(event.end_us for event, _ in labelled)
    first, last = (end_us * k / n_micro_steps for k in ((1, 2) if n_micro_steps > 2 else (0, n_micro_steps)))
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.subplots()
    names = list(COLOURS)
    for place, name in enumerate(names):
        spans = [
            ((event.start_us - first) / 1e3, (event.end_us - event.start_us) / 1e3)
            for event, part in labelled
            if group_of(part.operation) == name and first <= event.start_us < last
        ]
        axes.broken_barh(spans, (len(names) - place - 0.9, 0.8), facecolors=COLOURS[name])
    axes.set_yticks([len(names) - place - 0.5 for place in range(len(names))], names)
    axes.set_xlabel("ms")
    axes.set_xlim(0, (last - first) / 1e3)
    figure.savefig(path)


def profile_step(
    arguments: argparse.Namespace, device: torch.device, folder: Path
) -> tuple[list[Row], dict[str, float]]:
    """Profile one step; return its rows and the machine's ceilings."""
    settings = train_settings(arguments, device, folder)
    settings.backend, settings.compile, settings.arch = "numba", None, arguments.arch
    ceilings = measure_ceilings(device, Plan())
    run = prepare_run(settings, device, SingleProcess(), say=lambda _text: None)
    batches = BatchStream(run)
    for step in range(WARMUP_STEPS):
        train_step(run, step, batches)
    torch.cuda.synchronize()
    events = device_events(lambda: train_step(run, WARMUP_STEPS, batches))
    labelled = label(events, step_parts(run))
    if arguments.timeline:
        draw_timeline(labelled, arguments.timeline, run.n_micro_steps)
    shape = {"B": settings.micro_batch, "T": settings.seq_len, "tokens": settings.total_batch}
    shape |= {"L": run.engine.config.n_layers, "C": run.engine.config.channels}
    return rows_of(labelled, ceilings, run.engine.dtype, shape), ceilings


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.profile",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_shape_options(parser)
    parser.add_argument("--arch", choices=("sm_80", "sm_90a"), help="family of kernels (default: that of the GPU)")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="draw one micro-batch (.svg, .png)")
    parser.add_argument("--output", type=Path, default=RESULTS_DIR, help="folder of the results file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Raises:
        UsageError: there is no GPU.
    """
    arguments = build_parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise UsageError("python -m gpt2edu.profile needs an NVIDIA GPU; book/results has measured profiles")
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory(prefix="gpt2edu-profile-") as folder:
        rows, ceilings = profile_step(arguments, device, Path(folder))
    print(table(rows))
    command = "python -m gpt2edu.profile " + shlex.join(sys.argv[1:] if argv is None else argv)
    name = f"profile_{arguments.arch}" if arguments.arch else "profile"
    gpu, driver = torch.cuda.get_device_name(device), describe_machine().driver or "none"
    print(write_results(name, rows, ceilings, gpu=gpu, driver=driver, command=command, folder=arguments.output))
    return 0


if __name__ == "__main__":
    run_main(main)
