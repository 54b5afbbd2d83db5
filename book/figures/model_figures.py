"""Draw the figures of chapter 3; numbers come from the package, not from hand.

python book/figures/model_figures.py        # writes model_<name>.svg
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from drawing import BOX, DIM, INK, LINE, LIT, PALE, QUIET, WIDTH, box, drawing, text_at

from gpt2edu.config import ModelConfig
from gpt2edu.parameters import parameter_layout

KEY, VALUE = ("#fde68a", "#1e293b"), ("#bbf7d0", "#1e293b")  # beside PALE for queries
SANS = ("ui-monospace, monospace", "system-ui, sans-serif")


def named_box(x: float, y: float, width: float, label: str, colours: tuple[str, str] = DIM, size: int = 14) -> str:
    """Return a box that holds a name or number rather than a piece of text."""
    return (
        box(x, y, width, label, colours)
        .replace(*SANS)
        .replace("␣", " ")
        .replace('font-size="15"', f'font-size="{size}"')
    )


def arrow(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through the points with a head at its end."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    bx, by = x1 - 6 * ux, y1 - 6 * uy
    head = f"{x1:.1f},{y1:.1f} {bx - 4 * uy:.1f},{by + 4 * ux:.1f} {bx + 4 * uy:.1f},{by - 4 * ux:.1f}"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*points[:-1], (bx, by)])
    return (
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"/><polygon points="{head}" '
        f'fill="{LINE}"/>'
    )


def next_token_figure() -> str:
    """Draw four tokens going in, and at each position the token that should get the highest score."""
    words, left, unit, gap = ["The", " cat", " sat", " on"], 124, 92, 14
    shapes = [
        text_at(left - 16, y, name, "end", QUIET, 13)
        for y, name in ((36, "next token"), (96, "the model"), (156, "tokens in"))
    ]
    shapes.append(named_box(left, 76, 4 * unit + 3 * gap, "GPT-2", LIT))
    for place, word in enumerate(words):
        x = left + place * (unit + gap)
        shapes += [box(x, 136, unit, word), arrow([(x + unit / 2, 136), (x + unit / 2, 107)])]
        following = words[place + 1] if place < 3 else " the"
        shapes += [arrow([(x + unit / 2, 76), (x + unit / 2, 47)]), box(x, 16, unit, following, PALE)]
        shapes.append(text_at(x + unit / 2, 184, f"position {place}", fill=QUIET, size=13))
    return drawing(198, "Four tokens go in; at each position the token that follows should score high", shapes)


def embedding_figure() -> str:
    """Draw three tokens, each the sum of a row of the token table and a row of the position table."""
    tokens, cell = (3, 1, 3), 18
    shapes = []
    for place, token in enumerate(tokens):
        y = 30 + place * 58
        shapes.append(text_at(14, y + 20, f"token {token}", "start"))
        groups = ((92, f"wte row {token}", PALE), (258, f"wpe row {place}", KEY), (424, f"position {place}", LIT))
        for x, name, colours in groups:
            shapes += [named_box(x + n * cell, y, cell, "", colours) for n in range(6)]
            shapes.append(text_at(x + 3 * cell, y - 5, name, fill=QUIET, size=13))
        shapes += [text_at(229, y + 21, "+", size=18), text_at(395, y + 21, "=", size=18)]
    shapes.append(text_at(424 + 3 * cell, 200, "C numbers each", fill=QUIET, size=13))
    return drawing(214, "Each token becomes the sum of its row of wte and its position's row of wpe", shapes)


def block_figure() -> str:
    """Draw the residual stream with its two branches, and the width of the vectors on each arrow."""
    shapes, stream_y, branch_y = [], 128, 36
    branches = (("ln1", "qkv", "attention", "attproj"), ("ln2", "fc", "GELU", "fcproj"))
    widths = (("C", "3C", "C"), ("C", "4C", "4C"))
    shapes.append(arrow([(8, stream_y), (552, stream_y)]))
    for branch, (names, sizes) in enumerate(zip(branches, widths, strict=True)):
        start = 14 + branch * 268
        box_widths, gap = (40, 40, 70, 58), 16
        x, end = float(start), start + sum(box_widths) + 3 * gap
        first, last = start + 20, end - 12
        shapes.append(arrow([(first, stream_y), (first, branch_y + BOX)]))
        for place, (name, width) in enumerate(zip(names, box_widths, strict=True)):
            shapes.append(named_box(x, branch_y, width, name, LIT if place in (1, 3) else PALE, 13))
            if place < 3:
                shapes.append(arrow([(x + width, branch_y + 15), (x + width + gap, branch_y + 15)]))
                shapes.append(text_at(x + width + gap / 2, branch_y - 6, sizes[place], fill=QUIET, size=12))
            x += width + gap
        shapes.append(arrow([(last, branch_y + BOX), (last, stream_y - 11)]))
        shapes.append(f'<circle cx="{last}" cy="{stream_y}" r="11" fill="#ffffff" stroke="{LINE}" stroke-width="1.5"/>')
        shapes.append(text_at(last, stream_y + 6, "+", size=18))
    shapes.append(text_at(12, stream_y + 28, "the residual stream: C numbers for each token", "start", QUIET, 13))
    return drawing(168, "A block: two branches read from the residual stream and add to it", shapes)


def attention_figure() -> str:
    """Draw the worked example: scores, weights, values and results of three tokens."""
    keys, values = torch.log(torch.tensor([1.0, 3.0, 4.0])), torch.tensor([4.0, 8.0, 0.0])
    weights = torch.tril(keys.exp().repeat(3, 1))
    weights /= weights.sum(1, keepdim=True)
    score_names, eighths = ("0", "ln 3", "ln 4"), (weights * 8).round().int()
    shapes, cell, top = [], 46, 62
    for place in range(3):
        y = top + place * (BOX + 8)
        shapes.append(text_at(60, y + 20, f"token {place}", "end", size=13))
        for other in range(3):
            seen = other <= place
            shapes.append(
                named_box(70 + other * cell, y, cell, score_names[other] if seen else "–", PALE if seen else DIM)
            )
            common = math.gcd(int(eighths[place, other]), 8)
            share = f"{eighths[place, other] // common}/{8 // common}" if seen else "0"
            share = "1" if share == "1/1" else share
            shapes.append(named_box(246 + other * cell, y, cell, share, KEY if seen else DIM))
        shapes.append(named_box(414, y, cell, f"{values[place]:g}", VALUE))
        if place == 1:
            shapes += [text_at(400, y + 21, "×", size=18), text_at(476, y + 21, "=", size=18)]
        shapes.append(named_box(492, y, cell, f"{weights[place] @ values:g}", LIT))
    for x, name in ((139, "scores"), (313, "weights"), (437, "values"), (515, "result")):
        shapes.append(text_at(x, 24, name))
    for x in (70, 246):
        shapes += [text_at(x + (n + 0.5) * cell, 52, f"of {n}", fill=QUIET, size=12) for n in range(3)]
    shapes.append(arrow([(212, top + 53), (242, top + 53)]))
    shapes.append(text_at(227, 24, "softmax", fill=QUIET, size=12))
    return drawing(186, "Attention of three tokens: scores, weights, values 4, 8, 0, results 4, 7, 3.5", shapes)


def heads_figure() -> str:
    """Draw how the 3C numbers of one token are cut into queries, keys and values of two heads."""
    shapes, cell, gap, left = [], 28, 14, 14
    for part, (name, colours) in enumerate((("queries", PALE), ("keys", KEY), ("values", VALUE))):
        for head in range(2):
            x = left + part * (6 * cell + gap) + head * 3 * cell
            shapes += [named_box(x + n * cell, 30, cell, "", colours) for n in range(3)]
            shapes.append(text_at(x + 1.5 * cell, 78, f"head {head}", fill=QUIET, size=13))
            shapes.append(
                f'<rect x="{x}" y="30" width="{3 * cell}" height="{BOX}" fill="none" stroke="{INK}" stroke-width="2"/>'
            )
        shapes.append(text_at(left + part * (6 * cell + gap) + 3 * cell, 20, name, size=13))
    return drawing(92, "The 3C numbers of a token: queries, keys and values, each cut into heads of D numbers", shapes)


def parameters_figure() -> str:
    """Draw GPT-2's parameters as a bar, each part as long as its share."""
    sizes = {tensor.name: tensor.size for tensor in parameter_layout(ModelConfig())}
    parts = {
        "wte": (sizes["wte"], PALE),
        "attention": (sum(sizes[name] for name in ("qkvw", "qkvb", "attprojw", "attprojb")), LIT),
        "MLP": (sum(sizes[name] for name in ("fcw", "fcb", "fcprojw", "fcprojb")), VALUE),
    }
    total = sum(sizes.values())
    x, shapes = 14.0, []
    for name, (size, colours) in parts.items():
        width = (WIDTH - 28) * size / total
        shapes.append(named_box(x, 34, width, f"{size / 1e6:.1f} million", colours))
        shapes.append(text_at(x + width / 2, 24, name))
        shapes.append(text_at(x + width / 2, 84, f"{size / total:.0%}", fill=QUIET))
        x += width
    rest = total - sum(size for size, _ in parts.values())
    shapes.append(f'<rect x="{x:.1f}" y="34" width="{WIDTH - 14 - x:.1f}" height="{BOX}" fill="{INK}"/>')
    note = f"the thin end: wpe and all layernorms, {rest / total:.1%}"
    shapes.append(text_at(WIDTH - 14, 106, note, "end", QUIET, 13))
    return drawing(118, "GPT-2's parameters: wte 31 %, attention 23 %, MLP 46 %, the rest below 1 %", shapes)


def main() -> None:
    """Write the figures beside this file."""
    figures = {
        "next_token": next_token_figure,
        "embedding": embedding_figure,
        "block": block_figure,
        "attention": attention_figure,
        "heads": heads_figure,
        "parameters": parameters_figure,
    }
    for name, draw in figures.items():
        Path(__file__).with_name(f"model_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
