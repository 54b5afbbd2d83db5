"""Draw the figures of chapter 7.

python book/figures/attention_figures.py        # writes attention_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, GREEN, INK, LIT, PALE, QUIET, YELLOW, arrow, box, drawing, frame, named_box, text_at, timeline

N_TILES = 6


def square(x: float, y: float, side: float, fill: str, stroke: str = "#64748b") -> str:
    """Return one small square."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" fill="{fill}" stroke="{stroke}"/>'


def tiles_figure() -> str:
    """Draw the square of scores in tiles: whole ones below the diagonal, cut ones on it, skipped ones above."""
    side, left, top = 34, 120, 46
    shapes = [text_at(left + N_TILES * side / 2, 20, "keys, tile by tile", "middle", QUIET, 13)]
    shapes += [text_at(left + (n + 0.5) * side, 40, str(n), "middle", QUIET, 12) for n in range(N_TILES)]
    shapes.append(text_at(left - 14, top + N_TILES * side / 2, "queries", "end", QUIET, 13))
    for row in range(N_TILES):
        for column in range(N_TILES):
            x, y = left + column * side, top + row * side
            fill = "#ffffff" if column > row else YELLOW[0] if column == row else PALE[0]
            shapes.append(square(x, y, side, fill))
            if column == row:
                corner = f"M{x} {y} L{x + side} {y + side} L{x + side} {y} Z"
                shapes.append(f'<path d="{corner}" fill="#ffffff" stroke="#64748b"/>')
    legend = ((PALE, "all pairs count"), (YELLOW, "half of the pairs count"), (("#ffffff", INK), "skipped: never read"))
    for place, (colours, name) in enumerate(legend):
        shapes.append(square(356, 70 + place * 34, 20, colours[0]))
        shapes.append(text_at(384, 85 + place * 34, name, "start", INK, 13))
    shapes.append(text_at(356, 200, "21 of 36 tiles are visited", "start", QUIET, 13))
    return drawing(264, "Of 6 by 6 tiles of scores 15 are whole, 6 are cut by the diagonal, and 15 are skipped", shapes)


def flash_figure() -> str:
    """Draw one block at work: its queries stay, keys and values pass, and three running results are kept."""
    shapes = [named_box(16, 24, 120, "tile of queries", LIT, 13), text_at(76, 72, "stays", "middle", QUIET, 12)]
    for place in range(4):
        x = 172 + place * 94
        fill = GREEN if place == 1 else DIM
        shapes.append(named_box(x, 16, 82, f"keys {place}", fill, 12))
        shapes.append(named_box(x, 52, 82, f"values {place}", fill, 12))
    shapes.append(text_at(360, 104, "pass by, one tile after the other", "middle", QUIET, 12))
    shapes.append(frame(16, 124, 528, 88))
    shapes.append(text_at(28, 144, "kept in registers for each query", "start", QUIET, 12))
    kept = (("greatest score", 120), ("sum of weights", 130), ("weighted sum of values", 200))
    x = 30.0
    for name, width in kept:
        shapes.append(named_box(x, 158, width, name, YELLOW, 13))
        x += width + 22
    shapes.append(text_at(280, 232, "a greater score comes: scale the other two, and go on", "middle", QUIET, 12))
    return drawing(246, "Queries stay; tiles of keys and values pass; three results are kept a query", shapes)


def backward_figure() -> str:
    """Draw the two kernels of backward: along the rows for queries, down the columns for keys and values."""
    side, top = 26, 56
    shapes = []
    panels = ((40, "one kernel: gradient of queries", 3, True), (310, "another: gradients of keys, values", 2, False))
    for left, title, own, along_row in panels:
        shapes.append(text_at(left + 3 * side, 24, title, "middle", INK, 13))
        for row in range(N_TILES):
            for column in range(N_TILES):
                x, y = left + column * side, top + row * side
                mine = row == own if along_row else column == own
                fill = "#ffffff" if column > row else GREEN[0] if mine else DIM[0]
                shapes.append(square(x, y, side, fill))
        if along_row:
            y = top + (own + 0.5) * side
            shapes.append(arrow(left - 22, y, left + (own + 1) * side + 14, y))
            shapes.append(text_at(left + 4 * side + 14, y + 5, "dQ", "start", INK, 13))
        else:
            x = left + (own + 0.5) * side
            shapes.append(arrow(x, top + own * side - 18, x, top + N_TILES * side + 14))
            shapes.append(text_at(x, top + N_TILES * side + 32, "dK, dV", "middle", INK, 13))
    return drawing(256, "Queries sum along their row of tiles, keys and values down their column", shapes)


