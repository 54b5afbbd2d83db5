from __future__ import annotations

import pytest

from kernels import SIMULATED
from kernels.architecture import architecture, force_architecture, n_multiprocessors


def test_architecture_can_be_forced():
    usual = architecture()
    assert usual == "sm_80" or not SIMULATED
    try:
        force_architecture("sm_90a")
        assert architecture() == "sm_90a"
    finally:
        force_architecture(None)
    assert architecture() == usual
    with pytest.raises(ValueError, match="architecture 'sm_75' is unknown; choose one of sm_80, sm_90a"):
        force_architecture("sm_75")


def test_multiprocessors():
    assert n_multiprocessors() == 1 if SIMULATED else n_multiprocessors() > 1
