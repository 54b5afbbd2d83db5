"""Draw the loss curves of `python -m gpt2edu.bench text_run` from its results file.

python book/figures/text_run_figure.py        # writes text_run.svg
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from gpt2edu.results import load_results

GREY = "#808080"  # reads on white and on black
COLOURS = ("#0284c7", "#d97706", "#059669", "#9333ea")  # of the runs, in the order of the file


def text_run_figure() -> str:
    """Return the SVG: training loss as thin lines, validation loss as dots, one colour a run."""
    matplotlib.rcParams["svg.hashsalt"] = "gpt2edu"  # the same file from the same numbers
    (results,) = load_results("text_run")
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for row, colour in zip(results.rows, COLOURS, strict=False):
        million_tokens = row["shape"]["tokens"] / 1e6
        steps, losses = zip(*row["validation_loss"], strict=True)
        train = row["train_loss"]
        axes.plot([million_tokens * step for step in range(len(train))], train, color=colour, lw=0.8, alpha=0.7)
        axes.plot([million_tokens * step for step in steps], losses, "o", color=colour, ms=5, label=row["variant"])
    axes.set_xlabel("million tokens of English prose seen, at most once each")
    axes.set_ylabel("loss (nats a token)")
    axes.set_title(f"GPT-2 124M, {len(train)} steps on one {results.gpu}", fontsize=10, color=GREY)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=GREY)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(GREY)
    axes.spines[:].set_color(GREY)
    legend = axes.legend(frameon=False, title="dots: validation; lines: training", labelcolor=GREY)
    legend.get_title().set_color(GREY)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    Path(__file__).with_name("text_run.svg").write_text(text_run_figure(), encoding="utf-8")
