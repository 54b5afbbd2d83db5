"""Draw the figures of chapter 4; what a warp touches comes from the simulator's trace, not from hand.

python book/figures/kernels_figures.py        # writes kernels_<name>.svg
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from drawing import (
    BOX,
    DIM,
    GREEN,
    INK,
    LINE,
    LIT,
    PALE,
    QUIET,
    RED,
    WIDTH,
    YELLOW,
    arrow,
    box,
    drawing,
    frame,
    named_box,
    text_at,
)

from kernels.lessons.first_kernels import copy_runs_kernel, copy_strided_kernel
from kernels.simulator.trace import WarpStep, tracing, warp_steps


def gpu_figure() -> str:
    """Draw the memories of a GPU, the near and small ones above the far and large one."""
    shapes = []
    for column, name in enumerate(("SM 0", "SM 1", "SM 131")):
        x = (16, 190, 384)[column]
        shapes += [frame(x, 14, 160, 132), text_at(x + 80, 34, name, "middle", INK, 14)]
        shapes += [named_box(x + 10, 44, 140, "threads", LIT, 13)]
        shapes += [named_box(x + 10, 78, 140, "registers 256 KiB", PALE, 13)]
        shapes += [named_box(x + 10, 110, 140, "shared 228 KiB", GREEN, 13)]
        shapes += [f'<path d="M{x + 80} 146 V164" stroke="{LINE}" stroke-width="2"/>']
    shapes.append(text_at(367, 84, "…", "middle", QUIET, 20))
    shapes.append(named_box(16, 164, WIDTH - 32, "L2 cache, 50 MB, shared by all", YELLOW))
    shapes.append(f'<path d="M280 194 V212" stroke="{LINE}" stroke-width="2"/>')
    shapes.append(text_at(292, 208, "about 3,000 GB/s", "start", QUIET, 13))
    shapes.append(named_box(16, 212, WIDTH - 32, "global memory, 80 GB: all arrays live here", RED))
    return drawing(
        256, "132 multiprocessors with registers and shared memory above one L2 cache above the global memory", shapes
    )


def threads_figure() -> str:
    """Draw ten elements, and the three blocks of four threads that own them."""
    left, unit, gap = 16, 41, 14
    shapes = [text_at(left, 24, "grid of 3 blocks", "start", QUIET, 13)]
    for block in range(3):
        x0 = left + block * (4 * unit + gap)
        shapes += [frame(x0 - 4, 34, 4 * unit + 8, 70), text_at(x0 + 2 * unit, 52, f"block {block}", "middle", INK, 13)]
        for t in range(4):
            i = 4 * block + t
            x = x0 + t * unit
            shapes.append(box(x, 62, unit, str(t), LIT if i < 10 else DIM))
            if i < 10:
                shapes += [arrow(x + unit / 2, 108, x + unit / 2, 132), box(x, 136, unit, str(i), PALE)]
            else:
                shapes.append(text_at(x + unit / 2, 156, "×", "middle", "#b91c1c", 18))
    shapes.append(
        text_at(
            left, 186, "elements 0 to 9: i = block · 4 + thread; two threads have nothing to do", "start", QUIET, 13
        )
    )
    return drawing(200, "Threads 0 to 3 of blocks 0, 1 and 2 own the elements 0 to 9; two threads own none", shapes)


def first_load(kernel, *arguments: object) -> WarpStep:
    """Return the first load of a warp that copies 1,024 elements."""
    inp_N = np.zeros(1024, np.float32)
    with tracing() as accesses:
        kernel[1, 32](inp_N.copy(), inp_N, *arguments)
    return warp_steps(accesses)[0]


def coalescing_figure() -> str:
    """Draw the first load of a warp on the memory's sectors, for neighbours and for runs of 32."""
    cell, left = 16.0, 16.0
    shapes = []
    panels = (
        ("neighbours", first_load(copy_strided_kernel), range(4)),
        ("a run of 32 elements for each lane", first_load(copy_runs_kernel, 32), range(0, 16, 4)),
    )
    for row, (name, step, sectors) in enumerate(panels):
        y = 20 + row * 112
        summary = f"{name}: {step.n_bytes} bytes used, {step.n_sectors} sectors moved"
        shapes.append(text_at(left, y + 8, summary, "start", INK, 13))
        lane_of = {first // step.itemsize: lane for lane, (first, _) in step.lanes.items()}
        for place, sector in enumerate(sectors):
            x0 = left + place * (8 * cell + 5)
            for j in range(8):
                i = 8 * sector + j
                colours = LIT if i in lane_of else RED
                label = str(lane_of.get(i, ""))
                shape = box(x0 + j * cell, y + 20, cell, label, colours).replace('font-size="15"', 'font-size="9"')
                shapes.append(shape)
            shapes.append(text_at(x0 + 4 * cell, y + 66, f"sector {sector}", "middle", QUIET, 12))
    note = "blue: asked for by the lane of this number; red: moved for nothing; below, 4 of the 32 sectors"
    shapes.append(text_at(left, 224, note, "start", QUIET, 11))
    return drawing(236, "A load of neighbours moves 4 full sectors, a load with a run for each lane 32 sectors", shapes)


def packs_figure() -> str:
    """Draw 20 elements as two whole packs of eight and the first half of a third."""
    unit, left, gap = 21.5, 16.0, 8
    shapes = []
    for pack in range(3):
        x0 = left + pack * (8 * unit + gap)
        shapes.append(text_at(x0, 24, f"pack {pack}, thread {pack}", "start", INK, 13))
        for j in range(8):
            i = 8 * pack + j
            label = str(i) if i < 20 else ""
            colours = PALE if pack < 2 else YELLOW if i < 20 else ("#ffffff", INK)
            shapes.append(box(x0 + j * unit, 34, unit, label, colours).replace('font-size="15"', 'font-size="11"'))
        text = "one access of 128 bits" if pack < 2 else "element by element"
        end = 8 * unit if pack < 2 else 4 * unit
        shapes.append(f'<path d="M{x0:.1f} 70 v6 h{end:.1f} v-6" fill="none" stroke="{LINE}"/>')
        shapes.append(text_at(x0 + (end / 2 if pack < 2 else 64), 94, text, "middle", QUIET, 12))
    return drawing(
        108, "20 elements: two packs of eight, each moved at once, and four elements moved one by one", shapes
    )


def barrier_figure() -> str:
    """Draw how four threads reverse four elements through shared memory, with the barrier between the halves."""
    unit, left = 60, 190
    values = ("a", "b", "c", "d")
    shapes = []
    rows = ((16, "inp_N", values, DIM), (76, "shared memory", values, GREEN), (176, "out_N", values[::-1], LIT))
    for y, name, labels, colours in rows:
        shapes.append(text_at(left - 16, y + 20, name, "end", QUIET, 13))
        shapes += [box(left + j * unit, y, unit, label, colours) for j, label in enumerate(labels)]
    for j in range(4):
        x = left + (j + 0.5) * unit
        shapes.append(arrow(x, 48, x, 74))
        other = left + (3.5 - j) * unit
        shapes.append(f'<path d="M{x:.0f} 106 L{other:.0f} 176" stroke="{LINE}" stroke-width="1.5"/>')
    shapes.append(
        f'<path d="M40 122 H{left + 4 * unit + 60}" stroke="#b91c1c" stroke-width="2" stroke-dasharray="7 4"/>'
    )
    shapes.append(text_at(44, 116, "cuda.syncthreads()", "start", "#b91c1c", 13))
    return drawing(
        218, "Four threads put a, b, c, d into shared memory, wait for each other, and take out d, c, b, a", shapes
    )


def places_figure() -> str:
    """Draw the three places where one source runs."""
    shapes = [named_box(16, 82, 120, "kernel source", LIT)]
    places = (
        (16, "GPU", "compiled when it is launched", PALE),
        (82, "simulator", "in Python, each access checked", GREEN),
        (148, "PTX", "compiled without a GPU, registers counted", YELLOW),
    )
    for y, name, what, colours in places:
        middle = y + BOX / 2
        shapes.append(f'<path d="M136 97 L166 {middle}" stroke="{LINE}" stroke-width="1.5"/>')
        shapes += [named_box(166, y, 90, name, colours), text_at(266, middle + 5, what, "start", QUIET, 12)]
    return drawing(194, "The kernel source runs on a GPU, runs in the simulator, and is compiled to PTX", shapes)


FIGURES = {
    "gpu": gpu_figure,
    "threads": threads_figure,
    "coalescing": coalescing_figure,
    "packs": packs_figure,
    "barrier": barrier_figure,
    "places": places_figure,
}


def main() -> None:
    """Write the figures beside this file."""
    for name, draw in FIGURES.items():
        Path(__file__).with_name(f"kernels_{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