def registers_figure() -> str:
    """Draw where lane 5 holds its numbers: what the first product leaves is what the second one takes."""
    shapes = []
    lane = 5
    group, pair = lane // 4, 2 * (lane % 4)
    panels = (
        (30, "result of the first product: 8 keys", 8, 24),
        (276, "left operand of the second: 16 keys", 16, 16.5),
    )
    for left, title, columns, unit in panels:
        shapes.append(text_at(left, 20, title, "start", INK, 13))
        for row in range(4):
            for column in range(columns):
                held = row == group and column % 8 in (pair, pair + 1)
                label = "5" if held else ""
                shapes.append(box(left + column * unit, 32 + row * 32, unit, label, LIT if held else DIM))
    note = "rows are queries; of each 8 keys, lane 5 holds the same two places in both"
    shapes.append(text_at(30, 184, note, "start", QUIET, 13))
    return drawing(198, "Of each 8 columns lane 5 holds 2 and 3 of row 1, in the result and in the operand", shapes)


def pingpong_figure() -> str:
    """Draw three consumers that take turns: while one multiplies, the others take exponentials."""
    unit = 52
    shapes = []
    for consumer in range(3):
        bars, start = [], consumer * unit
        while start < 8 * unit:
            bars.append((start, unit, "multiply", GREEN))
            rest = min(2 * unit, 8 * unit - start - unit)
            if rest > 0:
                bars.append((start + unit, rest, "exponentials" if rest > unit else "exp", YELLOW))
            start += 3 * unit
        shapes += timeline(20 + consumer * 36, f"consumer {consumer}", bars)
    shapes += timeline(142, "tensor cores", [(i * unit, unit, f"of {i % 3}", PALE) for i in range(8)])
    shapes.append(text_at(124, 194, "time →", "start", QUIET, 12))
    return drawing(206, "Three consumers take turns at the tensor cores, which are never idle", shapes)


def decode_figure() -> str:
    """Draw one query that meets the cache in parts, and the small results that are added."""
    unit, left, top, parts = 12.0, 74.0, 66.0, 3
    shapes = [
        text_at(left - 12, top + 20, "keys", "end", QUIET, 13),
        text_at(left - 12, top + 50, "values", "end", QUIET, 13),
    ]
    for part in range(parts):
        x = left + part * 150
        last = part == parts - 1
        shapes.append(
            text_at(x + 5.5 * unit, 28, f"block {part}: {'the rest' if last else '128 tokens'}", "middle", INK, 13)
        )
        for token in range(7 if last else 11):
            newest = last and token == 6
            for row in range(2):
                fill = LIT[0] if newest else GREEN[0] if row else PALE[0]
                shapes.append(
                    f'<rect x="{x + token * unit:.1f}" y="{top + row * 30:.1f}" width="{unit}" height="24" '
                    f'fill="{fill}" stroke="#64748b"/>'
                )
        shapes.append(arrow(x + 5.5 * unit, 126, x + 5.5 * unit, 146))
        shapes.append(named_box(x, 150, 11 * unit, "greatest, sum, vector", YELLOW, 11))
        shapes.append(arrow(x + 5.5 * unit, 184, x + 5.5 * unit, 204))
    shapes.append(text_at(left + 300 + 8 * unit, 84, "← the new", "start", QUIET, 12))
    shapes.append(text_at(left + 300 + 8 * unit, 100, "token", "start", QUIET, 12))
    shapes.append(named_box(left, 208, 300 + 11 * unit, "added in their order", LIT, 13))
    return drawing(
        256, "The tokens so far, cut into parts of 128; each block gives three results, which are added", shapes
    )


FIGURES = {
    "decode": decode_figure,
    "pingpong": pingpong_figure,
    "tiles": tiles_figure,
    "flash": flash_figure,
    "backward": backward_figure,
    "registers": registers_figure,
}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"attention_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
