"""Each rule of a chapter's form finds what it is for, and nothing in a chapter that keeps to all."""

import copy

import nbformat
import pytest
from chapters import BOOK, load_script

rules = load_script(BOOK / "chapter_rules.py")
markdown = nbformat.v4.new_markdown_cell
PICTURE = "iVBORw0KGgo="


def code(source, *tags, text=""):
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}, outputs=outputs)


def exercise(count):
    return [
        markdown(f"**{count}.** Write one.\n\n[Solution](solutions.md#chapter-1-exercise-{count})"),
        code("def one(): ...\n\n\nexercises.check_one(one)", "exercise", text="✗ one: not yet\n"),
        code(
            "# It is one.\ndef one():\n    return 1\n\n\nexercises.check_one(one)",
            "solution",
            "hide-cell",
            text="✓ one",
        ),
    ]


def chapter():
    """Return the cells of the shortest chapter."""
    return [
        markdown("# 1. One\n\nYou have one."),
        markdown("**You will learn** one. **You need** nothing."),
        markdown("```{include} _parts/anywhere.md\n```"),
        code("from gpt2edu.show import setup\n\nsetup()", "nbval-ignore-output", text="Python"),
        markdown("![You are here](figures/you_are_here_model.svg)"),
        markdown("## Recap\n\n## Common mistakes\n\n## Exercises"),
        *(cell for count in (1, 2, 3, 4) for cell in exercise(count)),
        markdown("## References"),
    ]


def picture(n_bytes, alt):
    cell = code("plt.show()")
    data = {"image/png": PICTURE * (n_bytes * 4 // 3 // len(PICTURE))}
    cell.outputs = [nbformat.v4.new_output("display_data", data=data)]
    cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return cell


def error():
    cell = code("1 / 0")
    cell.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
    return cell


def test_a_chapter_that_keeps_to_all():
    assert rules.problems("01_one", chapter()) == []
    assert rules.problems("01_one", [*chapter()[:5], picture(1000, "A point"), *chapter()[5:]]) == []


BAD_CELLS = [
    (code("x = 1\n" * 26), "has 26 lines"),
    (code("x = 1", "gpus"), "unknown tag 'gpus'"),
    (error(), "is an error"),
    (code("print(1)"), "has no output"),
    (code("show_check('a', False)", text="✗ a\n"), "has failed"),
    (markdown("See /home/me/book."), "a path of one machine"),
    (code("name", text="/tmp/x"), "a path of one machine"),
    (picture(300_000, "A line"), "more than 200 KB"),
    (picture(1000, ""), "no alternative text"),
]


@pytest.mark.parametrize(("cell", "problem"), BAD_CELLS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_cell_is_named(cell, problem):
    cells = chapter()
    (found,) = rules.problems("01_one", [*cells[:5], cell, *cells[5:]])
    assert problem in found


def test_cells_that_are_mostly_long_and_unchecked_outputs_are_named():
    cells = chapter()
    (found,) = rules.problems("notes", [*cells[:5], *(code("x = 1\n" * 9) for _ in range(20)), *cells[5:]])
    assert "more than 8 lines" in found
    unchecked = [code("x", "nbval-ignore-output") for _ in range(2)]
    (found,) = rules.problems("notes", [*cells[:5], *unchecked, *cells[5:]])
    assert found.startswith("3 cells are tagged nbval-ignore-output")


def test_hardware_cells_need_no_output():
    cells = chapter()
    assert rules.problems("01_one", [*cells[:5], code("print(1)", "gpu"), *cells[5:]]) == []


def without(place):
    return lambda cells: cells.pop(place)


def set_source(place, source):
    return lambda cells: cells[place].update(source=source)


def set_output(place, text):
    return lambda cells: cells[place].outputs[0].update(text=text)


def swap(one, other):
    def swapped(cells):
        cells[one], cells[other] = cells[other], cells[one]

    return swapped


BREAKS = [
    (without(2), "there is no '{include} _parts/'"),
    (without(-1), "there is no '## References'"),
    (swap(1, 4), "the order is title, goals"),
    (set_source(5, "## Common mistakes\n\n## Recap\n\n## Exercises"), "the order is title, goals"),
    (set_source(4, "# Another\n\n![](figures/you_are_here_model.svg)"), "one title"),
    (set_source(3, "x = 1"), "the first code cell is the set-up"),
    (set_source(6, "**1.** Without a link."), "before starter 1"),
    (set_source(9, "**3.** [Solution](solutions.md#chapter-1-exercise-2)"), "before starter 2"),
    (set_source(8, "def one():\n    return 1"), "starter 1 is followed by its solution"),
    (set_output(7, "✓ one"), "starter 1 does not fail"),
    (set_output(8, "✓"), None),
    (set_output(8, "hm"), "solution 1 does not pass"),
    (without(8), "4 exercises and 3 solutions"),
]


@pytest.mark.parametrize(("broken", "problem"), BREAKS)
def test_a_chapter_out_of_order_is_named(broken, problem):
    cells = copy.deepcopy(chapter())
    broken(cells)
    found = rules.problems("01_one", cells)
    assert any(problem in sentence for sentence in found) if problem else found == []
