"""The stored figures of chapters 5 to 12 are what their scripts draw."""

import pytest
from chapters import BOOK, load_script

NAMES = ("matmul", "layernorm", "attention", "loss", "step", "many_gpus", "run", "after")
SCRIPTS = {name: load_script(BOOK / "figures" / f"{name}_figures.py") for name in NAMES}


@pytest.mark.parametrize(("script", "name"), [(s, n) for s, module in SCRIPTS.items() for n in module.FIGURES])
def test_stored_figures_are_those_of_the_script(script, name):
    stored = (BOOK / "figures" / f"{script}_{name}.svg").read_text(encoding="utf-8")
    assert stored == SCRIPTS[script].FIGURES[name](), f"run book/figures/{script}_figures.py"
