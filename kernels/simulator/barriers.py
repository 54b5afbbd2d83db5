# ruff: noqa: D103 (the descriptions are in kernels/ptx_hopper.py)
"""Hopper's barriers and registers of warp groups in the simulator: the stand-ins, and the state behind them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from kernels.simulator.api import warp_collective
from kernels.simulator.errors import DivergenceError, SimulatorError, frame_location
from kernels.simulator.execution import FULL_MASK, WARP_SIZE, Values, current_thread
from kernels.simulator.visibility import Seen, merged

GROUP_SIZE = 128
REGISTERS = 65536
"""Of a multiprocessor of a Hopper GPU, 32 bits each (CUDA C++ Programming Guide, compute capabilities)."""

_MOST_BYTES = 2**20 - 1
"""That a phase of a barrier can expect (PTX ISA, mbarrier: tx-count)."""


# ---- barriers in shared memory -------------------------------------------------------------------------------------


@dataclass
class Barrier:
    """One mbarrier: the phase under way, what it still expects, and the copies that will count at it."""

    address: int
    count: int
    made_by: int
    phase: int = 0
    missing: int = 0
    bytes_missing: int = 0
    visible_to_tma: bool = False
    copies: list[Callable[[], int]] = field(default_factory=list)
    """Each makes one copy and returns its bytes."""
    told: Seen = field(default_factory=dict)
    """What the threads have seen that arrived."""
    last_told: tuple = (None, None, None, None)
    """Arguments and result of `tell` at its last call: threads that knew the same share one object again."""

    def arrive(self, n_bytes: int = 0) -> None:
        """Count an arrival, which may let the phase expect more bytes."""
        if self.missing == 0:
            raise SimulatorError(f"more than the {self.count} arrivals that {self} expects in a phase")
        self.missing -= 1
        self.told = merged([self.told, current_thread().seen])
        self._count(n_bytes)

    def _count(self, n_bytes: int) -> None:
        self.bytes_missing += n_bytes
        if abs(self.bytes_missing) > _MOST_BYTES:
            raise SimulatorError(f"{self}: a phase can expect {_MOST_BYTES} bytes")
        if self.missing == 0 and self.bytes_missing == 0:
            self.phase += 1
            self.missing = self.count

    def deliver(self) -> None:
        """Make the copies that were started, and count their bytes."""
        copies, self.copies = self.copies, []
        for copy in copies:
            self._count(-copy())

    def is_over(self, parity: int) -> bool:
        """Tell whether the phase of this parity is over; copies arrive now at the latest."""
        if self.phase % 2 == parity:
            self.deliver()
        return self.phase % 2 != parity

    def tell(self, seen: Seen) -> Seen:
        """Return what a thread has seen whose wait passes now."""
        before, told, phase, result = self.last_told
        if before is not seen or told is not self.told or phase != self.phase:
            result = merged([seen, self.told, {self.address: self.phase - 1}])
            self.last_told = (seen, self.told, self.phase, result)
        return result

    def __str__(self) -> str:
        return (
            f"the barrier at {self.address} (phase {self.phase}, {self.missing} of {self.count} arrivals and "
            f"{self.bytes_missing} bytes missing)"
        )


class Barriers:
    """All mbarriers of a block, by address."""

    def __init__(self) -> None:
        self.at: dict[int, Barrier] = {}

    def find(self, address: int) -> Barrier:
        """Return the barrier at a shared address."""
        barrier = self.at.get(int(address))
        if barrier is None:
            raise SimulatorError(f"there is no initialised barrier at shared address {address}")
        return barrier


def find_barrier(address: int) -> Barrier:
    """Return a barrier of the running block."""
    return current_thread().block.unit(Barriers).find(address)


def mbarrier_init(address: int, count: int) -> None:
    thread = current_thread()
    address, count = int(address), int(count)
    thread.block.shared.check_address(address, 8, 8)
    if not 1 <= count <= _MOST_BYTES:
        raise SimulatorError(f"a barrier cannot expect {count} arrivals")
    thread.block.unit(Barriers).at[address] = Barrier(address, count, thread.rank, missing=count)


def mbarrier_init_fence() -> None:
    thread = current_thread()
    for barrier in thread.block.unit(Barriers).at.values():
        barrier.visible_to_tma |= barrier.made_by == thread.rank


def mbarrier_expect(address: int, n_bytes: int) -> None:
    find_barrier(address).arrive(int(n_bytes))


def mbarrier_arrive_if(address: int, predicate: int) -> None:
    barrier = find_barrier(address)
    if predicate:
        barrier.arrive()


def mbarrier_wait(address: int, parity: int) -> None:
    thread = current_thread()
    barrier = find_barrier(address)
    parity = int(parity)
    if parity not in (0, 1):
        raise SimulatorError(f"the parity of a phase is 0 or 1, not {parity}")
    thread.wait_until(lambda: barrier.is_over(parity), lambda: f"mbarrier_wait for parity {parity} of {barrier}")
    thread.seen = barrier.tell(thread.seen)


# ---- named barriers ------------------------------------------------------------------------------------------------


@dataclass
class NamedBarrier:
    """One of a block's 16 hardware barriers."""

    n_threads: int = 0
    arrived: int = 0
    phase: int = 0
    told: Seen = field(default_factory=dict)
    """What the threads have seen that have come."""


