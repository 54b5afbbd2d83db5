"""Arrows go one way (book -> gpt2edu -> kernels), modules stay small, and nothing of ours is shadowed."""

import ast
from pathlib import Path

import pytest

import gpt2edu
import kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gpt2edu", "kernels")
SOURCES = sorted(path for folder in (*PACKAGES, "tools") for path in (ROOT / folder).rglob("*.py"))
BOOK_ONLY = {"gpt2edu.show", "gpt2edu.show_kernels", "gpt2edu.exercises"}  # what the run must not need
FORBIDDEN_IN_KERNELS = {"gpt2edu", "torch", "mpi4py", "transformers", "datasets"}
LONGEST_MODULE, LONGEST_FUNCTION = 500, 60


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module


def test_our_packages_are_the_ones_of_this_repository():
    for package in (gpt2edu, kernels):
        assert Path(package.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows(path):
    imported = set(imports(path))
    roots = {module.split(".")[0] for module in imported}
    assert not roots & {"book", "tests", "tools"}
    if name_of(path).startswith("kernels/"):
        assert not roots & FORBIDDEN_IN_KERNELS
    elif name_of(path).startswith("gpt2edu/"):
        assert "transformers" not in roots, "a test dependency only"
        if not name_of(path).startswith(("gpt2edu/show", "gpt2edu/exercises/")):
            assert not {module for module in imported if module.startswith(tuple(BOOK_ONLY))}
    assert "pickle" not in roots


def own_length(node):
    """Return the lines of a function without those of functions in it, as in a factory of kernels."""
    inner = {f for f in ast.walk(node) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and f is not node}
    lines = {line for f in inner for line in range(f.lineno, f.end_lineno + 1)}
    return node.end_lineno - node.lineno + 1 - len(lines)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = own_length(node)
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_no_package_in_tests():
    """A tests/kernels/__init__.py would shadow the real package."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_torch_files_are_never_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save"):
            pytest.fail(f"line {node.lineno}: {ast.unparse(node.func)} goes through pickle")
