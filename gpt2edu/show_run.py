"""What the chapters on the run and on what comes after it need: flags, milestones, curves, and small runs on the CPU.

The small runs are the real ones: the same parser, loop, log and checkpoints, with a model for seconds instead of hours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2edu.cli import FLAGS, parse_settings
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError
from gpt2edu.evaluate import EvaluationModel, validation_loss
from gpt2edu.flops import mfu, peak_flop_per_s
from gpt2edu.hellaswag import Example
from gpt2edu.loader import ValLoader
from gpt2edu.logger import step_line
from gpt2edu.machine import Gpu, Machine, describe_machine
from gpt2edu.manifest import Manifest
from gpt2edu.plan import USABLE_MEMORY, Plan, make_plan, memory_bytes
from gpt2edu.presets import PRESETS, Preset
from gpt2edu.projection import Measured, find_measured, run_table
from gpt2edu.published import LLMC_124M_CURVE, LLMC_124M_STEPS, LLMC_A100_STEP_MS, LLMC_TOKENS_PER_STEP
from gpt2edu.results import load_results
from gpt2edu.run import prepare_run
from gpt2edu.show import ROOT
from gpt2edu.stopping import StopRequest
from gpt2edu.table import Table
from gpt2edu.tokenizer import Tokenizer, load_tokenizer
from gpt2edu.train import TrainResult, run_steps
from gpt2edu.weights import load_model

LLMC_FIRST_LOSS, LLMC_FIRST_NORM = 11.0091, 15.37  # of training step 0; source: the log that `published` names
EVALUATION_BATCH = 16  # sequences


# --------------------------------------------------------------------------------------------------
# the recipe and what is published of it


def show_flags(preset: Preset) -> Table:
    """Return every flag of a preset with its value and the meaning that `--help` gives."""
    meanings = {}
    for _title, flags in FLAGS.items():
        for name, short, _read, text in flags:
            for flag in (short, "--" + name.replace("_", "-")):
                meanings[flag] = text
    words = preset.flags.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return Table(["flag", "value", "meaning"], [[f"`{flag}`", value, meanings[flag]] for flag, value in pairs])


def first_step_line() -> str:
    """Return the line that step 1 of the recipe prints, with llm.c's published loss, norm and speed on 8 A100."""
    recipe = PRESETS["gpt2-124m"]
    tokens_per_s = LLMC_TOKENS_PER_STEP / LLMC_A100_STEP_MS * 1e3
    share = mfu(recipe.model, recipe.settings.seq_len, tokens_per_s / 8, peak_flop_per_s("A100", "bf16"))
    return step_line(
        step=1,
        n_steps=recipe.settings.max_steps,
        loss=LLMC_FIRST_LOSS,
        loss_z=math.nan,
        grad_norm=LLMC_FIRST_NORM,
        grad_norm_z=math.nan,
        learning_rate=recipe.settings.learning_rate / recipe.settings.warmup_steps,
        ms=LLMC_A100_STEP_MS,
        mfu=share,
        dtype="bf16",
        tokens_per_s=tokens_per_s,
    )


def show_milestones() -> Table:
    """Return llm.c's published curve: for each point the tokens, the loss, what it means, and how much is done."""
    first, last = LLMC_124M_CURVE[0], LLMC_124M_CURVE[LLMC_124M_STEPS]
    rows = [
        [
            f"{step:,}",
            f"{step * LLMC_TOKENS_PER_STEP / 1e9:.2f}",
            f"{loss:.2f}",
            f"{math.exp(loss):,.0f}",
            f"{(first - loss) / (first - last):.1%}",
        ]
        for step, loss in LLMC_124M_CURVE.items()
    ]
    header = ["step", "billion tokens", "validation loss", "as unsure as between so many tokens", "of the way"]
    return Table(
        header, rows, "llm.c's run of October 2024 on 8 H100, from its published log; not a run of this package."
    )


def plot_curves() -> None:
    """Draw llm.c's published curve and our measured slice over tokens, both axes as they are, for `plt.show()`."""
    import matplotlib.pyplot as plt

    published = [(step * LLMC_TOKENS_PER_STEP, loss) for step, loss in LLMC_124M_CURVE.items() if step]
    plt.plot(*zip(*published, strict=True), "o--", color="#d97706", label="llm.c, published: FineWeb, 524,288 a step")
    for results in load_results("text_run"):
        row = max(results.rows, key=lambda row: row["variant"].startswith("numba"))  # the first, where there is none
        tokens, losses = row["shape"]["tokens"], row["train_loss"]
        seen = [tokens * (step + 1) for step in range(len(losses))]
        plt.plot(
            seen,
            losses,
            color="#0284c7",
            lw=1,
            label=f"ours, measured ({row['variant']}): other prose, {tokens:,} a step",
        )
    plt.xscale("log")
    plt.xlabel("tokens read")
    plt.ylabel("loss (nats a token)")
    plt.ylim(2.5, 13)
    plt.grid(alpha=0.3)
    plt.legend()


