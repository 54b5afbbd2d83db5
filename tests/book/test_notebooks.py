"""Each chapter's file: one form, short cells, outputs that are the same everywhere, links that lead somewhere."""

import re
import statistics

import nbformat
import pytest
import yaml
from chapters import BOOK, NOTEBOOKS, ROOT, load_script, pages, read

SECTIONS = ("## Recap", "## Common mistakes", "## Exercises", "## References")
LONGEST_CELL, MEDIAN_CELL = 25, 8
LARGEST_IMAGE = 200_000  # bytes
TAGS = {"nbval-ignore-output", "gpu", "multi-gpu", "network", "exercise", "solution", "hide-cell", "hide-input"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|work|Users|opt|mnt|data)/")
PRINTS = re.compile(r"\bprint\(|\bshow_\w+\(|\bcheck_\w+\(|plt\.show\(")

notebooks = load_script(BOOK / "notebooks.py")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"(?!00)\d\d_", path.name)]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def tags(cell):
    return set(cell.metadata.get("tags", []))


def output_text(cell):
    """Return what a cell printed and the text forms of what it showed."""
    texts = [output.get("text", "") for output in cell.outputs]
    texts += [str(value) for output in cell.outputs for value in output.get("data", {}).values()]
    return "\n".join(texts)


@every_notebook
def test_canonical(path):
    assert notebooks.canonical(read(path)) == path.read_text(encoding="utf-8"), "run `make format`"


@every_notebook
def test_cells_are_short(path):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert max(lengths, default=0) <= LONGEST_CELL
    assert statistics.median(lengths or [0]) <= MEDIAN_CELL


@every_notebook
def test_outputs_are_stored_and_none_is_an_error(path):
    for cell in code_cells(path):
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
        assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.source
        if PRINTS.search(cell.source) and not tags(cell) & {"gpu", "multi-gpu", "network"}:
            assert cell.outputs, f"no output: {cell.source}"


@every_notebook
def test_tags_are_known_and_few_outputs_go_unchecked(path):
    cells = code_cells(path)
    for cell in cells:
        assert tags(cell) <= TAGS
    n_ignored = sum("nbval-ignore-output" in tags(cell) for cell in cells)
    assert n_ignored <= max(1, 0.2 * len(cells))


@every_notebook
def test_no_absolute_paths(path):
    found = [cell.source + output_text(cell) if cell.cell_type == "code" else cell.source for cell in read(path).cells]
    assert not [text for text in found if ABSOLUTE_PATH.search(text)]


@every_notebook
def test_images_are_small_and_described(path):
    for cell in code_cells(path):
        images = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        assert all(len(image) * 3 / 4 <= LARGEST_IMAGE for image in images), cell.source
        if images:
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), f"no alternative text: {cell.source}"


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
def test_one_title_and_a_place_in_the_contents(path):
    titles = [line for line in prose(path).splitlines() if line.startswith("# ")]
    assert len(titles) == 1 and read(path).cells[0].source.startswith(titles[0])
    assert path.stem in pages()


@every_chapter
def test_anatomy(path):
    text = prose(path)
    number = int(path.name[:2])
    assert re.match(rf"# {number}\. ", text)
    assert "You will learn" in text and "You need" in text
    assert re.search(r"\{include\} _parts/\w+\.md", text)
    assert "figures/you_are_here_" in text
    places = [text.find(section) for section in SECTIONS]
    assert -1 not in places and places == sorted(places), dict(zip(SECTIONS, places, strict=True))


@every_chapter
def test_exercises_fail_on_the_starter_and_pass_on_the_solution(path):
    cells = code_cells(path)
    starters = [cell for cell in cells if "exercise" in tags(cell)]
    solutions = [cell for cell in cells if "solution" in tags(cell)]
    assert len(starters) == len(solutions) >= 3
    for starter, solution in zip(starters, solutions, strict=True):
        assert "✗" in output_text(starter) and "✓" not in output_text(starter)
        assert "✓" in output_text(solution) and "✗" not in output_text(solution)
        assert "hide-cell" in tags(solution)


@every_chapter
def test_verdicts_outside_exercises_are_good(path):
    for cell in code_cells(path):
        if not tags(cell) & {"exercise"}:
            assert "✗" not in output_text(cell), cell.source


def test_you_are_here_figures_are_those_of_the_script():
    script = load_script(BOOK / "figures" / "you_are_here.py")
    for part in script.PARTS:
        stored = (BOOK / "figures" / f"you_are_here_{part}.svg").read_text(encoding="utf-8")
        assert stored == script.you_are_here(part), "run book/figures/you_are_here.py"


def test_buttons_only_where_a_repository_is_named():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    if "launch_buttons" in config or config["html"]["use_repository_button"] or config["html"]["use_edit_page_button"]:
        assert "OWNER" not in config["repository"]["url"]


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
    assert output_text(first) == "✓ sum\n"  # the verdict is not shown once more as the cell's value
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
