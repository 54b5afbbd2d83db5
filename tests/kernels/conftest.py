"""The kernel tests run in the simulator on a machine without a GPU, and on the GPU where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.launch import Prepared
from kernels.simulator.execution import reversed_order


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a GPU every kernel test is a gpu test; tests of the simulator itself are left to machines without one."""
    if not SIMULATED:
        for item in items:
            if "tests/kernels/" in item.path.as_posix():
                item.add_marker(pytest.mark.gpu)


def _write(array, values: np.ndarray) -> None:
    if SIMULATED:
        array[...] = values
    else:
        array.copy_to_device(values)


def _other_grids(prepared: Prepared) -> list[Prepared]:
    """The same launches with one block, and with more blocks than work."""
    few = Prepared(dataclasses.replace(launch, grid=1) for launch in prepared)
    many = Prepared(dataclasses.replace(launch, grid=launch.grid + 3) for launch in prepared)
    return [few, many]


@pytest.fixture
def run_every_way() -> Callable[..., list[np.ndarray]]:
    """Run prepared launches twice, in two thread orders and in two other grids; the bits must be the same.

    Returns the outputs as float64 values (integers as they are).
    """

    def run(prepared: Prepared, *outputs) -> list[np.ndarray]:
        before = [host.to_host(array) for array in outputs]
        prepared()
        first = [host.to_host(array) for array in outputs]

        def assert_same(other: Prepared, way: str) -> None:
            for array, start in zip(outputs, before, strict=True):
                _write(array, start)
            other()
            for array, wanted in zip(outputs, first, strict=True):
                np.testing.assert_array_equal(host.to_host(array), wanted, err_msg=way)

        assert_same(prepared, "the second run differs")
        for other in _other_grids(prepared):
            assert_same(other, f"grids {[launch.grid for launch in other]} differ")
        if SIMULATED:
            with reversed_order():
                for launches in (prepared, _other_grids(prepared)[0]):
                    assert_same(launches, "threads run backwards give another result: a barrier is missing")
        return [host.values(array) for array in outputs]

    return run
