"""The shared memory of a simulated block, and what is known of each part of it while asynchronous copies run.

TMA and wgmma reach shared memory by another way (PTX: the async proxy) than a thread's loads and stores. So two things
are kept: which bytes a copy is about to fill, and which bytes threads wrote without a `fence_async_shared` since.
Both are checked for dynamic shared memory and for arrays aligned to at least 128 bytes; no others can be a target.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kernels.simulator.errors import LaunchError, MisalignedError, OutOfBoundsError, SimulatorError
from kernels.simulator.memory import POISON, SimulatedArray, as_numpy_dtype
from kernels.simulator.visibility import Seen

if TYPE_CHECKING:
    from kernels.simulator.execution import SimulatedThread

STATIC_SHARED_LIMIT = 48 * 1024
"""Bytes of static shared memory that any kernel may declare (CUDA C++ Programming Guide, compute capabilities)."""

DYNAMIC_SHARED_LIMIT = 227 * 1024
"""Bytes of shared memory that a block of a Hopper GPU may ask for at launch; 163 KiB on an A100."""

CHUNK = 16
"""Bytes that copies and products move as a whole: of a smaller, aligned access they touch all bytes or none."""

_WINDOW_ALIGNMENT = 1024
_ASYNC_ALIGNMENT = 128


class Claim(NamedTuple):
    """Bytes that something under way will write or read."""

    where: slice | np.ndarray
    what: str


class Claims:
    """The claims of one kind on the bytes of shared memory."""

    def __init__(self, n_bytes: int) -> None:
        self._n_claims = np.zeros(n_bytes, np.int16)
        self.under_way: list[Claim] = []

    def add(self, where: slice | np.ndarray, what: str) -> Claim:
        """Claim the bytes at these addresses, each named once."""
        claim = Claim(where, what)
        self.under_way.append(claim)
        self._n_claims[where] += 1
        return claim

    def remove(self, claim: Claim) -> None:
        """Give the bytes free."""
        self.under_way = [other for other in self.under_way if other is not claim]
        self._n_claims[claim.where] -= 1

    def find(self, where: slice | np.ndarray) -> str | None:
        """Return what claims any of the bytes at these addresses, or None."""
        if not self.under_way or not np.any(self._n_claims[where.start if _is_small(where) else where]):
            return None
        for claim in self.under_way:
            claimed = np.zeros(self._n_claims.size, bool)
            claimed[claim.where] = True
            if claimed[where].any():
                return claim.what
        return None


class SharedMemory:
    """The shared memory of one block; an instance stands for `cuda.shared` while the block runs.

    It is one window of bytes, as on a GPU, so a shared address is an offset into it. An array is keyed by the place
    of its call (not by its line). An array declared without an alignment gets none beyond its element
    size, on purpose: 128-bit accesses to it are then reported, since on a GPU they work only by luck.
    """

    def __init__(self, dynamic_bytes: int, running: Callable[[], SimulatedThread]) -> None:
        self._running = running
        self.dynamic_bytes = dynamic_bytes
        self.window = _aligned_bytes(dynamic_bytes + STATIC_SHARED_LIMIT + 16)
        self.used = dynamic_bytes
        self.arriving = Claims(self.window.size)
        """What copies under way will fill."""
        self.being_read = Claims(self.window.size)
        """What products and stores under way will read."""
        self._copy_of: np.ndarray | None = None
        """By byte: 1 + the place in `_copies` of the copy that brought it, or 0."""
        self._copies: list[tuple[int, int]] = []
        self._unfenced: np.ndarray | None = None
        """By byte: 1 + the thread that wrote it and has not called `fence_async_shared` since, or 0."""
        self._written: dict[int, list[slice | np.ndarray]] = {}
        self._base: int = self.window.__array_interface__["data"][0]
        self._static: dict[tuple, SimulatedArray] = {}

    def array(self, shape, dtype, alignment: int | None = None) -> SimulatedArray:
        """Declare an array of the block, or return it when another thread has declared it already."""
        dtype = as_numpy_dtype(dtype)
        if shape == 0 or shape == (0,):
            count = self.dynamic_bytes // dtype.itemsize
            return SharedArray(self.window[: count * dtype.itemsize].view(dtype), "dynamic shared memory", self)
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in self._static:
            self._static[key] = self._allocate(shape, dtype, alignment, frame.f_lineno)
        return self._static[key]

    def _allocate(self, shape, dtype: np.dtype, alignment: int | None, line: int) -> SimulatedArray:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if alignment is None:
            offset = -(-self.used // 16) * 16 + (dtype.itemsize if dtype.itemsize < 16 else 0)
        else:
            offset = -(-self.used // alignment) * alignment
        if offset + n_bytes - self.dynamic_bytes > STATIC_SHARED_LIMIT + 16:
            raise LaunchError(
                f"more than {STATIC_SHARED_LIMIT} bytes of static shared memory: use dynamic shared memory for more"
            )
        self.used = offset + n_bytes
        data = self.window[offset : offset + n_bytes].view(dtype).reshape(shape)
        name = f"shared array of line {line}"
        if alignment is not None and alignment >= _ASYNC_ALIGNMENT:
            return SharedArray(data, name, self)
        return SimulatedArray(data, name)

    def address(self, array: SimulatedArray, index: int) -> int:
        """Return the shared address (an offset into the window) of element `index` of a shared array."""
        offset = array.address - self._base
        if not 0 <= offset < self.window.size:
            raise OutOfBoundsError(f"{array.name} does not lie in shared memory")
        return offset + int(index) * array.itemsize

    def check_address(self, address: int, n_bytes: int, alignment: int) -> None:
        """Refuse an access past what is declared, or one that does not start where it must."""
        if not 0 <= address <= self.used - n_bytes:
            raise OutOfBoundsError(f"{n_bytes} bytes at shared address {address} pass the {self.used} bytes declared")
        if address % alignment:
            raise MisalignedError(
                f"{n_bytes} bytes at shared address {address} do not start at a multiple of {alignment}"
            )

    def bytes_at(self, address: int, n_bytes: int) -> np.ndarray:
        """Return `n_bytes` of the window at a shared address that must be a multiple of `n_bytes`."""
        address = int(address)
        self.check_address(address, n_bytes, n_bytes)
        self.check_arrived(slice(address, address + n_bytes))
        return self.window[address : address + n_bytes]

    @property
    def copies_are_known(self) -> bool:
        """Whether there is or was any copy that `check_arrived` must know of."""
        return bool(self.arriving.under_way) or self._copy_of is not None

    def note_arrived(self, where: slice, barrier: int, phase: int) -> None:
        """Remember with which phase of which barrier a copy has brought bytes."""
        if self._copy_of is None:
            self._copy_of = np.zeros(self.window.size, np.int32)
        self._copies.append((barrier, phase))
        self._copy_of[where] = len(self._copies)

    def check_arrived(self, where: slice | np.ndarray, seen: Seen | None = None) -> None:
        """Refuse an access to bytes of a copy that is under way, or whose end the thread has not seen.

        Args:
            where: The addresses of the bytes.
            seen: What the thread has seen; by default that of the running thread.
        """
        copy = self.arriving.find(where)
        if copy:
            raise SimulatorError(f"this shared memory is the target of a copy whose end no wait has seen yet, {copy}")
        if self._copy_of is None:
            return
        seen = self._running().seen if seen is None else seen
        for barrier, phase in self._copies_at(where):
            if seen.get(barrier, -1) < phase:
                raise SimulatorError(
                    f"this shared memory was filled by a copy that counts at the barrier at {barrier}, but the thread "
                    f"neither waited for phase {phase} of it nor met one that did"
                )

    def _copies_at(self, where: slice | np.ndarray) -> list[tuple[int, int]]:
        """Return the barrier and the phase of each copy that brought any of these bytes."""
        numbers = [int(self._copy_of[where.start])] if _is_small(where) else np.unique(self._copy_of[where])
        return [self._copies[number - 1] for number in numbers if number]

    def check_free(self, where: slice | np.ndarray) -> None:
        """Refuse to overwrite bytes that a product or a store is about to read."""
        reader = self.being_read.find(where)
        if reader:
            raise SimulatorError(
                f"this shared memory is still read by {reader}: wait for that before it is overwritten"
            )

    def note_written(self, where: slice | np.ndarray) -> None:
        """Remember that the running thread writes the bytes at these addresses by ordinary stores."""
        self.check_arrived(where)
        self.check_free(where)
        rank = self._running().rank
        if self._unfenced is None:
            self._unfenced = np.zeros(self.window.size, np.int16)
        self._unfenced[where] = rank + 1
        if self._copy_of is not None:
            self._copy_of[where] = 0
        self._written.setdefault(rank, []).append(where)

    def fence(self) -> None:
        """Let TMA and wgmma see what the running thread wrote so far."""
        rank = self._running().rank
        for where in self._written.pop(rank, ()):
            writers = self._unfenced[where]
            self._unfenced[where] = np.where(writers == rank + 1, 0, writers)

    def forget(self, where: slice) -> None:
        """Forget who wrote bytes, since a copy is about to."""
        for known in (self._unfenced, self._copy_of):
            if known is not None:
                known[where] = 0

    def check_fenced(self, where: slice | np.ndarray) -> None:
        """Refuse to let TMA or wgmma read bytes that a thread wrote and did not fence."""
        if self._unfenced is None:
            return
        writers = self._unfenced[where]
        if writers.any():
            rank = int(writers[writers > 0].flat[0]) - 1
            raise SimulatorError(
                f"thread {rank} wrote this shared memory and did not call fence_async_shared, without which TMA and "
                "wgmma may see old bytes"
            )


class SharedArray(SimulatedArray):
    """An array in shared memory that TMA or wgmma may use, too."""

    __slots__ = ("_shared",)

    def __init__(self, data: np.ndarray, name: str, shared: SharedMemory) -> None:
        super().__init__(data, name)
        self._shared = shared

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if self._shared.copies_are_known and not isinstance(item, SimulatedArray):
            self._shared.check_arrived(self._bytes(index))
        return item

    def __setitem__(self, index, value) -> None:
        super().__setitem__(index, value)
        if np.ndim(self.data[index]) == 0:
            self._shared.note_written(self._bytes(index))

    def vector(self, index: int, n_bytes: int, *, is_store: bool = False) -> np.ndarray:
        """Return the elements of a vector access."""
        elements = super().vector(index, n_bytes)
        first = self._shared.address(self, index)
        check = self._shared.note_written if is_store else self._shared.check_arrived
        check(slice(first, first + n_bytes))
        return elements

    def _part(self, data: np.ndarray) -> SharedArray:
        return SharedArray(data, self.name, self._shared)

    def _bytes(self, index) -> slice:
        """Return the shared addresses of an element."""
        indices = index if type(index) is tuple else (index,)
        first = self._shared.address(self, 0)
        first += sum(i * stride for i, stride in zip(indices, self.data.strides, strict=True))
        return slice(first, first + self.itemsize)


def _is_small(where: slice | np.ndarray) -> bool:
    return type(where) is slice and where.stop - where.start <= CHUNK


def _aligned_bytes(n_bytes: int) -> np.ndarray:
    buffer = np.full(n_bytes + _WINDOW_ALIGNMENT, POISON, np.uint8)
    start = -buffer.__array_interface__["data"][0] % _WINDOW_ALIGNMENT
    return buffer[start : start + n_bytes]
