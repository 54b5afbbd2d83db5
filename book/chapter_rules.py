"""What a chapter must keep to; `notebooks.py format` names what does not, and `--fix` mends what can be mended.

Each rule takes the cells of a notebook and gives sentences about what is wrong. The rules of a chapter's order are for
numbered chapters; those of cells are for every notebook.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Cells = list[Any]

LONGEST_CELL, MEDIAN_CELL = 25, 8  # lines
LARGEST_IMAGE = 200_000  # bytes
MOST_UNCHECKED = 0.2  # of a chapter's code cells
N_EXERCISES = 4
HARDWARE = {"gpu", "multi-gpu", "network"}
TAGS = HARDWARE | {"nbval-ignore-output", "exercise", "solution", "hide-cell", "hide-input", "colab"}
SECTIONS = ("## Recap", "## Common mistakes", "## Exercises", "## References")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|work|Users|opt|mnt|data)/")
PRINTS = re.compile(r"\bprint\(|\bshow_\w+\(|\bcheck_\w+\(|plt\.show\(")


def problems(name: str, cells: Cells) -> list[str]:
    """Return what is wrong with a notebook of this name; empty where all is well."""
    found = [*_lengths(cells), *_tags(cells), *_outputs(cells), *_paths(cells), *_images(cells)]
    if re.match(r"\d\d_", Path(name).name):
        found += [*_order(cells), *_exercises(cells)]
    return found


def tags(cell: Any) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


def output_text(cell: Any) -> str:
    """Return what a cell printed and the text forms of what it showed."""
    texts = [output.get("text", "") for output in cell.outputs]
    texts += [str(value) for output in cell.outputs for value in output.get("data", {}).values()]
    return "\n".join(texts)


def code_cells(cells: Cells) -> Cells:
    """Return the code cells."""
    return [cell for cell in cells if cell.cell_type == "code"]


def _first_line(cell: Any) -> str:
    return repr(cell.source.split("\n")[0])


# ---- cells ---------------------------------------------------------------------------------------------------------


def _lengths(cells: Cells) -> Iterator[str]:
    code = code_cells(cells)
    lengths = [len(cell.source.splitlines()) for cell in code]
    for cell, length in zip(code, lengths, strict=True):
        if length > LONGEST_CELL:
            yield f"the cell {_first_line(cell)} has {length} lines, at most {LONGEST_CELL} are read with pleasure"
    if lengths and statistics.median(lengths) > MEDIAN_CELL:
        yield f"half of the code cells have more than {MEDIAN_CELL} lines"


def _tags(cells: Cells) -> Iterator[str]:
    code = code_cells(cells)
    for cell in code:
        if unknown := tags(cell) - TAGS:
            yield f"the cell {_first_line(cell)} has the unknown tag {sorted(unknown)[0]!r}"
    unchecked = sum("nbval-ignore-output" in tags(cell) for cell in code)
    if unchecked > max(1, MOST_UNCHECKED * len(code)):
        yield f"{unchecked} cells are tagged nbval-ignore-output: then nobody checks what they print"


def _outputs(cells: Cells) -> Iterator[str]:
    for cell in code_cells(cells):
        if any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs):
            yield f"the output of {_first_line(cell)} is an error or a warning"
        if PRINTS.search(cell.source) and not cell.outputs and not tags(cell) & HARDWARE:
            yield f"the cell {_first_line(cell)} has no output: run it and store what it prints"
        if "✗" in output_text(cell) and "exercise" not in tags(cell):
            yield f"a check of {_first_line(cell)} has failed"


def _paths(cells: Cells) -> Iterator[str]:
    for cell in cells:
        texts = [cell.source] if "colab" not in tags(cell) else []  # the paths of Colab are those of a machine
        texts += [output_text(cell)] if cell.cell_type == "code" else []
        if found := ABSOLUTE_PATH.search("\n".join(texts)):
            yield f"the cell {_first_line(cell)} holds a path of one machine, {found[0]}..."


def _images(cells: Cells) -> Iterator[str]:
    for cell in code_cells(cells):
        images = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        if any(len(image) * 3 / 4 > LARGEST_IMAGE for image in images):
            yield f"the image of {_first_line(cell)} has more than {LARGEST_IMAGE // 1000} KB: lower its resolution"
        if images and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
            yield f"the image of {_first_line(cell)} has no alternative text"


# ---- chapters ------------------------------------------------------------------------------------------------------


def _order(cells: Cells) -> Iterator[str]:
    """The title, the goals, the hardware notice, the set-up, the picture of where one is; at the end the sections."""
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    parts = ("# ", "**You will learn**", "**You need**", "{include} _parts/", "figures/you_are_here_", *SECTIONS)
    places = [text.find(part) for part in parts]
    for part, place in zip(parts, places, strict=True):
        if place < 0:
            yield f"there is no {part!r}"
    if -1 not in places and places != sorted(places):
        yield "the order is title, goals, needs, hardware, where this sits, ..., " + ", ".join(SECTIONS)
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    if len(titles) != 1 or not text.startswith("# "):
        yield "a chapter has one title, on its first line"
    setup = next((cell for cell in code_cells(cells) if "colab" not in tags(cell)), None)
    if setup is None or "nbval-ignore-output" not in tags(setup) or not setup.source.endswith("setup()"):
        yield "the first code cell is the set-up: imports, `setup()`, tagged nbval-ignore-output"


def _exercises(cells: Cells) -> Iterator[str]:
    """Task, starter and solution follow each other; the starter's check says no, the solution's says yes."""
    starters = [place for place, cell in enumerate(cells) if "exercise" in tags(cell)]
    n_solutions = sum("solution" in tags(cell) for cell in cells)
    if len(starters) != N_EXERCISES or n_solutions != N_EXERCISES:
        yield f"there are {len(starters)} exercises and {n_solutions} solutions, not {N_EXERCISES} of each"
    for count, place in enumerate(starters, start=1):
        task, starter, solution = cells[place - 1], cells[place], cells[min(place + 1, len(cells) - 1)]
        if task.cell_type != "markdown" or f"**{count}." not in task.source or "](solutions.md#" not in task.source:
            yield f"before starter {count} stands its task, from **{count}. to the link to its solution"
        if not {"solution", "hide-cell"} <= tags(solution) or not solution.source.startswith("# "):
            yield f"starter {count} is followed by its solution, tagged hide-cell, whose first line is a comment on why"
        elif "✓" not in output_text(solution):
            yield f"solution {count} does not pass its check"
        if "✗" not in output_text(starter) or "✓" in output_text(starter):
            yield f"starter {count} does not fail its check"
