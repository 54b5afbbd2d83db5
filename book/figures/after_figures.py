"""Draw the figures of chapter 12.

python book/figures/after_figures.py        # writes after_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import GREEN, INK, LIT, PALE, QUIET, RED, YELLOW, arrow, drawing, matrix, named_box, text_at

ODDS = (16, 9, 4, 1)
TOKENS = ("cat", "dog", "cow", "gnu")
FORMATS = (("fp32", 8, 23), ("bf16", 8, 7), ("fp16", 5, 10), ("fp8 e4m3", 4, 3))  # (name, exponent bits, fraction bits)


def weights_figure() -> str:
    """Draw where weights may come from, and what can be done with them."""
    sources = ("run folder", "model_*.bin, ours or llm.c's", "Hugging Face folder or name", "descriptor: fresh weights")
    uses = ("sample", "evaluate", "train -e: fine-tune", "weights: convert, export")
    shapes = [named_box(232, 82, 110, "load_model", LIT)]
    for place, (source, use) in enumerate(zip(sources, uses, strict=True)):
        y = 16 + place * 44
        shapes.append(named_box(12, y, 188, source, PALE, 12))
        shapes.append(arrow(202, y + 15, 230, 97) if y + 15 != 97 else "")
        shapes.append(named_box(376, y, 172, use, GREEN, 13))
        shapes.append(arrow(344, 97, 374, y + 15))
    return drawing(194, "Four sources of weights lead to load_model, and from there to four uses", shapes)


def temperature_figure() -> str:
    """Draw the probabilities of four tokens as they are, at two temperatures, and cut off at two tokens."""

    def shares(power: float, kept: int = 4) -> list[float]:
        weights = [odds**power if place < kept else 0.0 for place, odds in enumerate(ODDS)]
        return [weight / sum(weights) for weight in weights]

    columns = (
        ("temperature 1", shares(1)),
        ("temperature 0.5", shares(2)),
        ("temperature 2", shares(0.5)),
        ("top-k 2", shares(1, kept=2)),
    )
    shapes, base = [], 150
    for column, (name, values) in enumerate(columns):
        left = 20 + column * 136
        for place, value in enumerate(values):
            x, height = left + place * 29, 130 * value
            colours = (LIT, PALE, YELLOW, RED)[place]
            if value:
                shapes.append(matrix(x, base - height, 25, height, "", colours))
            shapes.append(text_at(x + 12.5, base - height - 4, f"{100 * value:.0f}", "middle", INK, 12))
            shapes.append(text_at(x + 12.5, base + 16, TOKENS[place], "middle", QUIET, 11))
        shapes.append(text_at(left + 56, base + 38, name, "middle", INK, 13))
    return drawing(
        202,
        "Per cent of four tokens: 53, 30, 13, 3; colder 72, 23, 5, 0; hotter 40, 30, 20, 10; top two 64, 36",
        shapes,
    )


def bits_figure() -> str:
    """Draw the bits of four number formats: sign, exponent, fraction."""
    shapes, unit = [], 13.6
    for row, (name, exponent, fraction) in enumerate(FORMATS):
        y = 14 + row * 40
        shapes.append(text_at(92, y + 20, name, "end", INK, 13))
        x = 104.0
        for n_bits, colours in ((1, RED), (exponent, YELLOW), (fraction, GREEN)):
            label = "" if n_bits == 1 else str(n_bits)
            shapes.append(matrix(x, y, n_bits * unit, 28, label, colours, 13))
            x += n_bits * unit
    note = "red: sign; yellow: exponent, how large; green: fraction, how exact"
    shapes.append(text_at(280, 190, note, "middle", QUIET, 13))
    return drawing(204, "Bits of fp32: 1, 8 and 23; bf16: 1, 8 and 7; fp16: 1, 5 and 10; fp8 e4m3: 1, 4 and 3", shapes)


FIGURES = {"weights": weights_figure, "temperature": temperature_figure, "bits": bits_figure}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"after_{name}.svg").write_text(draw(), encoding="utf-8")
