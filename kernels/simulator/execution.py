"""Runs a block: one greenlet a CUDA thread, barriers and warp operations as switches back to the block.

A block runs warp after warp. Each warp runs its lanes, one after the other, until every lane waits for the whole
block or for a condition, or has ended; operations among lanes are completed on the way. So the order is always the
same. A kernel whose result depends on the order in which threads run between two barriers is wrong; `reversed_order`
runs the blocks, warps and lanes backwards, and a test that compares the two results finds most missing barriers.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import NamedTuple

import greenlet
import numpy as np

from kernels.simulator.errors import DivergenceError, SimulatorError, is_kernel_frame, traceback_location
from kernels.simulator.report import report
from kernels.simulator.shared import SharedMemory
from kernels.simulator.visibility import NOTHING, Seen, tell_each_other

WARP_SIZE = 32
FULL_MASK = 0xFFFFFFFF

Values = dict[int, object]
"""What each thread brought to a meeting, by its number: the lane in a warp, the rank in a block."""


class Meeting(NamedTuple):
    """What a waiting thread waits for. All threads that take part must wait for an equal `key`."""

    key: tuple
    """The operation, its mask (None for the whole block) and the place of the call, from the kernel inwards."""
    value: object
    """What this thread brings."""
    combine: Callable[[Values], Values | None] | None
    """Computes, once for all, what each thread takes away."""

    @property
    def mask(self) -> int | None:
        """The lanes that have to come; None if it is all threads of the block."""
        return self.key[1]


class Condition(NamedTuple):
    """What a thread waits for that does not need other threads at the same place."""

    holds: Callable[[], bool]
    describe: Callable[[], str]


class Dim3(NamedTuple):
    """A size or an index of a grid or a block."""

    x: int
    y: int
    z: int


class SimulatedThread:
    """One CUDA thread: its indices, its greenlet, what it waits for, and its copies in flight."""

    __slots__ = (
        "at_exit", "blockIdx", "block", "condition", "copies", "greenlet", "lane", "meeting", "rank", "result",
        "seen", "threadIdx",
    )  # fmt: skip

    def __init__(self, block: Block, rank: int, thread_index: Dim3) -> None:
        self.block = block
        self.rank = rank
        self.lane = rank % WARP_SIZE
        self.threadIdx = thread_index
        self.blockIdx = block.index
        self.meeting: Meeting | None = None
        self.condition: Condition | None = None
        self.result: object = None
        self.seen: Seen = NOTHING
        self.at_exit: list[Callable[[], None]] = []
        """Run when the thread returns from the kernel: checks of what it should have waited for."""
        self.copies: list[list[Callable[[], None]]] = [[]]
        """cp.async: the groups of copies not yet waited for; the last one is open."""
        self.greenlet = greenlet.greenlet(block.body)
        self.greenlet.gr_context = contextvars.copy_context()

    @property
    def ended(self) -> bool:
        """Whether the thread has returned from the kernel."""
        return self.greenlet.dead

    @property
    def can_run(self) -> bool:
        """Whether the thread waits for nothing."""
        return not self.ended and self.meeting is None and (self.condition is None or self.condition.holds())

    def wait_until(self, holds: Callable[[], bool], describe: Callable[[], str]) -> None:
        """Let others run until a condition holds; `describe` says for a report what is waited for."""
        if not holds():
            self.condition = Condition(holds, describe)
            self.block.hub.switch()

    def meet(self, operation: str, mask: int | None, value: object, combine: Callable | None) -> object:
        """Wait until all threads that take part are here, and return what `combine` gave for this one."""
        self.meeting = Meeting((operation, mask, self.call_path()), value, combine)
        self.block.hub.switch()
        return self.result

    def call_path(self) -> tuple:
        """Return the places of the calls from the kernel down to the waiting operation."""
        kernel_code = self.block.kernel_code
        path = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if is_kernel_frame(frame):
                path.append((frame.f_code, frame.f_lasti))
                if frame.f_code is kernel_code:
                    break
            frame = frame.f_back
        return tuple(path)


_running: SimulatedThread | None = None
_reversed = False


def current_thread() -> SimulatedThread:
    """Return the thread that is running.

    Raises:
        SimulatorError: no kernel is running.
    """
    if _running is None:
        raise SimulatorError("this belongs inside a kernel, and no kernel is running")
    return _running


@contextlib.contextmanager
def reversed_order() -> Iterator[None]:
    """Run blocks, warps and lanes backwards within this context, to expose missing barriers.

    An asynchronous copy is then made when it is started, the earliest moment, and not when it is waited for, the last.
    """
    global _reversed
    before, _reversed = _reversed, True
    try:
        yield
    finally:
        _reversed = before


def order_is_reversed() -> bool:
    """Tell whether a kernel runs backwards; asynchronous copies then happen at once instead of as late as possible."""
    return _reversed


def in_order(items: list) -> list:
    """Return the items in the order in which they are to run."""
    return items[::-1] if _reversed else items


class Block:
    """One block of a launch."""

    def __init__(
        self, function: Callable, arguments: list, index: Dim3, shape: Dim3, grid: Dim3, dynamic_bytes: int
    ) -> None:
        self.function = function
        self.kernel_code: CodeType = function.__code__
        self.arguments = arguments
        self.index = index
        self.shape = shape
        self.grid = grid
        self.shared = SharedMemory(dynamic_bytes, current_thread)
        self.hub = greenlet.getcurrent()
        self._units: dict[type, object] = {}

    def unit(self, kind: type):
        """Return the block's one object of a class, made at the first use: the state of a part of the hardware."""
        if kind not in self._units:
            self._units[kind] = kind()
        return self._units[kind]

    def body(self) -> None:
        """Run the kernel as the current thread; the greenlet of each thread starts here."""
        self.function(*self.arguments)
        for check in current_thread().at_exit:
            check()

    def run(self) -> None:
        """Run all threads to their end.

        Raises:
            SimulatorError: with the kernel, the thread and the source line.
        """
        nx, ny, nz = self.shape
        threads = [
            SimulatedThread(self, rank, Dim3(rank % nx, rank // nx % ny, rank // (nx * ny)))
            for rank in range(nx * ny * nz)
        ]
        warps = [threads[start : start + WARP_SIZE] for start in range(0, len(threads), WARP_SIZE)]
        while True:
            ran = [self._run_warp(warp) for warp in in_order(warps)]
            waiting = [thread for thread in threads if not thread.ended]
            if not waiting:
                return
            if all(thread.meeting and thread.meeting.key == waiting[0].meeting.key for thread in waiting):
                _complete(waiting, [thread.rank for thread in waiting])
            elif not any(ran):
                raise DivergenceError(report(self, waiting))

    def _run_warp(self, warp: list[SimulatedThread]) -> bool:
        """Run the lanes of a warp until each waits for the whole block or for a condition, or has ended.

        Returns whether any of them could run.
        """
        ready = [thread for thread in warp if thread.can_run]
        if not ready:
            return False
        while ready:
            for thread in in_order(ready):
                self._resume(thread)
            ready = []
            alive = [thread for thread in warp if not thread.ended]
            for thread in alive:
                if thread.meeting is not None and thread.meeting.mask is not None:
                    ready += self._try_to_meet(thread, warp)
            ready += [thread for thread in alive if thread.condition is not None and thread.can_run]
            stuck = any(thread.meeting is not None and thread.meeting.mask is not None for thread in alive)
            if stuck and not ready and all(thread.condition is None for thread in alive):
                raise DivergenceError(report(self, alive))
        return True

    def _try_to_meet(self, first: SimulatedThread, warp: list[SimulatedThread]) -> list[SimulatedThread]:
        """Complete the warp operation for which `first` waits if all lanes of its mask wait for it too."""
        key = first.meeting.key
        mask = first.meeting.mask
        if not mask >> first.lane & 1:
            raise DivergenceError(f"lane {first.lane} is not in its own mask {mask:#010x}\n{report(self, [first])}")
        group = [thread for thread in warp if mask >> thread.lane & 1 and not thread.ended]
        if any(thread.meeting is None or thread.meeting.key != key for thread in group):
            return []
        try:
            _complete(group, [thread.lane for thread in group])
        except SimulatorError as error:
            raise type(error)(f"{error}\n{report(self, group)}") from error
        return group

    def _resume(self, thread: SimulatedThread) -> None:
        global _running
        _running = thread
        thread.condition = None
        try:
            thread.greenlet.switch()
        except SimulatorError as error:
            raise type(error)(f"{self._name(thread)}, at {traceback_location(error.__traceback__)}: {error}") from error
        except Exception as error:
            error.add_note(f"in {self._name(thread)}, at {traceback_location(error.__traceback__)}")
            raise
        finally:
            _running = None

    def _name(self, thread: SimulatedThread) -> str:
        return f"{self.function.__name__}, thread {tuple(thread.threadIdx)} of block {tuple(self.index)}"


def _complete(threads: list[SimulatedThread], numbers: list[int]) -> None:
    """Let threads that wait for the same thing go on, each with its result."""
    tell_each_other(threads)
    combine = threads[0].meeting.combine
    results: Values = {}
    if combine is not None:
        results = combine({n: thread.meeting.value for n, thread in zip(numbers, threads, strict=True)})
    for n, thread in zip(numbers, threads, strict=True):
        thread.result = results.get(n)
        thread.meeting = None


def run_grid(function: Callable, arguments: list, grid: Dim3, shape: Dim3, dynamic_bytes: int) -> None:
    """Run all blocks of a launch, one after the other."""
    if _running is not None:
        raise SimulatorError("a kernel cannot launch a kernel")
    indices = [Dim3(x, y, z) for z in range(grid.z) for y in range(grid.y) for x in range(grid.x)]
    with np.errstate(all="ignore"):  # a GPU gives inf and NaN silently
        for index in in_order(indices):
            Block(function, arguments, index, shape, grid, dynamic_bytes).run()
