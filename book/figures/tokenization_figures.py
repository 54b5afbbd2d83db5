"""Draw the figures of chapter 1; token boundaries come from the package, not from hand.

python book/figures/tokenization_figures.py        # writes tokenization_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, INK, LIT, PALE, QUIET, WIDTH, box, drawing, text_at

from gpt2edu.bpe import BytePairEncoder, merge, split

TEXT = "low lower lowest slow"
NEW_WORD = "slowest"


def bytes_figure() -> str:
    """Draw four characters, their code points, and the one to four bytes of each."""
    text, left, unit, gap = "hé한🙂", 118, 38, 12
    shapes = [
        text_at(left - 14, y, name, "end", QUIET)
        for y, name in ((40, "character"), (88, "code point"), (136, "bytes (UTF-8)"))
    ]
    x = float(left)
    for character in text:
        data = character.encode()
        width = len(data) * unit
        shapes.append(box(x, 20, width, character, PALE))
        shapes.append(text_at(x + width / 2, 88, f"U+{ord(character):X}"))
        for place, byte in enumerate(data):
            shapes.append(box(x + place * unit, 116, unit, f"{byte:02X}"))
        x += width + gap
    return drawing(166, "The characters h, é, 한 and 🙂 take one, two, three and four bytes", shapes)


def merges_figure() -> str:
    """Draw the training text after each merge, the token made last in blue."""
    encoder = BytePairEncoder.train(TEXT, 10)
    words = [list(chunk.encode()) for chunk in split(TEXT)]
    left, unit, gap, row_height = 112, 17.5, 10, 48
    shapes = []
    for row in range(len(encoder.merges) + 1):
        y = 16 + row * row_height
        newest = 255 + row
        if row:
            pair = encoder.merges[row - 1]
            words = [merge(word, pair, newest) for word in words]
            names = " + ".join(encoder.vocab[part].decode().replace(" ", "␣") for part in pair)
            shapes.append(text_at(14, y + 14, f"{newest}", "start", INK, 14))
            shapes.append(text_at(14, y + 30, names, "start", QUIET, 13))
        else:
            shapes.append(text_at(14, y + 20, "bytes", "start"))
        x = float(left)
        for word in words:
            for token in word:
                width = len(encoder.vocab[token]) * unit
                colours = LIT if row and token == newest else PALE if token > 255 else DIM
                shapes.append(box(x, y, width, encoder.vocab[token].decode(), colours))
                x += width
            x += gap
        shapes.append(text_at(WIDTH - 14, y + 20, f"{sum(map(len, words))}", "end", QUIET))
    height = 16 + (len(encoder.merges) + 1) * row_height
    shapes.append(text_at(WIDTH - 14, height + 6, "tokens", "end", QUIET, 12))
    return drawing(height + 16, f"The text “{TEXT}” as bytes and after each of four merges", shapes)


def encode_figure() -> str:
    """Draw how a word that training never saw is encoded, one merge a row."""
    encoder = BytePairEncoder.train(TEXT, 10)
    ids = list(NEW_WORD.encode())
    rows = [("bytes", ids, -1)]
    for new_id, pair in enumerate(encoder.merges, start=256):
        merged = merge(ids, pair, new_id)
        if merged != ids:
            rows.append((f"merge {new_id}", merged, new_id))
        ids = merged
    left, unit, row_height = 150, 46, 50
    shapes = []
    for row, (name, tokens, newest) in enumerate(rows):
        y = 16 + row * row_height
        shapes.append(text_at(left - 20, y + 20, name, "end", QUIET))
        x = float(left)
        for token in tokens:
            width = len(encoder.vocab[token]) * unit
            colours = LIT if token == newest else PALE if token > 255 else DIM
            shapes.append(box(x, y, width, encoder.vocab[token].decode(), colours))
            if row == len(rows) - 1:
                shapes.append(text_at(x + width / 2, y + 50, str(token)))
            x += width
    y = 16 + len(rows) * row_height
    shapes.append(text_at(left - 20, y, "ids", "end", QUIET))
    return drawing(y + 16, f"Encoding “{NEW_WORD}”: bytes, then merge 256, then merge 257, then the ids", shapes)


def vocabulary_figure() -> str:
    """Draw how GPT-2's 50,257 ids are laid out."""
    parts = (
        (20, 92, "256 bytes", "0", "255", DIM),
        (112, 338, "50,000 merges", "256", "50,255", PALE),
        (450, 90, "end of text", "50,256", "", LIT),
    )
    shapes = []
    for x, width, name, first, last, colours in parts:
        shapes.append(box(x, 22, width, name, colours))
        shapes.append(text_at(x + (2 if last else width / 2), 72, first, "start" if last else "middle", QUIET, 13))
        shapes.append(text_at(x + width - 2, 72, last, "end", QUIET, 13))
    body = [shape.replace("␣", " ").replace("ui-monospace, monospace", "system-ui, sans-serif") for shape in shapes]
    return drawing(86, "Ids 0 to 255 are bytes, 256 to 50,255 are merges, 50,256 is the end-of-text token", body)


FIGURES = {"bytes": bytes_figure, "merges": merges_figure, "encode": encode_figure, "vocabulary": vocabulary_figure}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"tokenization_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
