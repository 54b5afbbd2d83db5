"""Stand-ins that do not exist yet."""

from __future__ import annotations

from kernels.simulator.errors import SimulatorError


def __getattr__(name: str):
    def missing(*arguments, **keywords):
        raise SimulatorError(f"the simulator does not know {name} yet")

    missing.__name__ = name
    return missing
