"""Which family of kernels a GPU gets.

`sm_90a` has Hopper's own instructions; `sm_80` runs on every GPU since the A100. Production kernels ask here when they
are prepared.
"""

from __future__ import annotations

import functools

from numba import cuda

from kernels import SIMULATED
from kernels.launch import MAX_SHARED_BYTES
from kernels.registry import ARCHITECTURES

HOPPER = (9, 0)
OLDEST = (8, 0)

_forced: str | None = None


@functools.cache
def _of_device() -> str:
    """Return the family for the current GPU.

    Raises:
        RuntimeError: it is older than any kernel here.
    """
    capability = tuple(cuda.get_current_device().compute_capability)
    if capability < OLDEST:
        raise RuntimeError(f"this GPU has compute capability {capability}, the kernels need {OLDEST}: use another GPU")
    return "sm_90a" if capability == HOPPER else "sm_80"


def architecture() -> str:
    """Return "sm_90a" or "sm_80": what was forced, else what suits the GPU; the simulator simulates sm_80."""
    return _forced or ("sm_80" if SIMULATED else _of_device())


def force_architecture(name: str | None) -> None:
    """Let all launches prepared from now on take the kernels of one family, or with None those that suit the GPU.

    Raises:
        ValueError: there is no family of that name.
    """
    global _forced
    if name is not None and name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    _forced = name


@functools.cache
def n_multiprocessors() -> int:
    """Return how many blocks run side by side when each fills a multiprocessor; one in the simulator."""
    return 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT


@functools.cache
def most_shared_bytes() -> int:
    """Return the bytes of shared memory that a block may ask for: 227 KiB on Hopper, 163 on an A100, 99 on others."""
    return MAX_SHARED_BYTES if SIMULATED else cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
