"""Draw the figures of chapter 8.

python book/figures/loss_figures.py        # writes loss_<name>.svg
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from drawing import BOX, DIM, GREEN, INK, LINE, LIT, PALE, QUIET, RED, YELLOW, arrow, box, drawing, named_box, text_at

LOGITS = (2.0, 1.0, 0.0)
TARGET = 1


def number(x: float) -> str:
    """Return a number with at most three digits and a real minus sign."""
    return f"{x:.3g}".replace("-", "−")


def gradient_figure() -> str:
    """Draw the way from three logits to the gradient: powers, shares, minus one at the target."""
    powers = [math.exp(x) for x in LOGITS]
    shares = [x / sum(powers) for x in powers]
    gradient = [p - (i == TARGET) for i, p in enumerate(shares)]
    columns = (("logit", LOGITS), ("e to its power", powers), ("share of the sum", shares), ("gradient", gradient))
    shapes = []
    for column, (name, values) in enumerate(columns):
        x = 24 + column * 138
        shapes.append(text_at(x + 40, 22, name, "middle", QUIET, 13))
        for row, value in enumerate(values):
            y = 34 + row * 40
            colours = (RED if row == TARGET else GREEN) if column == 3 else YELLOW if row == TARGET else DIM
            shapes.append(box(x, y, 80, number(value), colours))
            if column:
                shapes.append(arrow(x - 54, y + BOX / 2, x - 4, y + BOX / 2))
    shapes.append(
        text_at(24, 172, "yellow: the token that came; its share is pulled up, the others down", "start", QUIET, 13)
    )
    return drawing(186, "Logits 2, 1, 0; their powers of e; the shares; and the shares minus 1 at the target", shapes)


def online_figure() -> str:
    """Draw the running maximum and sum of a thread that reads four logits."""
    logits = (1.0, 3.0, 2.0, 5.0)
    greatest, total = None, 0.0
    shapes = []
    for row, name in enumerate(("logit read", "greatest so far", "scale the old sum by", "sum so far")):
        shapes.append(text_at(150, 38 + row * 44, name, "end", QUIET, 13))
    for place, x in enumerate(logits):
        scale = 1.0 if greatest is None else math.exp(greatest - max(greatest, x))
        greatest = x if greatest is None else max(greatest, x)
        total = total * scale + math.exp(x - greatest)
        left = 168 + place * 98
        shrinks = place > 0 and scale < 1
        values = ((number(x), DIM), (number(greatest), LIT if shrinks else PALE))
        values += ((number(scale) if place else "–", RED if shrinks else DIM), (number(total), GREEN))
        shapes += [box(left, 18 + row * 44, 76, label, colours) for row, (label, colours) in enumerate(values)]
        if place:
            shapes.append(arrow(left - 22, 18 + 3 * 44 + BOX / 2, left - 2, 18 + 3 * 44 + BOX / 2))
    return drawing(
        196,
        "Four logits read one by one: the sum shrinks whenever a greater one appears, and one is added to it",
        shapes,
    )


def bits_figure() -> str:
    """Draw the 32 bits of a number: the half that bfloat16 keeps, and the half that random bits are added to."""
    value = 1.001
    bits = f"{struct.unpack('>I', struct.pack('>f', value))[0]:032b}"
    unit, left = 16.4, 16
    parts = (
        (0, 1, RED, "sign"),
        (1, 9, YELLOW, "exponent"),
        (9, 16, GREEN, "7 bits kept"),
        (16, 32, DIM, "16 bits cut off"),
    )
    shapes = [text_at(left, 22, f"{value} as float32", "start", INK, 13)]
    for first, last, colours, name in parts:
        for i in range(first, last):
            shape = box(left + i * unit, 32, unit, bits[i], colours)
            shapes.append(shape.replace('font-size="15"', 'font-size="12"'))
        x0, x1 = left + first * unit, left + last * unit
        if first:
            shapes.append(text_at((x0 + x1) / 2, 82, name, "middle", QUIET, 12))
    shapes.append(f'<path d="M{left} 96 v6 h{16 * unit} v-6" fill="none" stroke="{LINE}"/>')
    shapes.append(text_at(left + 8 * unit, 120, "the bfloat16", "middle", INK, 13))
    shapes.append(named_box(left + 16 * unit, 104, 16 * unit, "+ 16 random bits", LIT))
    shapes.append(arrow(left + 16 * unit - 2, 119, left + 11.4 * unit, 119))
    shapes.append(text_at(left + 13 * unit, 142, "a carry rounds up", "middle", QUIET, 12))
    return drawing(
        156, "The bits of 1.001: bfloat16 keeps 16; adding random bits to the rest sometimes carries", shapes
    )


def bytes_figure() -> str:
    """Draw the bytes of a parameter, and which of them an update reads and writes."""
    fields = (
        ("weight, bf16", 2, "written"),
        ("gradient", 4, "read"),
        ("master weight", 4, "both"),
        ("m", 4, "both"),
        ("v", 4, "both"),
    )
    colours = {"written": GREEN, "read": DIM, "both": YELLOW}
    unit, x, shapes = 28, 16.0, []
    for name, n_bytes, use in fields:
        width = n_bytes * unit
        shapes.append(named_box(x, 16, width, name if n_bytes > 2 else "bf16", colours[use], 12))
        shapes.append(text_at(x + width / 2, 64, f"{n_bytes} bytes", "middle", QUIET, 12))
        x += width + 4
    shapes.append(
        text_at(
            16,
            92,
            "green: written; grey: read; yellow: read and written. 2 + 4 + 3 · 8 = 30 bytes move",
            "start",
            QUIET,
            13,
        )
    )
    return drawing(104, "A parameter's bytes: 2 of bfloat16 weight, 4 each of gradient, master weight, m and v", shapes)


FIGURES = {
    "gradient": gradient_figure,
    "online": online_figure,
    "bits": bits_figure,
    "bytes": bytes_figure,
}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"loss_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
