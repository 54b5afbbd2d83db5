"""Draw the figures of chapter 5.

python book/figures/matmul_figures.py        # writes matmul_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, GREEN, INK, LIT, PALE, QUIET, RED, YELLOW, arrow, drawing, matrix, named_box, text_at, timeline


def products_figure() -> str:
    """Draw the three products of a linear layer with the sizes of their matrices."""
    shapes = []
    rows = (
        ("forward", ("out", 60, 90, "M × N"), ("inp", 44, 90, "M × K"), ("weightᵀ", 60, 44, "K × N")),
        ("gradient of input", ("d inp", 44, 90, "M × K"), ("d out", 60, 90, "M × N"), ("weight", 44, 60, "N × K")),
        (
            "gradient of the weight",
            ("d weight", 64, 60, "N × K"),
            ("d outᵀ", 90, 60, "N × M"),
            ("inp", 44, 90, "M × K"),
        ),
    )
    for place, (title, *operands) in enumerate(rows):
        y = 24 + place * 142
        shapes.append(text_at(16, y + 50, title, "start", INK, 13))
        x = 190.0
        for column, (name, width, height, sizes) in enumerate(operands):
            top = y + (90 - height) / 2
            shapes.append(matrix(x, top, width, height, name, GREEN if column == 0 else PALE, 12))
            shapes.append(text_at(x + width / 2, y + 108, sizes, "middle", QUIET, 12))
            x += width + 20
            if column < 2:
                shapes.append(text_at(x + 8, y + 50, "=" if column == 0 else "×", "middle", INK, 18))
                x += 36
    return drawing(436, "Forward, gradient of the input and gradient of the weight are three matrix products", shapes)


def tiles_figure() -> str:
    """Draw how a block makes one tile of the output from a row of tiles of A and a column of tiles of B."""
    unit, n = 34, 5
    shapes = [text_at(118, 186, "A", "middle", INK, 15), text_at(448, 30, "B", "middle", INK, 15)]
    left_a, top_a, left_b, top_b = 32, 200, 320, 20
    for row in range(4):
        for k in range(n):
            colours = YELLOW if row == 1 and k == 2 else PALE if row == 1 else ("#ffffff", INK)
            shapes.append(matrix(left_a + k * unit, top_a + row * unit, unit, unit, "", colours))
    for k in range(n):
        for column in range(3):
            colours = YELLOW if column == 1 and k == 2 else PALE if column == 1 else ("#ffffff", INK)
            shapes.append(matrix(left_b + column * unit, top_b + k * unit, unit, unit, "", colours))
    for row in range(4):
        for column in range(3):
            colours = GREEN if (row, column) == (1, 1) else ("#ffffff", INK)
            shapes.append(matrix(left_b + column * unit, top_a + row * unit, unit, unit, "", colours))
    shapes.append(arrow(left_a + n * unit + 8, top_a + 1.5 * unit, left_b - 8, top_a + 1.5 * unit))
    shapes.append(text_at(left_b + 3 * unit + 12, top_a + 1.5 * unit + 5, "one block's tile", "start", QUIET, 13))
    shapes.append(text_at(left_b + 3 * unit + 12, top_b + 2.5 * unit + 5, "in use now", "start", QUIET, 13))
    shapes.append(
        text_at(left_a, top_a + 4 * unit + 22, "blue: what this block reads, tile by tile", "start", QUIET, 13)
    )
    return drawing(372, "A block's tile is the sum of products of a row of tiles and a column of tiles", shapes)


def registers_figure() -> str:
    """Draw a thread's 4 x 4 outputs: eight numbers from shared memory serve sixteen products."""
    unit, left, top = 44, 200, 66
    shapes = [text_at(left + 2 * unit, 20, "4 numbers of B", "middle", QUIET, 13)]
    shapes.append(text_at(left - 70, top + 2 * unit + 4, "4 numbers of A", "end", QUIET, 13))
    for i in range(4):
        shapes.append(named_box(left + i * unit + 3, 28, unit - 6, f"b{i}", YELLOW, 13))
        shapes.append(named_box(left - 56, top + i * unit + 7, unit - 6, f"a{i}", YELLOW, 13))
        for j in range(4):
            shapes.append(matrix(left + j * unit, top + i * unit, unit, unit, f"a{i}b{j}", GREEN, 12))
    shapes.append(text_at(left + 4 * unit + 14, top + 2 * unit, "16 sums,", "start", QUIET, 13))
    shapes.append(text_at(left + 4 * unit + 14, top + 2 * unit + 20, "in registers", "start", QUIET, 13))
    return drawing(262, "Four numbers of A and four of B are loaded and used for sixteen products", shapes)


