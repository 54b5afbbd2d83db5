"""Run the chapters and keep their files canonical.

    python book/notebooks.py execute 01_tokenization     # run all cells, store the outputs, format
    python book/notebooks.py format                      # name what is not as it should be, exit 1
    python book/notebooks.py format --fix                # mend what a program can mend

Files are canonical: one JSON form (sorted keys, one space, newline at the end), cell ids that stay as they are, the
same kernelspec in every file, no execution timestamps, and only the cell metadata that the book uses. So a run that
changes nothing changes no byte. `--fix` brings them into this form, with the cell for Colab where `_config.yml` names a
repository, and writes the page of solutions. What a chapter must keep to besides is in `chapter_rules.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chapter_rules
import colab
import nbformat
import solutions
from nbclient import NotebookClient

from gpt2edu.show import missing_hardware

BOOK = Path(__file__).resolve().parent
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "jupyter", "mystnb")


class ChapterClient(NotebookClient):
    """A notebook runner that leaves the cells alone whose hardware is missing."""

    missing: set[str] = set()

    async def async_execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        """Run one cell, unless its tags name hardware that is not here."""
        if self.missing & set(cell.metadata.get("tags", [])):
            return cell
        return await super().async_execute_cell(cell, cell_index, *args, **kwargs)


def execute(path: Path) -> None:
    """Run a notebook from `book/` and store the outputs; the first cell that raises stops it, nothing is written."""
    notebook = nbformat.read(path, as_version=4)
    missing = missing_hardware()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "gpu" in missing:
        os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
    client = ChapterClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(BOOK)}})
    client.missing = missing
    client.execute()
    path.write_text(canonical(notebook), encoding="utf-8")


def canonical(notebook: nbformat.NotebookNode) -> str:
    """Return the one text that this notebook is stored as."""
    colab.place_install_cell(notebook, colab.install_source())
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    n_executed = 0
    seen: set[str] = set()
    for cell in notebook.cells:
        cell.id = _stable_id(cell, seen)
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata})
        if "tags" in cell.metadata:
            cell.metadata["tags"] = sorted(set(cell.metadata["tags"]))
        if cell.cell_type == "code":
            n_executed += 1
            cell.execution_count = n_executed
            cell.outputs = _plain_outputs(cell.outputs, n_executed)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def _stable_id(cell: Any, seen: set[str]) -> str:
    """Keep a cell's id; a cell without one, or with one that is taken, gets a hash of its text."""
    identity = cell.get("id", "")
    salt = 0
    while not identity or identity in seen:
        identity = hashlib.sha256(f"{salt}{cell.source}".encode()).hexdigest()[:8]
        salt += 1
    seen.add(identity)
    return identity


def _plain_outputs(outputs: list[Any], execution_count: int) -> list[Any]:
    """Join neighbouring pieces of one stream, and drop what differs from run to run."""
    plain: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and plain and plain[-1].get("name") == output.name:
            plain[-1].text += output.text
            continue
        if output.output_type in ("execute_result", "display_data"):
            output.metadata = nbformat.from_dict({})
        if output.output_type == "execute_result":
            output.execution_count = execution_count
        plain.append(output)
    return plain


def check_form(path: Path, fix: bool) -> bool:
    """Print what is wrong with a notebook, with `fix` after mending what can be mended; return whether all is well."""
    notebook = nbformat.read(path, as_version=4)
    text = canonical(notebook)
    found = chapter_rules.problems(path.stem, notebook.cells)
    if not _is_stored(path, text, fix):
        found.append("not canonical, run `make format`")
    for problem in found:
        print(f"{path.name}: {problem}")
    return not found


def check_solutions(fix: bool) -> bool:
    """The same for the page of solutions."""
    stored = _is_stored(solutions.PAGE, solutions.page(sorted(BOOK.glob("*.ipynb"))), fix)
    if not stored:
        print(f"{solutions.PAGE.name}: not that of the chapters, run `make format`")
    return stored


def _is_stored(path: Path, text: str, fix: bool) -> bool:
    """Return whether a file holds this text; with `fix` make it so."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return True
    if fix:
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: rewritten")
    return fix


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("action", choices=("execute", "format"))
    parser.add_argument("names", nargs="*", help="chapters such as 01_tokenization; all when none is given")
    parser.add_argument("--fix", action="store_true", help="format: mend what can be mended")
    arguments = parser.parse_args(argv)
    paths = [BOOK / f"{Path(name).stem}.ipynb" for name in arguments.names] or sorted(BOOK.glob("*.ipynb"))
    for path in paths:
        if not path.exists():
            parser.error(f"there is no chapter {path.name} in {BOOK.name}/")
    if arguments.action == "execute":
        for path in paths:
            execute(path)
            print(f"{path.name}: executed")
        return 0
    well = [check_form(path, arguments.fix) for path in paths]
    return 0 if all([*well, check_solutions(arguments.fix)]) else 1


if __name__ == "__main__":
    sys.exit(main())
