"""How an array lies in memory, as Hopper's TMA wants to be told: 128 bytes that are made on the host.

    tensor_map = TensorMap(a_MK, box=(128, 64))       # 128 rows of 64 columns at a time
    Launch(kernel, grid, block, (tensor_map.array, ...), stream, shared_bytes)

The kernel takes `tensor_map.array`, 16 words of 64 bits in the GPU's memory, typed `uint64[::1]`. Words and data must
live as long as launches use them, captured graphs included: the Launch keeps the words, and they keep the data.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numba import cuda

from kernels import SIMULATED
from kernels.launch import address, as_array

N_WORDS = 16
MAX_BOX = 256
SWIZZLES = (32, 64, 128)

_TYPES = {"uint16": "BFLOAT16", "float32": "FLOAT32"}


class TensorMap:
    """A tensor map of an array of bfloat16 (uint16) or float32 with up to five axes.

    Attributes:
        array: What a kernel takes: uint64 of shape (16,).
        shape: Elements along each axis; the last one is contiguous. What lies outside is loaded as zeros and not
            stored, but for one thing: a store fills the last 16 bytes of a row that the shape cuts through.
        box: Elements along each axis of what one instruction copies.
        box_bytes: Bytes of a box, which a barrier has to expect: all of them, also where it hangs over the edge.
    """

    def __init__(
        self,
        array: object,
        box: Sequence[int],
        *,
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        swizzle: int = 128,
    ) -> None:
        """Describe an array, or with `shape` and `strides` a part of it that begins where it begins.

        Args:
            array: A device array or torch tensor (in the simulator NumPy too).
            box: Elements along each axis, in the order of the shape.
            shape: Elements along each axis; by default the array's.
            strides: Bytes from one element to the next along each axis; by default the array's. The last is that of
                neighbouring elements.
            swizzle: Bytes of a row of the box in shared memory whose order is swizzled: 128, 64, 32 or 0 for none.

        Raises:
            ValueError: TMA cannot copy this; the message says why.
        """
        taken = as_array(array, "array")
        self.shape = tuple(int(n) for n in (taken.shape if shape is None else shape))
        self.strides = tuple(int(n) for n in (taken.strides if strides is None else strides))
        self.box = tuple(int(n) for n in box)
        self.swizzle = swizzle
        self.itemsize = taken.dtype.itemsize
        self.box_bytes = int(np.prod(self.box)) * self.itemsize
        self._check(taken)
        self._kept = (array, taken)
        self.array = _simulated(self, taken) if SIMULATED else _encoded(self, taken)

    def _check(self, taken) -> None:
        """Refuse what TMA cannot do [CUDA driver API: cuTensorMapEncodeTiled]."""
        if str(taken.dtype) not in _TYPES:
            raise ValueError(f"a tensor map of {taken.dtype} is not possible; bfloat16 (uint16) or float32 is needed")
        if not len(self.shape) == len(self.strides) == len(self.box) or not 1 <= len(self.shape) <= 5:
            raise ValueError(
                f"shape {self.shape}, strides {self.strides}, box {self.box}: 1 to 5 axes, in all the same"
            )
        if min(self.shape) < 1 or self.strides[-1] != self.itemsize:
            raise ValueError(f"shape {self.shape}, strides {self.strides}: empty, or the last axis is not contiguous")
        if address(taken) % 16 or any(stride % 16 for stride in self.strides[:-1]):
            raise ValueError(f"TMA needs a start and strides of multiples of 16 bytes; the strides are {self.strides}")
        if not all(1 <= n <= MAX_BOX for n in self.box) or self.box[-1] * self.itemsize % 16:
            raise ValueError(f"box {self.box}: 1 to {MAX_BOX} a side, the last axis a multiple of 16 bytes")
        if self.swizzle not in (*SWIZZLES, 0) or self.swizzle not in (0, self.box[-1] * self.itemsize):
            raise ValueError(f"box {self.box}: its rows must have the {self.swizzle} bytes of the swizzle")
        if _extent(self.shape, self.strides) > _extent(taken.shape, taken.strides):
            raise ValueError(f"shape {self.shape} with strides {self.strides} passes the end of the array")


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the bytes from the start of the first element to that of the last."""
    return sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


class _SimulatedWords(np.ndarray):
    """The words that a simulated kernel takes; they only lead to the map itself."""

    tensor_map: TensorMap
    data_view: np.ndarray
    room: int
    """Bytes of the array behind the last element of the map."""


def _simulated(tensor_map: TensorMap, taken: np.ndarray) -> np.ndarray:
    """Return words that carry the map and the data it describes."""
    words = np.zeros(N_WORDS, np.uint64).view(_SimulatedWords)
    words.tensor_map = tensor_map
    words.room = _extent(taken.shape, taken.strides) - _extent(tensor_map.shape, tensor_map.strides)
    words.data_view = np.lib.stride_tricks.as_strided(taken, tensor_map.shape, tensor_map.strides)
    return words


def _encoded(tensor_map: TensorMap, taken):
    """Encode the map with the driver and copy it to the GPU."""
    from cuda.bindings import driver

    def sizes(numbers: Sequence[int], of: type) -> list:
        return [of(n) for n in reversed(numbers)]

    kind, swizzle = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    swizzle_name = f"{tensor_map.swizzle}B" if tensor_map.swizzle else "NONE"
    status, encoded = driver.cuTensorMapEncodeTiled(
        getattr(kind, f"CU_TENSOR_MAP_DATA_TYPE_{_TYPES[str(taken.dtype)]}"),
        len(tensor_map.shape),
        address(taken),
        sizes(tensor_map.shape, driver.cuuint64_t),
        sizes(tensor_map.strides[:-1], driver.cuuint64_t),
        sizes(tensor_map.box, driver.cuuint32_t),
        [driver.cuuint32_t(1)] * len(tensor_map.shape),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(swizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle_name}"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ValueError(f"the driver refuses a tensor map of shape {tensor_map.shape}: {status.name}")
    words = np.frombuffer(ctypes.string_at(encoded.getPtr(), 8 * N_WORDS), np.uint64).copy()
    on_device = cuda.to_device(words)
    on_device.describes = tensor_map._kept  # so that whoever keeps the words keeps the data
    return on_device