class NamedBarriers:
    """The hardware barriers of a block, by number."""

    def __init__(self) -> None:
        self.numbered = [NamedBarrier() for _ in range(16)]


def _come_to(number: int, n_threads: int) -> NamedBarrier:
    number, n_threads = int(number), int(n_threads)
    if not 1 <= number <= 15:
        raise SimulatorError(f"barrier {number}: 1 to 15 are free to use, 0 is that of syncthreads")
    if n_threads % WARP_SIZE or n_threads < WARP_SIZE:
        raise SimulatorError(f"barrier {number} is for {n_threads} threads; whole warps are needed")
    barrier = current_thread().block.unit(NamedBarriers).numbered[number]
    if barrier.arrived and barrier.n_threads != n_threads:
        raise SimulatorError(f"barrier {number} is for {barrier.n_threads} threads, and here for {n_threads}")
    barrier.n_threads = n_threads
    barrier.arrived += 1
    barrier.told = merged([barrier.told, current_thread().seen])
    if barrier.arrived == n_threads:
        barrier.arrived = 0
        barrier.phase += 1
    return barrier


def barrier_sync(number: int, n_threads: int) -> None:
    thread = current_thread()
    phase = thread.block.unit(NamedBarriers).numbered[int(number) % 16].phase
    barrier = _come_to(number, n_threads)
    thread.wait_until(
        lambda: barrier.phase != phase,
        lambda: f"barrier_sync({number}, {n_threads}), to which {barrier.arrived} have come",
    )
    thread.seen = merged([thread.seen, barrier.told])


def barrier_arrive(number: int, n_threads: int) -> None:
    _come_to(number, n_threads)


# ---- warps and warp groups -----------------------------------------------------------------------------------------


def warp_uniform(x: int) -> int:
    def combine(values: Values) -> Values:
        return dict.fromkeys(values, values[0])

    return warp_collective("warp_uniform", FULL_MASK, x, combine)


@dataclass
class _Gathering:
    """An operation of a warp group to which not all its threads have come yet."""

    key: tuple
    started_at: str
    values: Values = field(default_factory=dict)
    results: Values | None = None


class Gatherings:
    """The operations under way, by warp group."""

    def __init__(self) -> None:
        self.of_group: dict[int, _Gathering] = {}


def group_collective(name: str, value: object, combine: Callable[[Values], Values]) -> object:
    """Hand `value` to an operation of the whole warp group, and return what `combine` gives for this thread."""
    thread = current_thread()
    group, rank = divmod(thread.rank, GROUP_SIZE)
    under_way = thread.block.unit(Gatherings).of_group
    key = (name, thread.call_path())
    if group not in under_way:
        under_way[group] = _Gathering(key, frame_location(sys._getframe(1)))
    gathering = under_way[group]
    if gathering.key != key:
        raise DivergenceError(
            f"{name} needs all 128 threads of warp group {group}, but {len(gathering.values)} of them are at "
            f"{gathering.key[0]}, {gathering.started_at}"
        )
    gathering.values[rank] = value
    if len(gathering.values) == GROUP_SIZE:
        del under_way[group]
        gathering.results = combine(gathering.values)
    thread.wait_until(
        lambda: gathering.results is not None,
        lambda: f"{name}, to which {len(gathering.values)} of 128 threads of warp group {group} have come",
    )
    return gathering.results.get(rank)


class Registers:
    """How many registers each thread of a warp group has, by group; all have the same number at the start."""

    def __init__(self) -> None:
        sizes = current_thread().block.shape
        self.n_groups, rest = divmod(sizes.x * sizes.y * sizes.z, GROUP_SIZE)
        if rest:
            raise SimulatorError("setmaxnreg needs a block of whole warp groups of 128 threads")
        at_start = min(REGISTERS // (self.n_groups * GROUP_SIZE) // 8 * 8, 248)
        self.of_group = dict.fromkeys(range(self.n_groups), at_start)


def _set_registers(n: int, name: str, grows: bool) -> None:
    thread = current_thread()
    group = thread.rank // GROUP_SIZE
    registers = thread.block.unit(Registers)
    if not 24 <= n <= 256 or n % 8:
        raise SimulatorError(f"{name}({n}): a multiple of 8 from 24 to 256 is needed")
    before = group_collective(name, n, lambda values: dict.fromkeys(values, registers.of_group[group]))
    if (before > n) if grows else (before < n):
        raise SimulatorError(f"{name}({n}): warp group {group} has {before} registers a thread")

    def fits() -> bool:
        others = sum(held for other, held in registers.of_group.items() if other != group)
        return (others + n) * GROUP_SIZE <= REGISTERS

    thread.wait_until(fits, lambda: f"{name}({n}), for which other warp groups hold too many registers")
    registers.of_group[group] = n


def increase_registers(n: int) -> None:
    _set_registers(n, "increase_registers", grows=True)


def decrease_registers(n: int) -> None:
    _set_registers(n, "decrease_registers", grows=False)
