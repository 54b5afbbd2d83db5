"""The plots of a report, as SVG that takes its ink from the page around it, so that it reads on light and on dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from gpt2edu.logger import History
from gpt2edu.published import (
    GPT2_FINEWEB_LOSS,
    GPT2_HELLASWAG,
    GPT3_HELLASWAG,
    LLMC_124M_CURVE,
    LLMC_TOKENS_PER_STEP,
)

INK = "#010203"  # stands for the page's text color
OURS, PUBLISHED, GOAL = "#3b82c4", "#d9822b", "#2e9e6b"  # readable on white and on near-black
FONT = "DejaVu Sans"  # comes with matplotlib; the page shows its own font instead
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gpt2edu",
    "font.family": FONT,
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 8.4, 4.2  # inches of 72 px


def web_loss_plot(history: History, preset: str, tokens_per_step: int) -> str:
    """Draw validation and training loss in nats a token over tokens, beside what is published for the preset."""

    def draw(axes: Axes) -> None:
        unit = 1e9 if max(history.train_loss, default=0) * tokens_per_step > 1e9 else 1e6
        _draw_run(axes, history, tokens_per_step / unit, scale=1.0)
        if preset == "gpt2-124m":
            tokens = [step * LLMC_TOKENS_PER_STEP / unit for step in LLMC_124M_CURVE]
            axes.plot(
                tokens, list(LLMC_124M_CURVE.values()), "o--", color=PUBLISHED, ms=4, lw=1.2, label="llm.c, validation"
            )
        if preset in GPT2_FINEWEB_LOSS:
            loss = GPT2_FINEWEB_LOSS[preset]
            axes.axhline(loss, color=GOAL, lw=1.4, ls=(0, (5, 2)), label=f"OpenAI's GPT-2: {loss:.4f}")
        axes.set(xlabel=f"training tokens, {'billions' if unit == 1e9 else 'millions'}", ylabel="loss, nats a token")
        lowest = min([*history.validation_loss.values(), GPT2_FINEWEB_LOSS.get(preset, np.inf)])
        axes.set_ylim(lowest - 0.15, max(4.5, lowest + 1.2))
        axes.legend(loc="upper right")

    return _svg(draw, "Validation loss over training tokens")


def small_loss_plot(
    history: History, tokens_per_step: int, bits_per_nat: float, baselines: Sequence[Mapping[str, object]]
) -> str:
    """Draw the losses in bits a byte over tokens, with each baseline as a line.

    Args:
        history: the run's log.
        tokens_per_step: of the run.
        bits_per_nat: bits a byte for a nat a token on the validation text.
        baselines: rows of `Baseline`.
    """

    def draw(axes: Axes) -> None:
        _draw_run(axes, history, tokens_per_step / 1e6, scale=bits_per_nat)
        right = max([*history.validation_loss, *history.train_loss], default=1) * tokens_per_step / 1e6
        levels = [float(str(row["bits_per_byte"])) for row in baselines]
        for row, bits in zip(baselines, levels, strict=True):
            axes.axhline(bits, color=PUBLISHED, lw=1.2, ls=(0, (5, 2)))
            axes.text(right, bits + 0.02, f"{row['name']} {bits:.2f}", ha="right", va="bottom", fontsize=10)
        last_losses = list(history.train_loss.values())[-len(history.train_loss) // 10 :]
        reached = [min(history.validation_loss.values()), *([float(np.mean(last_losses))] if last_losses else [])]
        lowest = min([min(reached) * bits_per_nat, *levels])
        highest = max(levels, default=lowest + 2)
        axes.set(xlabel="training tokens, millions", ylabel="loss, bits a byte")
        axes.set_ylim(lowest - 0.15, highest + 0.5)
        axes.legend(loc="upper center")

    return _svg(draw, "Loss in bits a byte over training tokens")


def hellaswag_plot(history: History, preset: str, tokens_per_step: int) -> str:
    """Draw HellaSwag's accuracy over tokens, with OpenAI's GPT-2 and GPT-3 of the same size."""

    def draw(axes: Axes) -> None:
        tokens = [step * tokens_per_step / 1e9 for step in history.hellaswag]
        axes.plot(tokens, list(history.hellaswag.values()), color=OURS, label="this run")
        for name, table, color in (("GPT-2", GPT2_HELLASWAG, GOAL), ("GPT-3", GPT3_HELLASWAG, PUBLISHED)):
            if preset in table:
                label = f"OpenAI's {name}: {table[preset]:.3f}"
                axes.axhline(table[preset], color=color, lw=1.4, ls=(0, (5, 2)), label=label)
        axes.set(xlabel="training tokens, billions", ylabel="accuracy (0.25 is guessing)")
        axes.legend(loc="lower right")

    return _svg(draw, "HellaSwag accuracy over training tokens")


def _draw_run(axes: Axes, history: History, tokens_per_step: float, *, scale: float) -> None:
    if history.train_loss:
        steps, train_losses = np.array(list(history.train_loss)), np.array(list(history.train_loss.values()))
        smooth = smoothed(train_losses, max(1, len(steps) // 100))
        axes.plot(steps * tokens_per_step, smooth * scale, color=OURS, alpha=0.5, lw=1.0, label="this run, training")
    validation = history.validation_loss
    tokens = [step * tokens_per_step for step in validation]
    losses = [scale * loss for loss in validation.values()]
    marker = "o" if len(losses) < 50 else ""
    axes.plot(tokens, losses, marker=marker, ms=3.5, color=OURS, label="this run, validation")


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of each value and up to `width` before and after it, (n,) like the input."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - width, 0), np.minimum(place + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _svg(draw: Callable[[Axes], None], title: str) -> str:
    """Return a figure as an SVG element without fixed ink; `draw(axes)` fills it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    body = svg[svg.index("<defs>") :].replace(INK, "currentColor").replace(f"'{FONT}'", "system-ui, sans-serif")
    view_box = f"0 0 {72 * WIDTH:g} {72 * HEIGHT:g}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box}" role="img" aria-label="{title}">{body}'
    )
