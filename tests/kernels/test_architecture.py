"""What the package may depend on, and what every kernel and launcher must have."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import kernels
from kernels.registry import all_kernels

ROOT = Path(kernels.__file__).parent
LABELS = ["Reads", "Writes", "Work", "Error", "Raises", "Source", "Book"]
ALLOWED = {"numpy", "numba", "llvmlite", "greenlet", "cuda", "tqdm", "kernels"}


def all_launchers() -> dict:
    all_kernels()
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in ("simulator", "compile_cache"):  # without launchers, and the second not for the simulator
            continue
        module = importlib.import_module(".".join(["kernels", *parts]).removesuffix(".__init__"))
        for value in vars(module).values():
            if hasattr(value, "prepare") and inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def test_this_is_the_package_of_the_repository():
    assert Path(__file__).parents[2] == ROOT.parent


def test_imports():
    import sys

    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in ALLOWED or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_modules_are_short():
    for path in ROOT.rglob("*.py"):
        assert path.read_text(encoding="utf-8").count("\n") <= 320, path


def test_every_kernel_is_named_and_registered():
    assert all_kernels()
    for name, entry in all_kernels().items():
        assert name.endswith("_kernel") and entry.function.__doc__, name


@pytest.mark.parametrize("name", all_launchers())
def test_launcher_card(name):
    function = all_launchers()[name]
    text = inspect.getdoc(function)
    sections = {label: re.search(rf"^{label}  +(.+(?:\n .+)*)", text, re.MULTILINE) for label in LABELS}
    missing = [label for label, match in sections.items() if not match]
    assert not missing, f"{name} lacks {missing}"
    assert [label for label in re.findall(r"^(\w+)  +", text, re.MULTILINE)] == LABELS, "in this order"
    named = sections["Reads"].group(1) + sections["Writes"].group(1)
    for parameter in inspect.signature(function).parameters:
        if re.search(r"_[A-Z0-9]+$", parameter):
            assert re.search(rf"\b{parameter}\b", named), f"{name}: {parameter} is neither in Reads nor in Writes"
    assert "=)" in sections["Writes"].group(1), f"{name}: say = or += for what is written"
