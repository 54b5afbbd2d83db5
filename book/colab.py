"""The cell that makes a chapter run on Colab: it fetches the repository that `_config.yml` names, and nothing else.

Without an address in `_config.yml` there is no such cell. Elsewhere than on Colab the cell does nothing.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import yaml

CONFIG = Path(__file__).resolve().parents[1] / "_config.yml"
TAG = "colab"
INSTALL = """# On Colab: fetch the book and its package, and keep Colab's own torch and NumPy.
import sys

if "google.colab" in sys.modules:
    import numpy
    import torch

    !git clone -q --depth 1 --branch {branch} {url} /content/book_and_package
    %cd -q /content/book_and_package/book
    %pip install -q -e .. "torch=={{torch.__version__}}" "numpy=={{numpy.__version__}}"
    sys.path.insert(0, "/content/book_and_package")  # an installation shows only after a restart"""


def install_source(config: Path = CONFIG) -> str | None:
    """Return the cell's source for the repository in a `_config.yml`, None where none is named."""
    repository = yaml.safe_load(config.read_text(encoding="utf-8")).get("repository", {})
    return INSTALL.format(**repository) if repository.get("url") else None


def place_install_cell(notebook: nbformat.NotebookNode, source: str | None) -> None:
    """Make `source` the first code cell of a notebook; with None make sure that there is no such cell."""
    notebook.cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    if source is None:
        return
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": [TAG, "hide-cell"]}, id=TAG)
    code = (place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    first = next(code, len(notebook.cells))
    notebook.cells.insert(first, cell)
