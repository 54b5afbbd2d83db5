"""Draw the figures of chapter 9.

python book/figures/step_figures.py        # writes step_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, GREEN, LINE, LIT, PALE, QUIET, RED, YELLOW, arrow, drawing, frame, named_box, text_at

COLUMNS = (
    ("norm", "input", "norm"),
    ("product", "its input", "product"),
    ("attention", "Q, K, V, O", "attention"),
    ("product", "its input", "product"),
    ("+, norm", "the sum", "norm"),
    ("product, GELU", "before, GELU", "product"),
    ("product", "after, GELU", "product, GELU"),
)
"""Of a block: what forward does, what it keeps there, what backward does."""


def thin(x: float, y: float, width: float, colours: tuple[str, str], height: float = 18) -> str:
    """Return a bar without words."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" fill="{colours[0]}" '
        f'stroke="{LINE}"/>'
    )


def order_figure() -> str:
    """Draw an optimizer step: eight micro-batches add to the gradients, then norm and update."""
    shapes = [frame(12, 30, 536, 100), text_at(24, 24, "8 micro-batches, one after the other", "start", QUIET, 13)]
    x = 24.0
    for place in range(8):
        shapes.append(text_at(x + 29, 48, f"{place + 1}", "middle", QUIET, 12))
        for row, (name, colours) in enumerate((("forward", PALE), ("loss", YELLOW), ("backward", LIT))):
            y = 54 + 23 * row
            shapes += [thin(x, y, 58, colours, 20), text_at(x + 29, y + 14, name, "middle", colours[1], 11)]
        shapes.append(arrow(x + 29, 123, x + 29, 152))
        shapes.append(text_at(x + 43, 145, "+=", "middle", QUIET, 12))
        x += 65
    shapes.append(named_box(24, 154, 513, "gradients of all weights, float32: zero at the start of the step", GREEN))
    for left, width, name in (
        (24, 150, "their norm"),
        (206, 150, "factor, at most 1"),
        (388, 149, "AdamW"),
    ):
        shapes.append(named_box(left, 208, width, name, DIM))
    shapes += [arrow(99, 186, 99, 206), arrow(176, 223, 204, 223), arrow(358, 223, 386, 223), arrow(462, 186, 462, 206)]
    label = "Eight micro-batches go forward and backward and add to the gradients; then come the norm and AdamW"
    return drawing(250, label, shapes)


def block_figure() -> str:
    """Draw the operations of a block forward, what they keep, and backward in the other direction."""
    unit, left = 68.0, 74.0
    rows = ((14, "forward", PALE), (78, "kept", YELLOW), (142, "backward", LIT))
    shapes = [text_at(68, y + 20, name, "end", QUIET, 13) for y, name, _ in rows]
    for column, names in enumerate(COLUMNS):
        x = left + column * unit
        for (y, _, colours), name in zip(rows, names, strict=True):
            lines = name.split(", ", 1) if name.endswith("GELU") else [name]
            shapes.append(named_box(x, y, unit - 8, "" if len(lines) > 1 else name, colours, 11))
            if len(lines) > 1:
                shapes += [
                    text_at(x + unit / 2 - 4, y + 13 + 12 * i, line, "middle", colours[1], 10.5)
                    for i, line in enumerate(lines)
                ]
        shapes += [arrow(x + 30, 46, x + 30, 76), arrow(x + 30, 110, x + 30, 140)]
        if column:
            shapes += [arrow(x - 8, 29, x, 29), arrow(x, 157, x - 8, 157)]
    shapes.append(
        text_at(
            left, 196, "forward runs to the right, backward to the left, and reads what was kept", "start", QUIET, 13
        )
    )
    label = "The seven operations of a block forward, what each keeps, and backward in the reverse order"
    return drawing(208, label, shapes)


def sharing_figure() -> str:
    """Draw when the wide gradients of a layer are in use during its backward pass: never at the same time."""
    operations = ("MLP, 2nd", "MLP, 1st", "norm", "product", "attention", "Q, K, V", "norm")
    unit, left = 62.0, 118.0
    shapes = []
    for column, name in enumerate(operations):
        x = left + column * unit
        shapes.append(text_at(x + unit / 2, 22, name, "middle", QUIET, 11))
        shapes.append(f'<path d="M{x:.1f} 30 V128" stroke="{LINE}" stroke-width="0.5" stroke-dasharray="2 3"/>')
    rows = (("stream", 0, 7, DIM), ("in the MLP, 4C", 0, 2, LIT), ("of Q, K, V, 3C", 4, 6, GREEN))
    for row, (name, first, last, colours) in enumerate(rows):
        y = 40 + row * 30
        shapes.append(text_at(left - 8, y + 14, name, "end", QUIET, 12))
        shapes.append(thin(left + first * unit + 3, y, (last - first) * unit - 6, colours, 20))
    shapes.append(
        text_at(16, 150, "backward of one layer, in time; a bar: this gradient is in use", "start", QUIET, 13)
    )
    label = "The gradient inside the MLP and that of queries, keys and values are in use at different times"
    return drawing(162, label, shapes)


def timeline(y: float, launch: float, kernels: tuple[float, ...]) -> list[str]:
    """Return host and device of short kernels that are launched one by one; where the device waits is red."""
    shapes, host, device = [], 84.0, 0.0
    for length in kernels:
        shapes.append(thin(host, y, launch - 2, YELLOW))
        host += launch
        start = max(host, device + 1)
        shapes.append(thin(start, y + 26, length, LIT))
        if device:
            shapes.append(thin(device, y + 26, start - device, RED))
        device = start + length
    return shapes


def host_figure() -> str:
    """Draw host and device: launches from Python slower than the kernels, and the same launches out of a graph."""
    kernels = (26.0, 18.0, 34.0, 14.0, 22.0, 30.0, 16.0)
    shapes = [text_at(16, 22, "launched one by one from Python", "start", QUIET, 13)]
    shapes += timeline(32, 58, kernels)
    shapes.append(text_at(16, 116, "one launch of a graph", "start", QUIET, 13))
    shapes.append(thin(84, 126, 56, YELLOW))
    x = 142.0
    for length in kernels:
        shapes.append(thin(x, 152, length, LIT))
        x += length + 2
    shapes.append(thin(142, 126, 406, DIM))
    shapes.append(text_at(345, 139, "free: read the next batch, make the plan", "middle", QUIET, 12))
    for y in (32, 126):
        shapes += [text_at(76, y + 14, "host", "end", QUIET, 13), text_at(76, y + 40, "device", "end", QUIET, 13)]
    shapes.append(
        text_at(16, 196, "yellow: a launch; blue: a kernel; red: the device waits for the host", "start", QUIET, 13)
    )
    label = "Launched one by one, the device waits for the host between short kernels; out of a graph it does not"
    return drawing(208, label, shapes)


FIGURES = {"order": order_figure, "block": block_figure, "sharing": sharing_figure, "host": host_figure}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"step_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
