"""Records which bytes of its arrays each thread of a simulated kernel touches, and puts them together warp by warp.

    with tracing() as accesses:
        add_kernel[3, 64](out, inp, added)
    for step in warp_steps(accesses, warp=1):
        print(step.line, step.array, step.lanes, step.n_sectors)

On a GPU the lanes of a warp execute a load or store together, and the memory delivers whole sectors of 32 bytes. The
simulator runs a lane at a time, so `warp_steps` brings together what belongs together: the same access of the source,
and in a loop the same time around. Recorded are the arrays that a kernel is launched with, one element or one vector
at a time; shared and local arrays, and assignments to whole slices, are not. Every array counts as if it began at the
start of a sector.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import NamedTuple

import numpy as np

from kernels.simulator.errors import is_kernel_frame
from kernels.simulator.execution import WARP_SIZE, current_thread
from kernels.simulator.memory import SimulatedArray

SECTOR_BYTES = 32
"""What the memory of a GPU delivers at least (CUDA C++ Best Practices Guide, coalesced access to global memory)."""


class Access(NamedTuple):
    """One load or store of one thread."""

    block: tuple[int, int, int]
    rank: int
    """The thread's number in its block."""
    place: tuple[tuple[str, int], ...]
    """File and line of the access, and of the calls that led to it; the last one is the kernel's own."""
    array: str
    itemsize: int
    is_store: bool
    first_byte: int
    """Counted from the start of the array that was launched with."""
    n_bytes: int


class TracedArray(SimulatedArray):
    """An argument of a traced kernel, or a part of one; records each access."""

    __slots__ = ("_accesses", "_start")

    def __init__(self, data: np.ndarray, name: str, accesses: list[Access], start: int | None = None) -> None:
        super().__init__(data, name)
        self._accesses = accesses
        self._start = self.address if start is None else start

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if not isinstance(item, SimulatedArray):
            self._record(index, self.itemsize, is_store=False)
        return item

    def __setitem__(self, index, value) -> None:
        super().__setitem__(index, value)
        if np.ndim(self.data[index]) == 0:
            self._record(index, self.itemsize, is_store=True)

    def vector(self, index: int, n_bytes: int, *, is_store: bool = False) -> np.ndarray:
        """Return the elements of a vector access, and record it."""
        elements = super().vector(index, n_bytes)
        self._record(index, n_bytes, is_store)
        return elements

    def _part(self, data: np.ndarray) -> SimulatedArray:
        return TracedArray(data, self.name, self._accesses, self._start)

    def _record(self, index, n_bytes: int, is_store: bool) -> None:
        thread = current_thread()
        place = _lines(sys._getframe(2), thread.block.kernel_code)
        indices = index if type(index) is tuple else (index,)
        offset = sum(i * stride for i, stride in zip(indices, self.data.strides, strict=True))
        first_byte = self.address - self._start + offset
        self._accesses.append(
            Access(thread.blockIdx, thread.rank, place, self.name, self.itemsize, is_store, first_byte, n_bytes)
        )


def _lines(frame: FrameType, kernel_code: CodeType) -> tuple[tuple[str, int], ...]:
    """Return the lines of the calls from an access out to the kernel.

    Lines rather than instructions: Python counts an instruction differently before and after it has adapted to it.
    """
    lines = [(frame.f_code.co_filename, frame.f_lineno)]
    while frame.f_code is not kernel_code:
        frame = frame.f_back
        if is_kernel_frame(frame):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
    return tuple(lines)


@dataclass
class WarpStep:
    """One load or store instruction as a warp executes it: what each lane touches."""

    file: str
    line: int
    array: str
    itemsize: int
    is_store: bool
    lanes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First byte and number of bytes, for each lane that takes part."""

    @property
    def source(self) -> str:
        """The line of the kernel."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def n_bytes(self) -> int:
        """What the lanes asked for, each byte once."""
        return len({byte for first, n in self.lanes.values() for byte in range(first, first + n)})

    @property
    def n_sectors(self) -> int:
        """What the memory has to move for it."""
        spans = ((first // SECTOR_BYTES, (first + n - 1) // SECTOR_BYTES) for first, n in self.lanes.values())
        return len({sector for first, last in spans for sector in range(first, last + 1)})


_accesses: list[Access] | None = None


def argument_array(data: np.ndarray, name: str) -> SimulatedArray:
    """Return the array as a kernel sees it that is launched now."""
    return SimulatedArray(data, name) if _accesses is None else TracedArray(data, name, _accesses)


@contextlib.contextmanager
def tracing() -> Iterator[list[Access]]:
    """Record the accesses of all kernels that are launched within this context, in the order in which they happen."""
    global _accesses
    before, _accesses = _accesses, []
    try:
        yield _accesses
    finally:
        _accesses = before


def warp_steps(accesses: Sequence[Access], block: tuple[int, int, int] = (0, 0, 0), warp: int = 0) -> list[WarpStep]:
    """Return the loads and stores of one warp of a launch, in the order of its first lane.

    Args:
        accesses: Of one launch.
        block: The index of the block.
        warp: The number of the warp in it.
    """
    steps: dict[tuple, WarpStep] = {}
    times: dict[tuple, int] = {}
    for access in accesses:
        if access.block != tuple(block) or access.rank // WARP_SIZE != warp:
            continue
        instruction = (access.place, access.array, access.is_store)
        times_before = times.get((access.rank, instruction), 0)
        times[access.rank, instruction] = times_before + 1
        step = steps.setdefault(
            (instruction, times_before),
            WarpStep(*access.place[-1], access.array, access.itemsize, access.is_store),
        )
        step.lanes[access.rank % WARP_SIZE] = (access.first_byte, access.n_bytes)
    return list(steps.values())
