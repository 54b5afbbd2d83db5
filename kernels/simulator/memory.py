"""The memories of a simulated GPU: arrays that check each access, and local memory; `shared` has the shared one."""

from __future__ import annotations

import functools
import math

import numpy as np
from numba.cuda import types
from numba.cuda.np import numpy_support

from kernels.simulator.errors import MisalignedError, OutOfBoundsError

POISON = 0xFF
"""Memory starts with every bit set: NaN as a float, so that reading before writing shows."""


@functools.cache
def as_numpy_dtype(dtype: object) -> np.dtype:
    """Take a Numba type, a NumPy type or a name."""
    return np.dtype(numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)


class SimulatedArray:
    """An array as a kernel sees it: every index is checked, and integers never wrap.

    Reading an integer gives a Python `int`, since Numba computes with 64 bits whatever the array holds;
    reading a float gives a NumPy scalar of the array's precision. Writing an integer keeps its low bits.
    """

    __slots__ = ("_address", "_is_integer", "_mask", "data", "name", "shape")

    def __init__(self, data: np.ndarray, name: str) -> None:
        self.data = data
        self.name = name
        self.shape = data.shape
        self._address: int | None = None
        self._is_integer = data.dtype.kind in "iu"
        self._mask = (1 << 8 * data.dtype.itemsize) - 1 if data.dtype.kind == "u" else 0

    def __getitem__(self, index):
        if type(index) is not int or not 0 <= index < self.shape[0]:
            self._check(index)
        item = self.data[index]
        if type(item) is np.ndarray:
            return self._part(item)
        return int(item) if self._is_integer else item

    def __setitem__(self, index, value) -> None:
        if type(index) is not int or not 0 <= index < self.shape[0]:
            self._check(index)
        if type(value) is SimulatedArray:
            value = value.data
        elif self._mask:
            value = int(value) & self._mask
        self.data[index] = value

    def __len__(self) -> int:
        return len(self.data)

    size = property(lambda self: self.data.size)
    ndim = property(lambda self: self.data.ndim)
    dtype = property(lambda self: self.data.dtype)
    itemsize = property(lambda self: self.data.itemsize)

    def view(self, dtype: object) -> SimulatedArray:
        """Reinterpret the bytes, as Numba's `array.view` does."""
        return self._part(self.data.view(as_numpy_dtype(dtype)))

    def reshape(self, *shape) -> SimulatedArray:
        """Give the same elements another shape."""
        return self._part(self.data.reshape(*shape))

    def _part(self, data: np.ndarray) -> SimulatedArray:
        return SimulatedArray(data, self.name)

    def _check(self, index) -> None:
        """Refuse an index that is negative or past the end; NumPy and Numba would wrap a negative one."""
        for axis, i in enumerate(index if type(index) is tuple else (index,)):
            if type(i) is not slice and not 0 <= i < self.shape[axis]:
                self._refuse(i, axis)

    def _refuse(self, index, axis: int) -> None:
        raise OutOfBoundsError(f"index {index} is outside axis {axis} of {self.name}, whose shape is {self.shape}")

    @property
    def address(self) -> int:
        """Address of the first element."""
        if self._address is None:
            self._address = self.data.__array_interface__["data"][0]
        return self._address

    def vector(self, index: int, n_bytes: int, *, is_store: bool = False) -> np.ndarray:
        """Return the `n_bytes` at element `index` of this one-dimensional array as an array of its dtype.

        `is_store` tells a trace that they are about to be overwritten.

        Raises:
            OutOfBoundsError: the access passes an end of the array.
            MisalignedError: the address is no multiple of `n_bytes`.
        """
        data = self.data
        itemsize = data.itemsize
        end = index + n_bytes // itemsize
        if index < 0 or end > self.shape[0]:
            raise OutOfBoundsError(
                f"{n_bytes} bytes at element {index} pass the end of {self.name}, which has {self.shape[0]} elements"
            )
        if (self.address + index * itemsize) % n_bytes:
            raise MisalignedError(
                f"{n_bytes} bytes at element {index} of {self.name} do not start at a multiple of {n_bytes}"
            )
        return data[index:end]


class LocalMemory:
    """Stands for `cuda.local`: arrays that belong to one thread."""

    def array(self, shape, dtype, alignment: int | None = None) -> SimulatedArray:
        """Return a fresh array; a GPU keeps it in registers or in local memory."""
        dtype = as_numpy_dtype(dtype)
        n_elements = math.prod(shape) if isinstance(shape, tuple) else shape
        data = np.frombuffer(bytearray([POISON]) * (n_elements * dtype.itemsize), dtype)
        return SimulatedArray(data.reshape(shape), "local array")
