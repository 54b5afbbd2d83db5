"""Chapter 2's stored figures are what their script draws from the package's own bytes and shuffles."""

import pytest
from chapters import BOOK, load_script

script = load_script(BOOK / "figures" / "data_figures.py")


@pytest.mark.parametrize("name", script.FIGURES)
def test_stored_figures_are_those_of_the_script(name):
    stored = (BOOK / "figures" / f"data_{name}.svg").read_text(encoding="utf-8")
    assert stored == script.FIGURES[name](), "run book/figures/data_figures.py"
