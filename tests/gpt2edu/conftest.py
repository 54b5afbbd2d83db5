"""The numba engine with products and attention by NumPy: the simulator is slow at them."""

import sys
from pathlib import Path

import pytest

import kernels
from gpt2edu import passes

sys.path.insert(0, str(Path(__file__).parent))
from host_operations import HOST_OPERATIONS


@pytest.fixture
def quick(monkeypatch):
    """In the simulator NumPy computes products and attention, on the engine's own buffers."""
    for name, operation in HOST_OPERATIONS.items() if kernels.SIMULATED else ():
        monkeypatch.setattr(passes, name, operation)
