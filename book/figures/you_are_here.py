"""Draw the "you are here" figure: the way from text to a trained GPT-2, with one chapter's part lit.

    python book/figures/you_are_here.py        # writes you_are_here_<part>.svg for every part

A chapter shows its own with `![You are here: ...](figures/you_are_here_<part>.svg)`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

ROWS = (
    ("text", "tokens", "shards", "embedding"),
    ("layernorm 1", "attention", "+ 1", "layernorm 2", "MLP", "+ 2"),
    ("layernorm 3", "head", "loss", "AdamW", "many GPUs"),
)
# part -> the boxes that are lit; a box is named by its text, the two layer normalisations by their place
PARTS: dict[str, Collection[str]] = {
    "intro": (),
    "tokenization": ("text", "tokens"),
    "data": ("shards",),
    "model": ("embedding", "layernorm 1", "attention", "+ 1", "layernorm 2", "MLP", "+ 2", "layernorm 3", "head"),
    "kernels": ("+ 1", "+ 2"),
    "matmul": ("MLP", "head"),
    "layernorm": ("layernorm 1", "layernorm 2", "layernorm 3"),
    "attention": ("attention",),
    "loss": ("loss", "AdamW"),
    "step": (
        *("embedding", "layernorm 1", "attention", "+ 1", "layernorm 2", "MLP", "+ 2"),
        *("layernorm 3", "head", "loss", "AdamW"),
    ),
    "many_gpus": ("many GPUs",),
    "run": tuple(name for row in ROWS for name in row),
    "after": (
        *("text", "tokens", "embedding", "layernorm 1", "attention", "+ 1", "layernorm 2", "MLP", "+ 2"),
        *("layernorm 3", "head"),
    ),
}
WIDTH, ROW_HEIGHT, BOX_HEIGHT, GAP = 560, 74, 34, 16
LIT, DIM = ("#1d4ed8", "#ffffff"), ("#eef2f7", "#334155")  # (fill, text)
LINE = "#64748b"


def you_are_here(part: str) -> str:
    """Return the figure as SVG text; it brings its own light background, so it reads in dark mode too."""
    lit = PARTS[part]
    body = []
    for row, names in enumerate(ROWS):
        body += _row(names, lit, y=20 + row * ROW_HEIGHT)
    height = 20 + len(ROWS) * ROW_HEIGHT - 16
    block_y = 20 + ROW_HEIGHT - 14
    frame = (
        f'<rect x="8" y="{block_y}" width="{WIDTH - 16}" height="{BOX_HEIGHT + 28}" rx="8" fill="none" '
        f'stroke="{LINE}" stroke-dasharray="5 4"/>'
        f'<text x="{WIDTH - 14}" y="{block_y - 4}" text-anchor="end" fill="{DIM[1]}">12 blocks</text>'
    )
    label = f"The way from text to a trained GPT-2; lit: {', '.join(_text(name) for name in lit) or 'nothing'}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="14" role="img" aria-label="{label}">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>\n{frame}\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(name: str) -> str:
    """Return what stands in a box: `layernorm 1` is shown as `layernorm`."""
    return name.rstrip(" 123")


def _row(names: Collection[str], lit: Collection[str], y: int) -> list[str]:
    """Draw one row of boxes, joined by arrows, filling the width."""
    weights = [1 if name.startswith("+") else 2.6 for name in names]
    unit = (WIDTH - 40 - GAP * (len(weights) - 1)) / sum(weights)
    shapes, x = [], 20.0
    for place, (name, weight) in enumerate(zip(names, weights, strict=True)):
        width = weight * unit
        fill, colour = LIT if name in lit else DIM
        shapes.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" '
            f'stroke="{LINE}"/><text x="{x + width / 2:.1f}" y="{y + 22}" text-anchor="middle" '
            f'fill="{colour}">{_text(name)}</text>'
        )
        x += width
        if place < len(weights) - 1:
            middle = y + BOX_HEIGHT / 2
            shapes.append(
                f'<path d="M{x + 2:.1f} {middle} h{GAP - 7}" stroke="{LINE}" stroke-width="1.5"/>'
                f'<path d="M{x + GAP - 1:.1f} {middle} l-6 -4 v8 z" fill="{LINE}"/>'
            )
        x += GAP
    return shapes


def main() -> None:
    """Write the figure of every part beside this file."""
    for part in PARTS:
        path = Path(__file__).with_name(f"you_are_here_{part}.svg")
        path.write_text(you_are_here(part), encoding="utf-8")


if __name__ == "__main__":
    main()
