"""Draw the figures of chapter 11.

python book/figures/run_figures.py        # writes run_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, GREEN, INK, LINE, LIT, PALE, QUIET, RED, YELLOW, arrow, drawing, matrix, named_box, text_at

STAGES = (
    ("data", "token shards"),
    ("train", "main.log, checkpoints"),
    ("evaluate", "loss, HellaSwag"),
    ("sample", "four texts"),
    ("report", "report.html"),
)
ENDINGS = (  # (words, loss of each)
    ("swam away", (6.0, 5.0)),
    ("jumped up and caught it", (4.0, 1.0, 2.0, 3.0, 2.5)),
    ("read the paper", (7.0, 4.0, 4.0)),
    ("and a blue", (3.0, 4.0, 8.0)),
)
RIGHT = 1


def stages_figure() -> str:
    """Draw the five stages of the one command, and what each leaves behind."""
    shapes = []
    for place, (name, product) in enumerate(STAGES):
        y = 16 + place * 44
        shapes.append(text_at(44, y + 20, str(place + 1), "middle", QUIET))
        shapes.append(named_box(70, y, 110, name, LIT))
        shapes.append(arrow(184, y + 15, 232, y + 15))
        shapes.append(named_box(238, y, 190, product, PALE, 13))
        shapes.append(named_box(450, y, 90, f"{name}.json", DIM, 12))
        if place:
            shapes.append(arrow(125, y - 13, 125, y - 1))
    note = "right: the stamp of each stage; a stage with its stamp is not done again"
    shapes.append(text_at(280, 252, note, "middle", QUIET, 13))
    return drawing(266, "Five stages, one after the other: data, train, evaluate, sample, report", shapes)


def hellaswag_figure() -> str:
    """Draw one question: the context in front of four endings, the loss of each ending's words, sum and mean."""
    shapes = [
        text_at(80, 22, "context", "middle", QUIET, 13),
        text_at(296, 22, "ending, and its losses", "middle", QUIET, 13),
    ]
    shapes += [text_at(476, 22, "sum", "middle", QUIET, 13), text_at(528, 22, "mean", "middle", QUIET, 13)]
    sums = [sum(losses) for _, losses in ENDINGS]
    means = [sum(losses) / len(losses) for _, losses in ENDINGS]
    for row, (words, losses) in enumerate(ENDINGS):
        y = 34 + row * 66
        shapes.append(named_box(12, y, 132, "I threw the ball. The dog", DIM, 10))
        x = 152.0
        for word, loss in zip(words.split(), losses, strict=True):
            width = 18 + 7.2 * len(word)
            shapes.append(named_box(x, y, width, word, GREEN if row == RIGHT else PALE, 12))
            shapes.append(text_at(x + width / 2, y + 46, f"{loss:g}", "middle", INK, 13))
            x += width + 6
        shapes.append(matrix(454, y, 44, 30, f"{sums[row]:g}", YELLOW if sums[row] == min(sums) else DIM, 13))
        shapes.append(matrix(506, y, 44, 30, f"{means[row]:g}", YELLOW if means[row] == min(means) else DIM, 13))
    note = "yellow: the lowest of its column. The right ending is green; only the mean finds it"
    shapes.append(text_at(280, 310, note, "middle", QUIET, 13))
    return drawing(
        324,
        "A context with four endings; by the sum of the losses the short first one wins, by their mean the right one",
        shapes,
    )


def resume_figure() -> str:
    """Draw a run that is killed between two checkpoints, and what it does again."""
    unit, left = 0.0235, 24  # pixels a step
    kill, every, last = 12_300, 5_000, 18_865
    shapes = [text_at(left, 22, "steps of the run", "start", QUIET, 13)]
    for step in (0, every, 2 * every, 3 * every, last):
        x = left + step * unit
        shapes.append(f'<path d="M{x:.1f} 52 v6" stroke="{LINE}"/>' + text_at(x, 48, f"{step:,}", "middle", QUIET, 12))
    shapes.append(matrix(left, 60, kill * unit, 30, "first start", PALE, 13))
    shapes.append(text_at(left + kill * unit + 8, 80, "killed", "start", INK, 13))
    again = kill - 2 * every
    shapes.append(matrix(left + 2 * every * unit, 108, again * unit, 30, "again", RED, 12))
    shapes.append(matrix(left + kill * unit, 108, (last - kill) * unit, 30, "new steps", GREEN, 13))
    shapes.append(text_at(left + 2 * every * unit - 8, 128, "same command, from step 10,000", "end", INK, 13))
    shapes.append(
        text_at(
            left,
            166,
            "red: steps done twice. main.log has two lines for each; the later one counts",
            "start",
            QUIET,
            13,
        )
    )
    return drawing(
        180, "A run is killed at step 12,300, begins again at the checkpoint of step 10,000, and ends", shapes
    )


FIGURES = {"stages": stages_figure, "hellaswag": hellaswag_figure, "resume": resume_figure}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"run_{name}.svg").write_text(draw(), encoding="utf-8")
