"""Draw the figures of chapter 2; bytes, shuffles and splits come from the package, not from hand.

python book/figures/data_figures.py        # writes data_<name>.svg
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from drawing import BOX, DIM, INK, LINE, LIT, PALE, QUIET, WIDTH, box, drawing, text_at

from gpt2edu.loader import VirtualRank
from gpt2edu.shards import HEADER_BYTES, write_shard

EOT = ("#fde68a", "#1e293b")  # (fill, text)
COLOURS = (PALE, ("#bbf7d0", "#1e293b"), ("#fecaca", "#1e293b"), ("#e9d5ff", "#1e293b"))
DOCUMENTS = ("The cat sat.", "Hello world", "No news today.")


def stream() -> list[tuple[str, tuple[str, str]]]:
    """Return the token stream of the three documents, a word a token for the picture, with each token's colours."""
    tokens = []
    for text, colours in zip(DOCUMENTS, COLOURS, strict=False):
        tokens.append(("EOT", EOT))
        tokens += [(word, colours) for word in text.replace(".", " .").split()]
    return tokens


def documents_figure() -> str:
    """Draw three documents, the stream that they become, and the shards of five tokens that it is cut into."""
    shapes, x = [], 20.0
    for text, colours in zip(DOCUMENTS, COLOURS, strict=False):
        shapes += [box(x, 34, 160, text, colours).replace("␣", " ")]
        x += 180
    shapes.append(text_at(20, 24, "documents", "start", QUIET, 13))
    shapes.append(text_at(20, 104, "one stream, cut every five tokens", "start", QUIET, 13))
    unit, x = 38.5, 20.0
    for place, (word, colours) in enumerate(stream()):
        if place and place % 5 == 0:
            x += 14
        size = 15 if len(word) < 4 else 11
        shapes.append(box(x, 116, unit, word, colours).replace('font-size="15"', f'font-size="{size}"'))
        if place % 5 == 0:
            name = "shard 0: validation" if place == 0 else f"shard {place // 5}: training"
            end = min(5, len(stream()) - place) * unit
            shapes.append(f'<path d="M{x} 156 v6 h{end} v-6" fill="none" stroke="{LINE}"/>')
            shapes.append(
                text_at(x + end / 2, 180, name if end > 3 * unit else f"shard {place // 5}", "middle", INK, 13)
            )
        x += unit
    return drawing(
        194, "Three documents, each behind an end-of-text token, become one stream that is cut into shards", shapes
    )


