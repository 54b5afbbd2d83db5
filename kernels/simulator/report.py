"""Tells what the threads of a block wait for when none of them can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.simulator.errors import frame_location

if TYPE_CHECKING:
    from kernels.simulator.execution import Block, SimulatedThread


def report(block: Block, waiting: list[SimulatedThread]) -> str:
    """Say where each group of waiting threads waits, and for what."""
    groups: dict[tuple, list[SimulatedThread]] = {}
    for thread in waiting:
        groups.setdefault((_waits_for(thread), frame_location(thread.greenlet.gr_frame)), []).append(thread)
    lines = [f"{block.function.__name__}, block {tuple(block.index)}: {len(waiting)} threads wait"]
    for (what, place), threads in groups.items():
        ranks = [thread.rank for thread in threads]
        lines.append(f"  {len(ranks)} threads ({_ranges(ranks)}) at {what}, {place}")
    return "\n".join(lines)


def _waits_for(thread: SimulatedThread) -> str:
    if thread.meeting is None:
        return thread.condition.describe()
    operation, mask, _ = thread.meeting.key
    return operation if mask is None else f"{operation} with mask {mask:#010x}"


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers shortly: 0-15, 20."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
