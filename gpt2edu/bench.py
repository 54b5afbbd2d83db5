"""Measure on this GPU and keep the numbers for the book: `python -m gpt2edu.bench`."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2edu.bench_text_run import add_text_run, bench_text_run
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import UsageError, run_main
from gpt2edu.flops import flop_per_token
from gpt2edu.machine import describe_machine
from gpt2edu.model import GPT2
from gpt2edu.results import RESULTS_DIR, Results, Row, load_results, stamp_results, write_results
from gpt2edu.run import prepare_run
from gpt2edu.shards import write_shard
from gpt2edu.torch_engine import DTYPES, choose_device
from gpt2edu.train import GRAD_CLIP, BatchStream, report_step, train_step

ROOT = Path(__file__).resolve().parents[1]
README_MARKERS = ("<!-- results: begin, written by python -m gpt2edu.bench readme -->", "<!-- results: end -->")
BASELINE = "bare PyTorch loop"
DATA_STEPS = 4  # optimizer steps in the random data; the loader goes round

EXAMPLES = """examples:
  python -m gpt2edu.bench train_loop                   the trainer against a bare PyTorch loop: GPT-2 124M, B=64
  python -m gpt2edu.bench train_loop -b 16 -d 32768    the same with small steps
  python -m gpt2edu.bench text_run -i "text_train_*.bin" -j "text_val_*.bin" -b 16 8
                                                       two runs of 200 steps on real text, and their loss curves
  python -m gpt2edu.bench stamp results/*.json         take over files measured on a machine without git
  python -m gpt2edu.bench readme                       write the results table in README.md anew
"""


def time_interleaved(
    functions: dict[str, Callable[[], Any]], *, n_blocks: int, block_steps: int, warmup: int, sync: Callable[[], None]
) -> dict[str, list[float]]:
    """Return the milliseconds of every call, the functions taking turns in blocks so that all see the same clocks.

    Args:
        functions: what to time, by name.
        n_blocks: turns of each function.
        block_steps: timed calls in a turn; one call more begins the turn untimed.
        warmup: untimed calls of each function before the first turn.
        sync: waits until the device is idle.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(n_blocks):
        for name, function in functions.items():
            function()
            sync()
            for _ in range(block_steps):
                start = time.perf_counter()
                function()
                sync()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """Return what this GPU reaches at best: copying 1 GiB, and an 8192 x 8192 x 8192 bf16 product (empty on a CPU)."""
    if device.type != "cuda":
        return {}
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(a)
    functions = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.matmul(a, b, out=out)}
    times = time_interleaved(functions, n_blocks=4, block_steps=10, warmup=3, sync=torch.cuda.synchronize)
    median_s = {name: statistics.median(values) / 1e3 for name, values in times.items()}
    return {
        "copy_gb_per_s": round(2 * source.numel() * 4 / median_s["copy"] / 1e9, 1),
        "matmul_tflop_per_s": round(2 * 8192**3 / median_s["matmul"] / 1e12, 1),
    }


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


def bench_train_loop(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time whole optimizer steps: the trainer (loader, engine, log line) and the bare loop, in the same run."""
    with tempfile.TemporaryDirectory(prefix="gpt2edu-bench-") as folder:
        settings = _train_settings(arguments, device, Path(folder))
        run = prepare_run(settings, device, SingleProcess(), say=lambda text: None)
        bare = BareLoop(run.settings, run.n_micro_steps, run.engine.dtype, device)
        batches, step = BatchStream(run), 0

        def trainer_step() -> None:
            nonlocal step
            start = time.perf_counter()
            outcome = train_step(run, step, batches)
            report_step(run, step, outcome, time.perf_counter() - start)
            step += 1

        times = time_interleaved(
            {"trainer, torch engine": trainer_step, BASELINE: bare.step},
            n_blocks=arguments.blocks,
            block_steps=arguments.block_steps,
            warmup=arguments.warmup,
            sync=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )
        config, dtype, settings = run.engine.config, run.engine.dtype, run.settings
    shape = {"B": settings.micro_batch, "T": settings.seq_len, "tokens": settings.total_batch, "L": config.n_layers}
    shape |= {"C": config.channels, "V": config.vocab_size, "recompute": settings.recompute}
    work_tflop = flop_per_token(config, settings.seq_len) * settings.total_batch / 1e12
    baseline_ms = statistics.median(times[BASELINE])
    rows = []
    for name, values in times.items():
        median_ms = statistics.median(values)
        row = {"op": "step", "variant": name}
        row |= {"dtype": dtype, "shape": shape, "n_runs": len(values)}
        row |= {"median_ms": median_ms, "min_ms": min(values), "max_ms": max(values)}
        row |= {"tokens_per_s": settings.total_batch / median_ms * 1e3, "tflop_per_s": work_tflop / median_ms * 1e3}
        rows.append(row | {"torch_ms": baseline_ms, "torch_ratio": baseline_ms / median_ms})
    return rows


def _train_settings(arguments: argparse.Namespace, device: torch.device, folder: Path) -> TrainConfig:
    """Return the settings of both loops, and write the random tokens that the trainer reads."""
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


BENCHES: dict[str, Callable[[argparse.Namespace, torch.device], list[Row]]] = {
    "train_loop": bench_train_loop,
    "text_run": bench_text_run,
}


def measure(arguments: argparse.Namespace) -> int:
    """Run one bench and write its results file."""
    device = choose_device(arguments.device)
    if device.type != "cuda" and arguments.output == RESULTS_DIR:
        raise UsageError(f"--output is needed on {device.type}: the book's results are measured on a GPU")
    rows = BENCHES[arguments.action](arguments, device)
    for row in rows:
        share = f", {row['torch_ratio']:.3f} of the baseline's speed" if "torch_ratio" in row else ""
        print(f"{row['op']} {row['variant']}: {row['median_ms']:.3f} ms{share}")
    ceilings = measure_ceilings(device)
    if "matmul_tflop_per_s" in ceilings:
        rows = [row | {"ceiling_share": row["tflop_per_s"] / ceilings["matmul_tflop_per_s"]} for row in rows]
    machine = describe_machine()
    path = write_results(
        arguments.action,
        rows,
        ceilings,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        driver=machine.driver or "none",
        command="python -m gpt2edu.bench " + shlex.join(arguments.argv),
        folder=arguments.output,
    )
    print(path)
    return 0


def readme_table() -> str:
    """Return the README's table of measured training steps, from all `train_loop` files."""
    lines = [
        "| GPU | program | ms a step | tokens/s | TFLOP/s | speed over the bare loop |",
        "|---|---|---:|---:|---:|---:|",
    ]
    found: list[Results] = load_results("train_loop")
    for results in found:
        for row in results.rows:
            rate = f"{row['tokens_per_s']:,.0f} | {row['tflop_per_s']:,.0f} | {row['torch_ratio']:.3f}"
            lines.append(f"| {results.gpu} | {row['variant']} | {row['median_ms']:,.0f} | {rate} |")
    if not found:
        return "Not measured yet: `python -m gpt2edu.bench train_loop` on a GPU writes the first row."
    shape = found[0].rows[0]["shape"]
    dates = ", ".join(f"{results.gpu} on {results.date} at commit {results.commit[:7]}" for results in found)
    lines += ["", f"One GPU, {shape['tokens']:,} tokens a step, B={shape['B']}, T={shape['T']}. Measured: {dates}."]
    return "\n".join(lines)


def update_readme(path: Path) -> None:
    """Write the results table between its markers."""
    before, _, rest = path.read_text(encoding="utf-8").partition(README_MARKERS[0])
    _, _, after = rest.partition(README_MARKERS[1])
    begin, end = README_MARKERS
    path.write_text(f"{before}{begin}\n{readme_table()}\n{end}{after}", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    train_loop = actions.add_parser("train_loop", help="the trainer against a bare PyTorch loop", allow_abbrev=False)
    option = train_loop.add_argument
    option("-e", "--model", default="d12", help="descriptor of the model (default %(default)s)")
    option("-b", "--micro-batch", type=int, default=64, help="sequences at once (default %(default)s)")
    option("-t", "--seq-len", type=int, default=1024, help="tokens of a sequence (default %(default)s)")
    option("-d", "--total-batch", type=int, default=524_288, help="tokens a step (default %(default)s)")
    option(
        "-r", "--recompute", type=int, default=0, choices=(0, 1, 2), help="as in gpt2edu.train (default %(default)s)"
    )
    option("--blocks", type=int, default=5, help="turns of each loop (default %(default)s)")
    option("--block-steps", type=int, default=5, help="timed steps in a turn (default %(default)s)")
    option("--warmup", type=int, default=3, help="untimed steps before the first turn (default %(default)s)")
    for measurement in (train_loop, add_text_run(actions)):
        measurement.add_argument("--device", help="cuda or cpu (default: what there is)")
        measurement.add_argument(
            "--output", type=Path, default=RESULTS_DIR, help="folder of the results file (default book/results)"
        )
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
    if arguments.action == "stamp":
        for file in arguments.files:
            print(stamp_results(file))
        return 0
    return measure(arguments)


if __name__ == "__main__":
    run_main(main)
