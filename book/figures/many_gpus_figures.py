"""Draw the figures of chapter 10.

python book/figures/many_gpus_figures.py        # writes many_gpus_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

from drawing import DIM, GREEN, LINE, LIT, PALE, QUIET, RED, YELLOW, arrow, drawing, frame, matrix, text_at, timeline

N = 4  # ranks
SHARES = (PALE, YELLOW, RED, DIM)  # colours of the ranks' own numbers
Colours = tuple[str, str]


def chunks(x: float, y: float, labels: list[str], colours: list[Colours], width: float = 26) -> list[str]:
    """Return the chunks that a rank holds, side by side."""
    return [
        matrix(x + place * width, y, width, 26, label, colour, 12)
        for place, (label, colour) in enumerate(zip(labels, colours, strict=True))
    ]


def ring_figure() -> str:
    """Draw the first round of a reduce-scatter: each rank sends one chunk to its right neighbour."""
    shapes, unit = [], 136.0
    for rank in range(N):
        x = 14 + rank * unit
        sent = (rank - 1) % N
        shapes += [frame(x, 40, 118, 74), text_at(x + 59, 60, f"rank {rank}", "middle", QUIET, 13)]
        colours = [LIT if chunk == sent else GREEN if chunk == rank else DIM for chunk in range(N)]
        shapes += chunks(x + 7, 72, [str(chunk) for chunk in range(N)], colours)
        if rank < N - 1:
            shapes += [arrow(x + 119, 85, x + unit - 1, 85), text_at(x + 127, 78, str(sent), "middle", QUIET, 12)]
    path = f"M{14 + 3 * unit + 118:.0f} 85 H554 V22 H5 V85"
    shapes.append(arrow(5, 85, 14, 85))
    shapes.append(f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    shapes.append(text_at(280, 16, "chunk 2, from rank 3 back to rank 0", "middle", QUIET, 12))
    shapes.append(
        text_at(14, 140, "blue: sent in the first round; green: the chunk that is summed up here", "start", QUIET, 13)
    )
    label = "Four ranks in a ring; in the first round each sends another one of its four chunks to the right"
    return drawing(154, label, shapes)


def halves_figure() -> str:
    """Draw the chunks of four ranks before, between and after the halves of an all-reduce."""
    shapes = []
    titles = ("each has its own", "each has one sum", "each has all sums")
    for step, title in enumerate(titles):
        x = 46 + step * 188
        shapes.append(text_at(x + 52, 24, title, "middle", QUIET, 13))
        for rank in range(N):
            y = 36 + rank * 34
            if step == 0:
                shapes.append(text_at(x - 8, y + 18, f"{rank}", "end", QUIET, 13))
            full = [step == 2 or (step == 1 and chunk == rank) for chunk in range(N)]
            colours = [LIT if done else SHARES[rank] if step == 0 else DIM for done in full]
            labels = ["Σ" if done else "" if step else str(chunk) for chunk, done in enumerate(full)]
            shapes += chunks(x, y, labels, colours)
    for x, name in ((192, "reduce-scatter"), (380, "all-gather")):
        shapes += [arrow(x - 36, 104, x + 34, 104), text_at(x, 96, name.split("-")[0] + "-", "middle", QUIET, 11)]
        shapes.append(text_at(x, 120, name.split("-")[1], "middle", QUIET, 11))
    shapes.append(text_at(10, 188, "rows: ranks; columns: chunks; Σ: the sum over all ranks", "start", QUIET, 13))
    label = "An all-reduce in two halves: a reduce-scatter leaves each rank one sum, an all-gather brings all to all"
    return drawing(202, label, shapes)


def overlap_figure() -> str:
    """Draw a step's last micro-batch with all gradients sent at the end, and with buckets on their way meanwhile."""
    forward, layer, send, last = 66.0, 46.0, 26.0, 34.0
    computing = [(0.0, forward, "forward", PALE)]
    computing += [(forward + i * layer, layer - 2, f"layer {3 - i}", DIM) for i in range(4)]
    end = forward + 4 * layer
    computing.append((end, 34, "emb.", DIM))
    end += 36
    shapes = [text_at(14, 22, "all in one message when backward is over", "start", QUIET, 13)]
    shapes += timeline(32, "computing", computing)
    shapes += timeline(66, "sending", [(end, 4 * send + last, "all gradients", RED)])
    shapes.append(text_at(14, 126, "a bucket for each layer, on its way while backward goes on", "start", QUIET, 13))
    shapes += timeline(136, "computing", computing)
    sends = [(forward + (i + 1) * layer, send, f"{3 - i}", GREEN) for i in range(4)]
    shapes += timeline(170, "sending", [*sends, (end, last, "emb.", RED)])
    words = "green: hidden behind computing; red: the GPU waits. Time runs to the right"
    shapes.append(text_at(14, 224, words, "start", QUIET, 13))
    label = "Sent at the end, all gradients keep the GPU waiting; in buckets only the last of them does"
    return drawing(238, label, shapes)


def zero_figure() -> str:
    """Draw what four ranks hold without and with ZeRO-1, to scale."""
    unit, shapes = 12.0, []
    for row, (title, size) in enumerate((("-z 0", 12.0), ("-z 1", 3.0))):
        top = 30 + row * 132
        shapes.append(text_at(14, top - 8, title, "start", QUIET, 14))
        for rank in range(N):
            y = top + rank * 26
            shapes.append(text_at(66, y + 16, f"rank {rank}", "end", QUIET, 12))
            x = 76.0
            for width, name, colours in ((2, "weights", PALE), (4, "gradients", YELLOW), (size, "", LIT)):
                shapes.append(matrix(x, y, width * unit * 2.1, 22, name, colours, 11))
                x += width * unit * 2.1
            words = "master weights and both moments: all" if size > 3 else f"part {rank}"
            shapes.append(text_at(x - size * unit * 1.05, y + 15, words, "middle", LIT[1], 11))
    shapes.append(text_at(14, 284, "lengths are bytes: 2, 4 and 12 for a parameter", "start", QUIET, 13))
    label = "Without ZeRO-1 each of four ranks holds the whole state of the optimizer, with it a quarter"
    return drawing(298, label, shapes)


FIGURES = {"ring": ring_figure, "halves": halves_figure, "overlap": overlap_figure, "zero": zero_figure}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"many_gpus_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
