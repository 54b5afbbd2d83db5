"""Measure on this GPU and keep the numbers for the book: `python -m gpt2edu.bench`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from gpt2edu.bench_kernel_names import add_kernel_names, bench_kernel_names
from gpt2edu.bench_kernels import add_kernels, bench_kernels, compare, report_problems
from gpt2edu.bench_ranks import add_ranks, bench_ranks
from gpt2edu.bench_sampling import add_sampling, bench_sampling
from gpt2edu.bench_start_up import add_start_up, bench_start_up
from gpt2edu.bench_step import add_steps, bench_step, bench_train_loop
from gpt2edu.bench_text_run import add_text_run, bench_text_run
from gpt2edu.bench_timing import Plan, measure_ceilings
from gpt2edu.bench_tune import add_tune, bench_tune
from gpt2edu.errors import UsageError, run_main
from gpt2edu.machine import describe_machine
from gpt2edu.readme_tables import update_readme
from gpt2edu.results import RESULTS_DIR, Row, stamp_results, write_results
from gpt2edu.torch_engine import choose_device

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = """examples:
  python -m gpt2edu.bench all                          check and time every kernel beside PyTorch's, a few minutes
  python -m gpt2edu.bench layernorm_forward --no-ladder --compare book/results/layernorm.*.json
                                                       one op, what is used of it, against earlier numbers
  NUMBA_ENABLE_CUDASIM=1 python -m gpt2edu.bench gelu --device cpu --output /tmp
                                                       without a GPU: tiny shapes, to see that it works
  python -m gpt2edu.bench step                         a training step of GPT-2 124M, B=64: our kernels and PyTorch
  python -m gpt2edu.bench train_loop -b 16 -d 32768    the trainer against a bare PyTorch loop, small steps
  python -m gpt2edu.bench text_run -i "text_train_*.bin" -j "text_val_*.bin"
                                                       200 steps on real text with both engines, and their loss curves
  python -m gpt2edu.bench sampling                     tokens a second at batch 1, ours and PyTorch's
  python -m gpt2edu.bench kernel_names                 what runs on the GPU in a training run, by name
  python -m gpt2edu.bench start_up                     how long the first step takes, cold and with kept kernels
  python -m gpt2edu.bench tune -e d24 -b 16             the matrix products of a model: measure and keep the best way
  python -m gpt2edu.bench ranks                        steps of several GPUs, what they send, and what is hidden of it
  python -m gpt2edu.bench stamp results/*.json         take over files measured on a machine without git
  python -m gpt2edu.bench readme                       write the results table in README.md anew
"""


BENCHES: dict[str, Callable[[argparse.Namespace, torch.device], list[Row]]] = {
    "train_loop": bench_train_loop,
    "step": bench_step,
    "text_run": bench_text_run,
    "kernel_names": bench_kernel_names,
    "start_up": bench_start_up,
    "sampling": bench_sampling,
    "ranks": bench_ranks,
}


def measure(arguments: argparse.Namespace) -> int:
    """Run a bench and write its results files.

    Raises:
        UsageError: the results of this device do not belong in the book.
        Gpt2EduError: a kernel was wrong or failed; what the others took is written.
    """
    device = choose_device(arguments.device)
    if device.type != "cuda" and arguments.output == RESULTS_DIR:
        raise UsageError(f"--output is needed on {device.type}: the book's results are measured on a GPU")
    if arguments.action in BENCHES:
        rows = BENCHES[arguments.action](arguments, device)
        for row in rows:
            share = f", {row['torch_ratio']:.3f} of the baseline's speed" if "torch_ratio" in row else ""
            print(f"{row['op']} {row['variant']}: {row['median_ms']:.3f} ms{share}")
        ceilings = measure_ceilings(device, Plan())
        print(write(arguments, device, arguments.action, [with_share(row, ceilings) for row in rows], ceilings))
        return 0
    rows, problems, paths = [], [], []
    for measured in bench_kernels(arguments, device):
        rows, problems = rows + measured.rows, problems + measured.problems
        if measured.rows:
            paths.append(write(arguments, device, measured.name, measured.rows, measured.ceilings))
    if arguments.compare:
        print(compare(rows, arguments.compare))
    print(*paths, sep="\n")
    report_problems(problems)
    return 0


def with_share(row: Row, ceilings: dict[str, float]) -> Row:
    """Return a row with its share of the ceiling, if there is one."""
    for rate, ceiling in (("tflop_per_s", "matmul_tflop_per_s"), ("gb_per_s", "copy_gb_per_s")):
        if rate in row and ceiling in ceilings:
            return row | {"ceiling_share": row[rate] / ceilings[ceiling]}
    return row


def write(
    arguments: argparse.Namespace, device: torch.device, name: str, rows: list[Row], ceilings: dict[str, float]
) -> Path:
    """Write a results file and return its path."""
    return write_results(
        name,
        rows,
        ceilings,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        driver=describe_machine().driver or "none",
        command="python -m gpt2edu.bench " + shlex.join(arguments.argv),
        folder=arguments.output,
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    others = [add(actions) for add in (add_sampling, add_text_run, add_kernel_names, add_start_up, add_ranks)]
    for measurement in (*add_kernels(actions), *add_steps(actions), *others):
        measurement.add_argument("--device", help="cuda or cpu (default: what there is)")
        measurement.add_argument(
            "--output", type=Path, default=RESULTS_DIR, help="folder of the results file (default book/results)"
        )
    add_tune(actions)
    stamp = actions.add_parser("stamp", help="take over files measured on a copy of this source", allow_abbrev=False)
    stamp.add_argument("files", type=Path, nargs="+")
    actions.add_parser("readme", help="write the results table in README.md anew", allow_abbrev=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = build_parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    if arguments.action == "readme":
        update_readme(ROOT / "README.md")
        return 0
    if arguments.action == "tune":
        print(bench_tune(arguments))
        return 0
    if arguments.action == "stamp":
        for file in arguments.files:
            print(stamp_results(file))
        return 0
    return measure(arguments)


if __name__ == "__main__":
    run_main(main)
