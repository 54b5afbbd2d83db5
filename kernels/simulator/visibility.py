"""Which copies into shared memory a thread may read: those whose end it has seen, or was told of by one who has.

A thread sees the end of a phase of an mbarrier when its wait passes. It tells what it has seen at every barrier and
operation of a warp that it takes part in, and at every mbarrier at which it arrives.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.simulator.execution import SimulatedThread

Seen = dict[int, int]
"""By address of an mbarrier, the last phase whose end was seen. Never changed, but replaced, since threads share it."""

NOTHING: Seen = {}


def merged(several: Iterable[Seen]) -> Seen:
    """Return what was seen by any; one of the given objects if it has it all, so that threads go on to share it."""
    different = {id(seen): seen for seen in several if seen}
    together = NOTHING
    for seen in different.values():
        if _covers(seen, together):
            together = seen
        elif not _covers(together, seen):
            together = {**together, **{at: max(phase, together.get(at, phase)) for at, phase in seen.items()}}
    return together


def _covers(seen: Seen, other: Seen) -> bool:
    return all(seen.get(address, -1) >= phase for address, phase in other.items())


def tell_each_other(threads: list[SimulatedThread]) -> None:
    """Let threads that met know what the others have seen."""
    together = merged(thread.seen for thread in threads)
    for thread in threads:
        thread.seen = together
