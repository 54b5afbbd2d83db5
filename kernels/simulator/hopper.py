# ruff: noqa: D103 (the descriptions are in kernels/ptx_hopper.py)
"""The stand-ins of `kernels.ptx_hopper`: TMA here, the others from `barriers` and `accumulators`.

A load fills its box when a thread waits at its barrier, the latest moment, or in reversed order at once. A store reads
shared memory when the wait for that comes, and writes when the wait for that comes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.simulator.barriers import (  # noqa: F401 (the rest of the stand-ins)
    barrier_arrive,
    barrier_sync,
    decrease_registers,
    find_barrier,
    increase_registers,
    mbarrier_arrive_if,
    mbarrier_expect,
    mbarrier_init,
    mbarrier_init_fence,
    mbarrier_wait,
    warp_uniform,
)
from kernels.simulator.elements import narrow, widen
from kernels.simulator.errors import MisalignedError, SimulatorError, frame_location
from kernels.simulator.execution import current_thread, order_is_reversed
from kernels.simulator.memory import POISON, SimulatedArray
from kernels.simulator.shared import CHUNK

# ---- boxes ---------------------------------------------------------------------------------------------------------


@dataclass
class Box:
    """A box of an array: which part of it lies inside, and how it lies in shared memory."""

    array: np.ndarray
    starts: tuple[int, ...]
    """Of the box, by axis."""
    shape: tuple[int, ...]
    swizzle: int

    @property
    def n_bytes(self) -> int:
        """Of the whole box."""
        return int(np.prod(self.shape)) * self.array.itemsize

    def inside(self, array: np.ndarray) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part that lies inside `array`, as slices of it and as slices of the box."""
        pairs = zip(self.starts, self.shape, array.shape, strict=True)
        spans = [(start, max(start, 0), max(min(start + n, size), max(start, 0))) for start, n, size in pairs]
        return (
            tuple(slice(first, end) for _, first, end in spans),
            tuple(slice(first - start, end - start) for start, first, end in spans),
        )

    def order(self) -> np.ndarray:
        """Return, for each 16 bytes of the box in row-major order, where they lie in shared memory, in 16 bytes."""
        chunk = np.arange(self.n_bytes // CHUNK)
        bits = {0: 0, 32: 1, 64: 3, 128: 7}[self.swizzle]
        return chunk ^ (chunk >> 3 & bits)


def _tensor_map(words: SimulatedArray):
    """Return the map that a kernel was given."""
    tensor_map = getattr(words.data, "tensor_map", None)
    if tensor_map is None:
        raise SimulatorError(f"{words.name} is not the `array` of a TensorMap")
    return tensor_map


def _box(words: SimulatedArray, address: int, coordinates: tuple[int, ...]) -> Box:
    """Return the box of a copy after checking the instruction; coordinates come with x, the last axis, first."""
    tensor_map = _tensor_map(words)
    if len(coordinates) != len(tensor_map.shape):
        raise SimulatorError(f"{len(coordinates)} coordinates for a tensor map of {len(tensor_map.shape)} axes")
    starts = tuple((int(c) + 2**31) % 2**32 - 2**31 for c in reversed(coordinates))
    if starts[-1] * words.data.data_view.itemsize % CHUNK:
        raise MisalignedError(f"TMA with x = {starts[-1]}, which is no multiple of 16 bytes: an illegal instruction")
    box = Box(words.data.data_view, starts, tensor_map.box, tensor_map.swizzle)
    current_thread().block.shared.check_address(int(address), box.n_bytes, max(8 * box.swizzle, 128))
    return box


# ---- loads ---------------------------------------------------------------------------------------------------------


def _start_load(to_address: int, n_bytes: int, barrier: int, read: Callable[[], np.ndarray]) -> None:
    """Start a copy, made when the barrier is waited for; `read` gives the bytes as they are to lie in shared memory."""
    shared = current_thread().block.shared
    here = slice(int(to_address), int(to_address) + n_bytes)
    shared.check_arrived(here)
    shared.check_free(here)
    shared.forget(here)
    shared.window[here] = POISON
    claim = shared.arriving.add(here, f"started at {frame_location(sys._getframe(2))}")
    counts_at = find_barrier(barrier)
    if not counts_at.visible_to_tma:
        raise SimulatorError(f"mbarrier_init_fence is missing between mbarrier_init and TMA's use of {counts_at}")

    def copy() -> int:
        shared.window[here] = read()
        shared.arriving.remove(claim)
        shared.note_arrived(here, counts_at.address, counts_at.phase)
        return n_bytes

    counts_at.copies.append(copy)
    if order_is_reversed():
        counts_at.deliver()


def _tma_load(to_address: int, words: SimulatedArray, coordinates: tuple[int, ...], barrier: int) -> None:
    box = _box(words, to_address, coordinates)

    def read() -> np.ndarray:
        part = np.zeros(box.shape, box.array.dtype)
        of_array, of_box = box.inside(box.array)
        part[of_box] = box.array[of_array]
        swizzled = np.empty((box.n_bytes // CHUNK, CHUNK), np.uint8)
        swizzled[box.order()] = part.reshape(-1).view(np.uint8).reshape(-1, CHUNK)
        return swizzled.reshape(-1)

    _start_load(to_address, box.n_bytes, barrier, read)


def tma_prefetch_map(words: SimulatedArray) -> None:
    _tensor_map(words)


def tma_prefetch_3d(words: SimulatedArray, x: int, y: int, z: int) -> None:
    _tensor_map(words)


def tma_load_2d(to_address: int, words: SimulatedArray, x: int, y: int, barrier: int) -> None:
    _tma_load(to_address, words, (x, y), barrier)


def tma_load_3d(to_address: int, words: SimulatedArray, x: int, y: int, z: int, barrier: int) -> None:
    _tma_load(to_address, words, (x, y, z), barrier)


def bulk_load(to_address: int, array: SimulatedArray, index: int, n_bytes: int, barrier: int) -> None:
    index, n_bytes = int(index), int(n_bytes)
    first = array.address + index * array.itemsize
    if n_bytes % CHUNK or n_bytes <= 0 or first % CHUNK:
        raise MisalignedError(f"bulk_load of {n_bytes} bytes from element {index}: multiples of 16 bytes are needed")
    end = index + n_bytes // array.itemsize
    array[index], array[end - 1]  # reports what is out of bounds
    current_thread().block.shared.check_address(int(to_address), n_bytes, CHUNK)
    _start_load(to_address, n_bytes, barrier, lambda: array.data[index:end].view(np.uint8))


# ---- stores --------------------------------------------------------------------------------------------------------


class Stores:
    """The stores of one thread: groups under way, each a list of steps still to be made; the last group is open."""

    def __init__(self) -> None:
        self.unread: list[list[Callable[[], Callable[[], None]]]] = [[]]
        """A step reads shared memory and returns the step that writes."""
        self.unwritten: list[list[Callable[[], None]]] = []

    def read(self, n_pending: int) -> None:
        """Read what all but the last `n_pending` closed groups store."""
        while len(self.unread) - 1 > n_pending:
            self.unwritten.append([step() for step in self.unread.pop(0)])

    def write(self, n_pending: int) -> None:
        """Write what all but the last `n_pending` closed groups store."""
        self.read(n_pending)
        while self.unwritten and len(self.unwritten) + len(self.unread) - 1 > n_pending:
            for step in self.unwritten.pop(0):
                step()

    def finish(self) -> None:
        """Check, at the end of the kernel, that shared memory is not needed any more."""
        if any(self.unread):
            raise SimulatorError("the thread ends while its stores still read shared memory: bulk_wait(0) is missing")
        self.write(0)


class StoresOfThreads:
    """The stores of a block, by thread."""

    def __init__(self) -> None:
        self.by_rank: dict[int, Stores] = {}


def _stores() -> Stores:
    thread = current_thread()
    by_rank = thread.block.unit(StoresOfThreads).by_rank
    if thread.rank not in by_rank:
        by_rank[thread.rank] = Stores()
        thread.at_exit.append(by_rank[thread.rank].finish)
    return by_rank[thread.rank]


def _whole_chunks(words: SimulatedArray) -> np.ndarray:
    """Return the array with its last axis grown to whole 16 bytes: as far as TMA writes."""
    view = words.data.data_view
    per_chunk = CHUNK // view.itemsize
    grown = -(-view.shape[-1] // per_chunk) * per_chunk
    if grown == view.shape[-1]:
        return view
    if words.data.room < (grown - view.shape[-1]) * view.itemsize:
        raise SimulatorError(
            f"a TMA store to rows of {view.shape[-1]} elements writes {grown} and so past the end of the array: "
            "give the TensorMap the padded array, and `shape`"
        )
    return np.lib.stride_tricks.as_strided(view, (*view.shape[:-1], grown), view.strides)


def _tma_store(words: SimulatedArray, coordinates: tuple[int, ...], from_address: int, adds: bool = False) -> None:
    box = _box(words, from_address, coordinates)
    if min(box.starts) < 0:
        raise SimulatorError(f"a TMA store to {box.starts}: an illegal instruction, only a load may start below 0")
    array = _whole_chunks(words)
    of_array, of_box = box.inside(array)
    from_address = int(from_address)
    shared = current_thread().block.shared
    here = slice(from_address, from_address + box.n_bytes)
    shared.check_arrived(here)
    shared.check_fenced(here)
    claim = shared.being_read.add(here, f"a TMA store, started at {frame_location(sys._getframe(1))}")

    def read() -> Callable[[], None]:
        shared.being_read.remove(claim)
        chunks = shared.window[here].reshape(-1, CHUNK)[box.order()]
        part = chunks.reshape(-1).view(array.dtype).reshape(box.shape)[of_box]

        def write() -> None:
            array[of_array] = _sum(array[of_array], part) if adds else part

        return write

    stores = _stores()
    stores.unread[-1].append(read)
    if order_is_reversed():
        write = stores.unread[-1].pop()()
        write()


def _sum(before: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Add in the array's precision."""
    if before.dtype == np.float32:
        return before + added
    return narrow(widen(before) + widen(added))


def tma_store_2d(words: SimulatedArray, x: int, y: int, from_address: int) -> None:
    _tma_store(words, (x, y), from_address)


def tma_store_2d_hinted(words: SimulatedArray, x: int, y: int, from_address: int, policy: int) -> None:
    _tma_store(words, (x, y), from_address)


def tma_store_3d(words: SimulatedArray, x: int, y: int, z: int, from_address: int) -> None:
    _tma_store(words, (x, y, z), from_address)


def tma_reduce_add_2d(words: SimulatedArray, x: int, y: int, from_address: int) -> None:
    _tma_store(words, (x, y), from_address, adds=True)


def bulk_commit() -> None:
    _stores().unread.append([])


def bulk_wait(n_pending: int) -> None:
    _stores().write(n_pending)


def bulk_wait_read(n_pending: int) -> None:
    _stores().read(n_pending)


def fence_async_shared() -> None:
    current_thread().block.shared.fence()
