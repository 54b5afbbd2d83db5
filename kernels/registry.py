"""The list of all kernels with their signatures, so that every one can be compiled on a machine without a GPU."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from numba import cuda

import kernels

ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a")}
"""The GPUs that kernels are written for, with their compute capability: A100 and all after it, and Hopper."""

REAL_DTYPES = {"float32": "float32", "bfloat16": "uint16"}
"""The dtypes that `real` stands for in a signature, and the Numba type that holds each."""


@dataclass(frozen=True)
class KernelEntry:
    """One kernel: its name, function, signatures by variant, architectures, the options of `cuda.jit`, what it made."""

    name: str
    function: Callable
    signatures: dict[str, str]
    architectures: tuple[str, ...]
    options: dict
    compiled: Callable


_entries: dict[str, KernelEntry] = {}


def _variants(signatures: tuple[str, ...]) -> dict[str, str]:
    """Write out what `real` stands for; a variant is named by its dtype, or by its place when there is only that."""
    variants = {}
    for place, signature in enumerate(signatures):
        for dtype, held in REAL_DTYPES.items():
            name = dtype if "real" in signature else "only" if len(signatures) == 1 else str(place)
            variants[name] = signature.replace("real", held)
    return variants


def kernel(
    *signatures: str, name: str | None = None, architectures: tuple[str, ...] = tuple(ARCHITECTURES), **options: object
) -> Callable[[Callable], Callable]:
    """Decorate a kernel: compile it with `cuda.jit(**options)` when it is launched, keep the result on disk, list it.

    Args:
        *signatures: In Numba's notation, for example `"void(real[:, ::1], float32[::1], int64)"`, where `real` stands
            for float32 and for bfloat16 (held as uint16).
        name: Its name in the list when one source makes several kernels; by default that of the function.
        architectures: Those it can be compiled for; `("sm_90a",)` for a kernel with Hopper's own instructions.
        **options: For `cuda.jit`; `launch_bounds` is the greatest number of threads a block.
    """

    def decorate(function: Callable) -> Callable:
        listed = f"{function.__module__.removeprefix('kernels.')}.{name or function.__name__}"
        compiled = cuda.jit(**options)(function)
        _entries[listed] = KernelEntry(listed, function, _variants(signatures), architectures, options, compiled)
        if not kernels.SIMULATED:
            from kernels.compile_cache import CompiledKernels

            compiled._cache = CompiledKernels(compiled)
        return compiled

    return decorate


def registered() -> Iterable[KernelEntry]:
    """Return the kernels of the modules that are imported."""
    return _entries.values()


def all_kernels() -> dict[str, KernelEntry]:
    """Import every module of the package that may hold kernels and return all kernels by name."""
    for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if not module.name.startswith(("kernels.simulator", "kernels.compile_cache")):
            importlib.import_module(module.name)
    return dict(sorted(_entries.items()))
