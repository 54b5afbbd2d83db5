"""Chapter 4's stored figures are what their script draws from the simulator's trace."""

import pytest
from chapters import BOOK, load_script

from kernels import SIMULATED

if not SIMULATED:
    pytest.skip("the figures are drawn in the simulator", allow_module_level=True)

script = load_script(BOOK / "figures" / "kernels_figures.py")


@pytest.mark.parametrize("name", script.FIGURES)
def test_stored_figures_are_those_of_the_script(name):
    stored = (BOOK / "figures" / f"kernels_{name}.svg").read_text(encoding="utf-8")
    assert stored == script.FIGURES[name](), "run book/figures/kernels_figures.py"
