"""Draw the figures of chapter 6.

python book/figures/layernorm_figures.py        # writes layernorm_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import (
    BOX,
    DIM,
    GREEN,
    INK,
    LINE,
    LIT,
    PALE,
    QUIET,
    RED,
    WIDTH,
    YELLOW,
    arrow,
    box,
    drawing,
    frame,
    named_box,
    text_at,
)

ROW = (1.0, 2.0, 3.0, 6.0)


def bars(x: float, y: float, unit: float, values: tuple[float, ...], colours: tuple[str, str]) -> list[str]:
    """Return bars that stand on, or hang from, the line at `y`, each with its value."""
    shapes = []
    for place, value in enumerate(values):
        left, height = x + place * 38, abs(value) * unit
        top = y - height if value >= 0 else y
        shapes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="26" height="{height:.1f}" fill="{colours[0]}" stroke="{LINE}"/>'
        )
        label_y = top - 5 if value >= 0 else top + height + 14
        shapes.append(text_at(left + 13, label_y, f"{value:.2g}".replace("-", "−"), "middle", INK, 12))
    shapes.append(f'<path d="M{x - 6:.1f} {y} H{x + 146:.1f}" stroke="{LINE}" stroke-width="1.5"/>')
    return shapes


def row_figure() -> str:
    """Draw a row of four numbers as it is, shifted to mean 0, and scaled to variance 1."""
    mean = sum(ROW) / len(ROW)
    centred = tuple(x - mean for x in ROW)
    deviation = (sum(x * x for x in centred) / len(ROW)) ** 0.5
    panels = (
        ("the row", ROW, PALE),
        (f"minus its mean, {mean:g}", centred, YELLOW),
        (f"over its deviation, {deviation:.3g}", tuple(x / deviation for x in centred), GREEN),
    )
    shapes = []
    for column, (name, values, colours) in enumerate(panels):
        x = 26 + column * 186
        shapes += bars(x, 118, 13, values, colours)
        shapes.append(text_at(x + 70, 190, name, "middle", QUIET, 13))
    return drawing(204, "The row 1, 2, 3, 6, then minus its mean 3, then divided by its deviation 1.87", shapes)


def butterfly_figure() -> str:
    """Draw how eight lanes sum their numbers in three exchanges, each with a partner."""
    numbers = [3, 1, 4, 1, 5, 9, 2, 6]
    unit, left = 54, 118
    shapes = []
    for step, distance in enumerate((0, 4, 2, 1)):
        y = 22 + step * 74
        if distance:
            numbers = [n + numbers[lane ^ distance] for lane, n in enumerate(numbers)]
            for lane in range(8):
                x = left + lane * unit + 21
                partner = left + (lane ^ distance) * unit + 21
                shapes.append(f'<path d="M{partner} {y - 44} L{x} {y}" stroke="#94a3b8" stroke-width="1.2"/>')
                shapes.append(f'<path d="M{x} {y - 44} V{y}" stroke="{LINE}" stroke-width="1.5"/>')
            shapes.append(text_at(104, y + 20, f"partner: lane ± {distance}", "end", QUIET, 12))
        else:
            shapes.append(text_at(104, y + 20, "own number", "end", QUIET, 12))
            shapes += [text_at(left + lane * unit + 21, 16, str(lane), "middle", QUIET, 11) for lane in range(8)]
        colours = GREEN if step == 3 else PALE if step else DIM
        shapes += [box(left + lane * unit, y, 42, str(n), colours) for lane, n in enumerate(numbers)]
    return drawing(288, "Eight lanes add the number of the lane 4, 2 and 1 away; then all hold the sum 31", shapes)


def stored_figure() -> str:
    """Draw how often a row travels: separate kernels, and the residual sum and the norm in one."""
    shapes = []
    panels = (
        (26, "two kernels", (("add", ("stream", "branch"), "sum"), ("norm", ("sum",), "normed"))),
        (166, "one kernel", (("add and norm", ("stream", "branch"), "sum, normed"),)),
    )
    for y, title, kernels_of in panels:
        shapes.append(text_at(16, y + 6, title, "start", INK, 14))
        x = 16.0
        for name, inputs, output in kernels_of:
            for place, array in enumerate(inputs):
                top = y + 20 + place * 40
                shapes.append(named_box(x, top, 72, array, DIM, 13))
                shapes.append(arrow(x + 72, top + BOX / 2, x + 98, y + 20 + BOX / 2 + (0 if len(inputs) == 1 else 20)))
            middle = y + 20 + (20 if len(inputs) == 2 else 0)
            width = 60 if len(name) < 8 else 118
            shapes.append(named_box(x + 100, middle, width, name, LIT, 13))
            shapes.append(arrow(x + 100 + width, middle + BOX / 2, x + 126 + width, middle + BOX / 2))
            shapes.append(named_box(x + 128 + width, middle, 20 + 9 * len(output), output, GREEN, 13))
            x += 268
    shapes.append(text_at(WIDTH - 16, 130, "5 arrays read or written", "end", QUIET, 13))
    shapes.append(text_at(WIDTH - 16, 262, "4 arrays read or written", "end", QUIET, 13))
    return drawing(276, "Adding and normalising in two kernels moves five arrays; in one kernel it moves four", shapes)


def chunks_figure() -> str:
    """Draw how the gradient of the weight is summed: rows in chunks, a block each, then the chunks."""
    unit, left, top = 26, 16, 34
    shapes = [text_at(left, 20, "gradients of all rows", "start", INK, 13)]
    for row in range(9):
        colours = (PALE, YELLOW, GREEN)[row // 3]
        y = top + row * 20 + row // 3 * 12
        shapes += [
            f'<rect x="{left + c * unit}" y="{y}" width="{unit}" height="18" fill="{colours[0]}" stroke="{LINE}"/>'
            for c in range(6)
        ]
    shapes.append(text_at(268, 20, "a partial sum a chunk", "start", INK, 13))
    for chunk in range(3):
        y = top + chunk * 72 + 20
        colours = (PALE, YELLOW, GREEN)[chunk]
        shapes.append(arrow(left + 6 * unit + 8, y + 9, 258, y + 9))
        shapes.append(text_at(left + 6 * unit + 46, y + 2, f"block {chunk}", "middle", QUIET, 12))
        shapes += [
            f'<rect x="{268 + c * unit}" y="{y}" width="{unit}" height="18" fill="{colours[0]}" stroke="{LINE}"/>'
            for c in range(6)
        ]
        shapes.append(arrow(268 + 6 * unit + 6, y + 9, 448, top + 101 if chunk != 1 else y + 9))
    shapes.append(frame(268 - 6, top + 8, 6 * unit + 12, 188))
    shapes.append(text_at(460, 20, "in order", "start", INK, 13))
    shapes += [
        f'<rect x="{452 + c * 15}" y="{top + 92}" width="15" height="18" fill="{RED[0]}" stroke="{LINE}"/>'
        for c in range(6)
    ]
    shapes.append(text_at(497, top + 130, "the gradient", "middle", QUIET, 12))
    return drawing(258, "Nine rows in three chunks, one partial sum a chunk, and the sums added in order", shapes)


FIGURES = {
    "row": row_figure,
    "butterfly": butterfly_figure,
    "stored": stored_figure,
    "chunks": chunks_figure,
}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"layernorm_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
