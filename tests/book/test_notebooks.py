"""Each chapter's file: the rules of its form, links that lead somewhere, and what `notebooks.py` does to it."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from chapters import BOOK, NOTEBOOKS, load_script, pages, read

notebooks = load_script(BOOK / "notebooks.py")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


@every_notebook
def test_form(path, capsys):
    assert notebooks.check_form(path, fix=False), capsys.readouterr().out


def test_solutions_are_those_of_the_chapters():
    assert notebooks.solutions.page(NOTEBOOKS) == notebooks.solutions.PAGE.read_text(encoding="utf-8"), "make format"


@every_notebook
def test_every_exercise_has_its_place_on_the_page_of_solutions(path):
    text = notebooks.solutions.PAGE.read_text(encoding="utf-8")
    exercises = notebooks.solutions.exercises(path)
    assert len(exercises) == (4 if path.stem[:2].isdigit() else 0)
    for exercise in exercises:
        assert f"### {exercise.name}\n" in text and exercise.code in text
        assert exercise.task.endswith(exercise.link)
        assert len(exercise.why.split()) >= 5 and exercise.why.endswith("."), exercise.why


@every_notebook
def test_links_and_figures_exist(path):
    text = prose(path)
    for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
        assert alternative.strip(), f"{target} has no alternative text"
        assert (BOOK / target).is_file(), target
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (BOOK / target).is_file(), target
        if target.endswith((".ipynb", ".md")):
            assert target.rsplit(".", 1)[0] in pages(), f"{target} is not in _toc.yml"
    for target in re.findall(r"\{include\}\s+(\S+)", text):
        assert (BOOK / target).is_file(), target


@every_notebook
def test_a_place_in_the_contents(path):
    assert path.stem in pages()


def test_you_are_here_figures_are_those_of_the_script():
    script = load_script(BOOK / "figures" / "you_are_here.py")
    for part in script.PARTS:
        stored = (BOOK / "figures" / f"you_are_here_{part}.svg").read_text(encoding="utf-8")
        assert stored == script.you_are_here(part), "run book/figures/you_are_here.py"


def test_execute_skips_cells_whose_hardware_is_missing(tmp_path, monkeypatch):
    new_cell = nbformat.v4.new_code_cell
    cells = [
        new_cell("from gpt2edu.show import show_check\nshow_check('sum', 1 + 1 == 2)"),
        new_cell("raise SystemExit", metadata={"tags": ["gpu"]}),
    ]
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(notebooks, "missing_hardware", lambda: {"gpu"})
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebooks.execute(path)
    first, second = read(path).cells
    assert (
        notebooks.chapter_rules.output_text(first) == "✓ sum\n"
    )  # the verdict is not shown once more as the cell's value
    assert second.outputs == []


def test_canonical_keeps_ids_and_drops_what_changes_from_run_to_run():
    cell = nbformat.v4.new_code_cell("a  \n", id="keep", execution_count=7)
    cell.metadata = nbformat.from_dict({"tags": ["b", "a"], "execution": {"iopub.execute_input": "2026"}})
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("x", "y")]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "mine", "display_name": "x"}})
    once = notebooks.canonical(notebook)
    (result,) = nbformat.reads(once, as_version=4).cells
    assert (result.id, result.execution_count, result.source) == ("keep", 1, "a")
    assert result.metadata == {"tags": ["a", "b"]}
    assert [output.text for output in result.outputs] == ["xy"]
    assert notebooks.canonical(nbformat.reads(once, as_version=4)) == once


@pytest.mark.parametrize(("allowed", "outcome"), [("0", "1 passed, 1 skipped"), ("1", "2 passed")])
def test_nbval_runs_a_tagged_cell_where_it_can(tmp_path, allowed, outcome):
    printed = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    cells = [
        nbformat.v4.new_code_cell("print(1)", outputs=printed, metadata={"tags": tags}) for tags in ([], ["network"])
    ]
    text = notebooks.canonical(nbformat.v4.new_notebook(cells=cells))
    (tmp_path / "a.ipynb").write_text(text, encoding="utf-8")
    shutil.copy(BOOK / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", tmp_path]
    environment = os.environ | {"GPT2EDU_NETWORK": allowed, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and outcome in done.stdout, done.stdout
