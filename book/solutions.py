"""The page of solutions, made from the chapters: each exercise, why its solution is right, and the solution.

An exercise is three cells of a chapter: prose that ends in a link to this page, the starter, and the solution. The
solution begins with a comment that says why, and ends with its check. `notebooks.py format --fix` writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nbformat

BOOK = Path(__file__).resolve().parent
PAGE = BOOK / "solutions.md"
HEAD = """# Solutions

The exercises of all chapters, each with one way to solve it and a sentence of why. In its chapter every solution lies
folded below the exercise and is checked by the same cells as yours. This page is made from the chapters by
`make format`; mend a solution there.
"""


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter."""

    name: str  # `Chapter 5, exercise 1`; its link is the same in small letters with dashes
    task: str
    why: str
    code: str

    @property
    def link(self) -> str:
        """The link from the chapter to this page."""
        return f"[Solution](solutions.md#{self.name.lower().replace(',', '').replace(' ', '-')})"


def exercises(path: Path) -> list[Exercise]:
    """Return a chapter's exercises in order, from its cells tagged `exercise` and `solution`."""
    number = int(path.name[:2])
    chapter = f"Chapter {number}" if number else "Introduction"
    cells = nbformat.read(path, as_version=4).cells
    tags = [set(cell.metadata.get("tags", [])) for cell in cells]
    starters = [place for place, tag in enumerate(tags) if "exercise" in tag]
    solutions = [cells[place].source for place, tag in enumerate(tags) if "solution" in tag]
    found = []
    pairs = zip(starters, solutions, strict=False)  # where one is missing, `chapter_rules` says so
    for count, (place, solution) in enumerate(pairs, start=1):
        task = cells[place - 1].source
        why, code = _why_and_code(solution)
        found.append(Exercise(f"{chapter}, exercise {count}", task[task.find(f"**{count}.") :], why, code))
    return found


def _why_and_code(solution: str) -> tuple[str, str]:
    """Return the leading comment as prose, and the code without its check."""
    lines = solution.split("\n")
    n_comments = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    why = " ".join(line.lstrip("# ") for line in lines[:n_comments])
    code = [line for line in lines[n_comments:] if not line.startswith("exercises.check_")]
    return why, "\n".join(code).strip("\n")


def page(paths: list[Path]) -> str:
    """Return the text of the page for these chapters."""
    parts = [HEAD]
    for path in paths:
        if not (found := exercises(path)):
            continue
        title = nbformat.read(path, as_version=4).cells[0].source.split("\n")[0].removeprefix("# ")
        parts.append(f"## {title}\n\n[To the exercises]({path.name}#exercises)\n")
        for exercise in found:
            task = exercise.task.removesuffix(exercise.link).rstrip()
            # a directive, which Ruff leaves as it is: lines are as short as in the chapter
            code = f"```{{code-block}} python\n{exercise.code}\n```"
            parts.append(f"### {exercise.name}\n\n{task}\n\n{code}\n\n{exercise.why}\n")
    return "\n".join(parts)
