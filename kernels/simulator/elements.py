# ruff: noqa: D103 (the descriptions are in kernels/elements.py)
"""The stand-ins of `kernels.elements` in the simulator."""

from __future__ import annotations

import numpy as np

from kernels.simulator.instructions import bf16_to_float, float_to_bf16
from kernels.simulator.memory import SimulatedArray


def widen(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(floats: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bits, to nearest even; every NaN becomes the canonical one."""
    bits = np.ascontiguousarray(floats, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(floats), 0x7FFF, rounded).astype(np.uint16)


def load(array: SimulatedArray, index: int) -> np.float32:
    return bf16_to_float(array[index]) if array.itemsize == 2 else array[index]


def store(array: SimulatedArray, index: int, x) -> None:
    array[index] = float_to_bf16(x) if array.itemsize == 2 else x


def as_held(array: SimulatedArray, x) -> np.float32:
    return bf16_to_float(float_to_bf16(x)) if array.itemsize == 2 else x


def _load_many(n: int, into: SimulatedArray, array: SimulatedArray, index: int) -> None:
    if array.itemsize == 2:
        into.data[:n] = widen(array.vector(index, 2 * n))
    else:
        for start in range(0, n, 4):
            into.data[start : start + 4] = array.vector(index + start, 16)


def _store_many(n: int, array: SimulatedArray, index: int, values: SimulatedArray) -> None:
    if array.itemsize == 2:
        array.vector(index, 2 * n, is_store=True)[:] = narrow(values.data[:n])
    else:
        for start in range(0, n, 4):
            array.vector(index + start, 16, is_store=True)[:] = values.data[start : start + 4]


def load4(into_4: SimulatedArray, array: SimulatedArray, index: int) -> None:
    _load_many(4, into_4, array, index)


def load8(into_8: SimulatedArray, array: SimulatedArray, index: int) -> None:
    _load_many(8, into_8, array, index)


def load8_shared(into_8: SimulatedArray, array: SimulatedArray, index: int) -> None:
    _load_many(8, into_8, array, index)


def store4(array: SimulatedArray, index: int, from_4: SimulatedArray) -> None:
    _store_many(4, array, index, from_4)


def store8(array: SimulatedArray, index: int, from_8: SimulatedArray) -> None:
    _store_many(8, array, index, from_8)


def load_packs(into: SimulatedArray, array: SimulatedArray, index, stride, limit, count: int) -> None:
    for k in range(count):
        place = index + k * stride
        part = SimulatedArray(into.data[8 * k : 8 * k + 8], into.name)
        if place < limit:
            load8(part, array, place)
        else:
            part.data[:] = 0


def store_packs(array: SimulatedArray, index, stride, limit, values: SimulatedArray, count: int) -> None:
    for k in range(count):
        place = index + k * stride
        if place < limit:
            store8(array, place, SimulatedArray(values.data[8 * k : 8 * k + 8], values.name))
