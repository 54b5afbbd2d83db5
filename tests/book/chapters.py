"""Where the book's files are, and how the tests read them."""

import importlib.util
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
HTML = ROOT / "_build" / "html"


def load_script(path):
    """Import a file of `book/` that is no package; it finds the files beside it, as when it is run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def read(path):
    return nbformat.read(path, as_version=4)


def pages():
    """Return the names in `_toc.yml`, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