def rented_machine(gpu: str, memory_gb: float, n_gpus: int) -> Machine:
    """Return a computer with so many GPUs, for a plan; the rest of it does not matter there."""
    bf16_since = (8, 0)
    return Machine((Gpu(f"NVIDIA {gpu}", int(memory_gb * 1e9), bf16_since),) * n_gpus, None, None, "any", 1, 0)


def show_sizes() -> Table:
    """Return what each GPT-2 of the presets takes: tokens, arithmetic, least memory, and a plan for 8 H100."""
    rows = []
    for preset in PRESETS.values():
        if preset.text.own_vocabulary:
            continue
        plan = make_plan(rented_machine("H100", 80, 8), preset.name)
        least = memory_bytes(preset.model, 1, preset.settings.seq_len, recompute=2)
        numbers = (
            f"{preset.tokens / 1e9:,.0f} billion",
            f"{plan.training_flop:.1e}",
            f"{least / USABLE_MEMORY / 1e9:.0f} GB",
            f"{plan.hours:,.0f}" if plan.hours >= 10 else f"{plan.hours:.1f}",
            f"{plan.dollars:,.0f}",
        )
        rows.append([f"`{preset.name}`", f"`{preset.settings.model}`", *numbers])
    header = ["preset", "`-e`", "tokens", "FLOP", "one GPU of at least", "hours on 8 H100", "dollars"]
    return Table(header, rows, "Estimates of `gpt2edu.plan`, nothing measured.")


def show_projection(table: Callable[[Measured], Table] = run_table) -> Table:
    """Return a table of the projection to the A100, `run_table` or `kernel_table`, or what is not measured yet."""
    try:
        return table(find_measured())
    except Gpt2EduError:
        return Table(["projection"], [["not measured yet"]])


# --------------------------------------------------------------------------------------------------
# small runs


def small_plan(n_steps: int) -> Plan:
    """Return the plan of the preset `smoke`, shortened to `n_steps`, on the processor of this computer."""
    plan = make_plan(describe_machine(), "smoke", max_gpus=0)
    every = n_steps // 3
    preset = dataclasses.replace(plan.preset, flags=f"{plan.preset.flags} -x {n_steps} -v {every} -n {every} -nk 0")
    return dataclasses.replace(plan, preset=preset)


def quietly(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Call a function; return the lines that it printed instead of printing them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        function(*arguments)
    return printed.getvalue().splitlines()


def data_flags(texts: Manifest, folder: Path) -> str:
    """Return the trainer's flags for the shards in a folder."""
    return f"-i {texts.pattern(folder, 'train')} -j {texts.pattern(folder, 'val')}"


def short_training(flags: str, *, stop_at: int | None = None) -> tuple[list[str], TrainResult]:
    """Train on the processor as `python -m gpt2edu.train FLAGS` does; return what it said and what came of it.

    Args:
        flags: of the trainer, in one string.
        stop_at: behave as if SIGTERM had come in this step, counted from 1.
    """
    said: list[str] = []
    stop = StopRequest()

    def say(text: str) -> None:
        said.extend(text.splitlines())
        if stop_at and text.startswith(f"step {stop_at:4d}/"):
            stop.signal = signal.SIGTERM

    settings = parse_settings([*flags.split(), "--device", "cpu", "--backend", "torch", "--compile", "0"])
    with SingleProcess() as alone:
        run = prepare_run(settings, torch.device("cpu"), alone, say)
        return said, run_steps(run, stop)


def held_out_bits(checkpoint: str | Path, texts: Manifest, folder: Path) -> float:
    """Return a model's loss on the held-out part of a text, in bits a byte.

    Args:
        checkpoint: as `load_model` takes it.
        texts: shards of the text, with a vocabulary of their own.
        folder: where they are.
    """
    config, flat = load_model(checkpoint)
    model = EvaluationModel(config, flat, torch.device("cpu"), "fp32")
    loader = ValLoader(texts.pattern(folder, "val"), config.max_seq_len, vocab_size=config.vocab_size)
    lengths = load_tokenizer(folder / texts.tokenizer).token_byte_lengths
    return validation_loss(model, loader, EVALUATION_BATCH, SingleProcess(), lengths)[1]


# --------------------------------------------------------------------------------------------------
# text


def question(tokenizer: Tokenizer, context: str, endings: Sequence[str], label: int) -> Example:
    """Return a question in HellaSwag's form: the endings are tokenized behind a space."""
    return Example(tokenizer.encode(context), [tokenizer.encode(" " + ending) for ending in endings], label)


def book_prose(chapters: Iterable[str]) -> list[str]:
    """Return the prose of chapters such as `03_model`, a document each."""
    documents = []
    for chapter in chapters:
        cells = json.loads((Path(ROOT) / "book" / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
        documents.append("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))
    return documents
