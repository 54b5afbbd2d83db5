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
    """Return what was seen by any."""
    different = {id(seen): seen for seen in several if seen}
    if len(different) <= 1:
        return next(iter(different.values()), NOTHING)
    together: Seen = {}
    for seen in different.values():
        for address, phase in seen.items():
            together[address] = max(phase, together.get(address, phase))
    return together


def tell_each_other(threads: list[SimulatedThread]) -> None:
    """Let threads that met know what the others have seen."""
    together = merged(thread.seen for thread in threads)
    for thread in threads:
        thread.seen = together