def fragments_figure() -> str:
    """Draw which lane of a warp holds which pair of the 16 x 8 result of one tensor-core product."""
    unit, height, left, top = 56, 17, 250, 34
    shapes = [text_at(left + 2 * unit, 20, "16 × 8 results: the lane that holds each pair", "middle", INK, 13)]
    for row in range(16):
        for pair in range(4):
            lane = row % 8 * 4 + pair
            colours = LIT if lane == 5 else DIM
            shapes.append(matrix(left + pair * unit, top + row * height, unit, height, str(lane), colours, 11))
    shapes += [
        text_at(24, 120, "one instruction,", "start", INK, 13),
        text_at(24, 140, "32 lanes:", "start", INK, 13),
        text_at(24, 168, "16 × 16 of A", "start", QUIET, 13),
        text_at(24, 188, "times 16 × 8 of B,", "start", QUIET, 13),
        text_at(24, 208, "2,048 products", "start", QUIET, 13),
    ]
    return drawing(318, "Of the 16 by 8 results each lane holds two pairs, eight rows apart", shapes)


def banks_figure() -> str:
    """Draw the banks that eight rows of 16 bytes fall into: all in one place, and spread by a swizzle."""
    unit, left = 26, 30
    shapes = []
    for x, title, swizzled in ((left, "as they come", False), (left + 280, "swizzled: piece xor row", True)):
        shapes.append(text_at(x, 20, title, "start", INK, 13))
        for row in range(8):
            for piece in range(8):
                taken = piece == (row if swizzled else 0)
                colours = (GREEN if swizzled else RED) if taken else ("#ffffff", INK)
                label = str(row) if taken else ""
                shapes.append(matrix(x + piece * unit, 30 + row * 22, unit, 22, label, colours, 12))
        shapes.append(text_at(x, 226, "8 pieces of 16 bytes, 4 banks each", "start", QUIET, 12))
    return drawing(240, "Eight rows of one column meet in four banks, or an exclusive or spreads them", shapes)


def pipeline_figure() -> str:
    """Draw copies and products one after another, and at the same time with three stages."""
    shapes = [text_at(16, 20, "one stage: copy, wait, multiply, wait", "start", INK, 13)]
    shapes += timeline(30, "copy", [(i * 140, 70, f"tile {i}", YELLOW) for i in range(3)])
    shapes += timeline(64, "multiply", [(70 + i * 140, 70, f"tile {i}", GREEN) for i in range(3)])
    shapes.append(text_at(16, 128, "three stages: copies run ahead", "start", INK, 13))
    shapes += timeline(138, "copy", [(i * 70, 70, f"tile {i}", YELLOW) for i in range(6)])
    shapes += timeline(172, "multiply", [(70 + i * 70, 70, f"tile {i}", GREEN) for i in range(5)])
    shapes.append(text_at(124, 222, "time →", "start", QUIET, 12))
    return drawing(234, "With one stage copying and multiplying alternate; with several they overlap", shapes)


def warps_figure() -> str:
    """Draw the division of labour on Hopper: one warp group copies, two multiply, each with a tile of its own."""
    shapes = timeline(20, "producer", [(i * 52, 52, f"{i}", YELLOW) for i in range(8)])
    for y, consumer in ((70, 1), (104, 2)):
        shapes += timeline(y, f"consumer {consumer}", [(52 + i * 52, 52, f"{i}", GREEN) for i in range(7)])
    shapes += timeline(154, "store", [(364, 52, "result", PALE)])
    for i in range(7):
        shapes.append(arrow(124 + 54 + i * 52, 48, 124 + 54 + i * 52, 69))
    shapes.append(text_at(124, 206, "arrows: a barrier in memory says that a stage is full", "start", QUIET, 12))
    return drawing(
        220, "A producer fills stages ahead; two consumer warp groups multiply; the result is stored", shapes
    )


FIGURES = {
    "products": products_figure,
    "tiles": tiles_figure,
    "registers": registers_figure,
    "fragments": fragments_figure,
    "banks": banks_figure,
    "pipeline": pipeline_figure,
    "warps": warps_figure,
}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"matmul_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
