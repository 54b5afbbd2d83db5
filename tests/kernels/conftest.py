"""The kernel tests run in the simulator on a machine without a GPU, and on the GPU where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from kernels import SIMULATED, host
from kernels.launch import Prepared
from kernels.registry import all_kernels
from kernels.simulator.execution import reversed_order

from numba.cuda import types  # isort: skip
from numba.cuda.np import numpy_support  # isort: skip


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


def _argument_type(value: object) -> types.Type:
    """The type for which Numba compiles a kernel when it is launched with this argument on a GPU."""
    if hasattr(value, "dtype") and hasattr(value, "ndim") and value.ndim:
        return types.Array(numpy_support.from_dtype(np.dtype(value.dtype)), value.ndim, "C")
    return types.float32 if isinstance(value, np.float32) else types.int64


def _assert_registered(prepared: Prepared) -> None:
    """What is launched must be what `kernels.compile` compiles and measures."""
    entries = {entry.function: entry for entry in all_kernels().values()}
    for launch in prepared:
        launched = tuple(_argument_type(a) for a in launch.arguments)
        entry = entries[launch.kernel.py_func]
        listed = [eval(s, {}, vars(types)).args for s in entry.signatures.values()]
        assert launched in listed, f"{entry.name} is launched with {launched}"


@pytest.fixture
def run_every_way() -> Callable[..., list[np.ndarray]]:
    """Run prepared launches twice, in two thread orders and in two other grids; the bits must be the same.

    Returns the outputs as float64 values (integers as they are).
    """

    def run(prepared: Prepared, *outputs) -> list[np.ndarray]:
        _assert_registered(prepared)
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