def shard_figure() -> str:
    """Draw the bytes of a shard with the tokens 50256, 15496, 995."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.bin"
        write_shard(path, np.array([50256, 15496, 995]))
        data = path.read_bytes()
    fields = [
        ("magic", data[0:4], str(int.from_bytes(data[0:4], "little")), LIT),
        ("version", data[4:8], str(int.from_bytes(data[4:8], "little")), PALE),
        ("tokens", data[8:12], str(int.from_bytes(data[8:12], "little")), PALE),
    ]
    shapes = [text_at(20, 26, f"header: {HEADER_BYTES:,} bytes", "start", QUIET, 13)]
    unit, x = 29.0, 20.0
    for name, raw, value, colours in fields:
        for byte in raw:
            shapes.append(box(x, 36, unit, f"{byte:02X}", colours).replace('font-size="15"', 'font-size="13"'))
            x += unit
        shapes.append(text_at(x - 2 * unit, 86, name, "middle", INK, 13))
        shapes.append(text_at(x - 2 * unit, 103, value, "middle", QUIET, 13))
        x += 10
    shapes.append(text_at(x + 4, 56, "and 253 zeros", "start", QUIET, 13))
    shapes.append(text_at(20, 142, "body: two bytes a token, the low byte first", "start", QUIET, 13))
    x = 20.0
    for place, name in enumerate(("<|endoftext|>", "Hello", "␣world")):
        raw = data[HEADER_BYTES + 2 * place : HEADER_BYTES + 2 * place + 2]
        for byte in raw:
            colours = EOT if place == 0 else COLOURS[1]
            shapes.append(box(x, 152, 48, f"{byte:02X}", colours))
            x += 48
        shapes.append(text_at(x - 48, 202, name, "middle", INK, 13))
        shapes.append(text_at(x - 48, 219, str(int.from_bytes(raw, "little")), "middle", QUIET, 13))
        x += 20
    return drawing(234, "The bytes of a shard: a header of 1,024 bytes, then two bytes for each token", shapes)


def batch_figure() -> str:
    """Draw nine tokens, and the inputs and targets of two sequences of four that they give."""
    words = ["EOT", "The", "cat", "sat", "on", "the", "mat", ".", "EOT"]
    unit, left = 46.0, 126.0
    shapes = [text_at(left - 14, 40, "read", "end", QUIET)]
    for place, word in enumerate(words):
        shapes.append(box(left + place * unit, 20, unit, word, EOT if word == "EOT" else DIM))
    for row, (name, shift, colours) in enumerate((("inputs", 0, PALE), ("targets", 1, COLOURS[1]))):
        y = 74 + row * 44
        shapes.append(text_at(left - 14, y + 20, name, "end", QUIET))
        for place in range(8):
            gap = 0 if place < 4 else 14
            word = words[place + shift]
            shapes.append(box(left + place * unit + gap, y, unit, word, colours))
    for place in range(8):
        x = left + (place + 0.5) * unit + (0 if place < 4 else 14)
        shapes.append(f'<path d="M{x} 104 v14" stroke="{LINE}"/>')
    for half, name in enumerate(("sequence 1", "sequence 2")):
        shapes.append(text_at(left + (2 + 4 * half) * unit + 14 * half, 172, name, "middle", INK, 13))
    return drawing(
        186, "Nine tokens give two sequences of four inputs, whose targets are the tokens one place later", shapes
    )


def order_figure() -> str:
    """Draw three shards with their samples, and the order in which llm.c's rank 0 reads them."""
    counts = np.array([6, 4, 5])
    unit, shapes, x = 32.0, [], 20.0
    shapes.append(text_at(20, 24, "three shards, cut into samples", "start", QUIET, 13))
    for shard, count in enumerate(counts):
        for sample in range(count):
            shapes.append(box(x + sample * unit, 34, unit, str(sample), COLOURS[shard]))
        shapes.append(text_at(x + count * unit / 2, 82, f"shard {shard + 1}", "middle", INK, 13))
        x += count * unit + 18
    shapes.append(
        text_at(20, 118, "the order of one epoch: shards shuffled, samples shuffled in each", "start", QUIET, 13)
    )
    reader = VirtualRank(0, counts, shuffle=True)
    x, before = 20.0, None
    for number in range(counts.sum()):
        shard, sample = reader.locate(number)
        if before not in (None, shard):
            x += 18
        if before != shard:
            shapes.append(text_at(x + counts[shard] * unit / 2, 176, f"shard {shard + 1}", "middle", INK, 13))
        shapes.append(box(x, 128, unit, str(sample), COLOURS[shard]))
        x, before = x + unit, shard
    return drawing(190, "Three shards of numbered samples, and the shuffled order in which they are read", shapes)


def ranks_figure() -> str:
    """Draw the list of a step's sequences, and who takes which on one, two and four ranks."""
    n, unit, left = 16, 26.0, 122.0
    shapes = [text_at(left - 12, 40, "the step's list", "end", QUIET, 13)]
    for place in range(n):
        shapes.append(box(left + place * unit, 20, unit, str(place), DIM).replace('font-size="15"', 'font-size="12"'))
    for row, (world_size, micro_batch) in enumerate(((1, 8), (2, 4), (4, 2))):
        y = 76 + row * 52
        shapes.append(text_at(left - 12, y + 13, f"{world_size} rank" + "s" * (world_size > 1), "end", INK, 13))
        shapes.append(text_at(left - 12, y + 29, f"micro-batch {micro_batch}", "end", QUIET, 12))
        share = n // world_size
        for rank in range(world_size):
            for start in range(rank * share, (rank + 1) * share, micro_batch):
                label = f"rank {rank}" if micro_batch > 2 else f"{rank}"
                width = micro_batch * unit - 3
                shapes.append(box(left + start * unit, y, width, label, COLOURS[rank]).replace("␣", " "))
    return drawing(76 + 3 * 52 - 6, "Sixteen sequences of a step, shared by one, two or four ranks", shapes)


FIGURES = {
    "documents": documents_figure,
    "shard": shard_figure,
    "batch": batch_figure,
    "order": order_figure,
    "ranks": ranks_figure,
}
assert WIDTH == 560 and BOX == 30  # the coordinates above are for this size

if __name__ == "__main__":
    for name, figure in FIGURES.items():
        (Path(__file__).parent / f"data_{name}.svg").write_text(figure(), encoding="utf-8")
