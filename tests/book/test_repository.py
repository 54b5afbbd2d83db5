"""The repository's address has one place, `_config.yml`: what appears where one stands there, here a made-up one."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from chapters import BOOK, HTML, NOTEBOOKS, ROOT, load_script, read

URL = "https://github.com/made-up/gpt2edu"
colab = load_script(BOOK / "colab.py")
notebooks = load_script(BOOK / "notebooks.py")


@pytest.fixture
def config(tmp_path):
    """Return a copy of `_config.yml` in which a repository is named."""
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert text.count('\n  url: ""\n') == 1, "the repository is named in one place, empty or not"
    path = tmp_path / "_config.yml"
    path.write_text(text.replace('\n  url: ""\n', f"\n  url: {URL}\n"), encoding="utf-8")
    return path


@pytest.fixture
def named(config, monkeypatch):
    """Let the notebooks be formatted as with that `_config.yml`."""
    source = colab.install_source(config)
    monkeypatch.setattr(notebooks.colab, "install_source", lambda: source)
    return source


def test_each_chapter_gets_one_cell_that_keeps_to_the_rules(named):
    for path in NOTEBOOKS:
        once = notebooks.canonical(read(path))
        cells = nbformat.reads(once, as_version=4).cells
        first = next(cell for cell in cells if cell.cell_type == "code")
        assert first.source == named and first.metadata.tags == ["colab", "hide-cell"]
        assert notebooks.chapter_rules.problems(path.stem, cells) == []
        assert notebooks.canonical(nbformat.reads(once, as_version=4)) == once


def test_the_cell_goes_when_the_address_goes(named, monkeypatch):
    path = NOTEBOOKS[0]
    with_cell = notebooks.canonical(read(path))
    monkeypatch.setattr(notebooks.colab, "install_source", lambda: None)
    without = notebooks.canonical(nbformat.reads(with_cell, as_version=4))
    assert without == notebooks.canonical(read(path)) and URL not in without


def test_the_cell_fetches_that_repository_and_keeps_colabs_torch(named):
    assert f"--branch main {URL} " in named
    assert '"torch=={torch.__version__}"' in named and '"numpy=={numpy.__version__}"' in named


def test_elsewhere_the_cell_does_nothing(named, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")]), path)
    notebooks.execute(path)  # gives it its cell
    notebooks.execute(path)
    first, second = read(path).cells
    assert first.source == named and first.outputs == []
    assert second.outputs[0].text == "1\n"


def test_buttons_lead_to_the_repository_and_to_colab(config, tmp_path):
    book = tmp_path / "book"
    (book / "vendor").mkdir(parents=True)
    shutil.copy(BOOK / "references.bib", book)
    shutil.copytree(BOOK / "_extensions", book / "_extensions")
    cells = [nbformat.v4.new_markdown_cell("# One page"), nbformat.v4.new_code_cell("print(1)")]
    metadata = {"kernelspec": notebooks.KERNELSPEC}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), book / "a.ipynb")
    toc = tmp_path / "_toc.yml"
    toc.write_text(yaml.safe_dump({"format": "jb-book", "root": "a"}), encoding="utf-8")
    builder = [Path(sys.executable).parent / "jupyter-book", "build", book, "--config", config, "--toc", toc, "-q"]
    subprocess.run([*builder, "--path-output", tmp_path], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    page = (tmp_path / "_build" / "html" / "a.html").read_text(encoding="utf-8")
    assert "https://colab.research.google.com/github/made-up/gpt2edu/blob/main/book/a.ipynb" in page
    assert f"{URL}/edit/main/book/a.ipynb" in page
    assert f'href="{URL}"' in page
    assert 'href="_sources/a.ipynb"' in page


def test_pages_are_built_as_here_and_published():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands[-1] == "python tools/run_checks.py book"
    wanted = subprocess.run(commands[0].replace("pip install", "echo"), shell=True, cwd=ROOT, capture_output=True)
    assert wanted.stdout.decode().startswith("jupyter-book==1.")
    assert ROOT / steps[-1]["with"]["path"] == HTML
    assert workflow["jobs"]["publish"]["needs"] == "build"
