"""The list of all kernels with their signatures, so that every one can be compiled on a machine without a GPU."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from numba import cuda

import kernels

REAL_DTYPES = {"float32": "float32", "bfloat16": "uint16"}
"""The dtypes that `real` stands for in a signature, and the Numba type that holds each."""


@dataclass(frozen=True)
class KernelEntry:
    """One kernel: its name, its Python function, its signature and the options given to `cuda.jit`."""

    name: str
    function: Callable
    signature: str
    options: dict

    def signatures(self) -> dict[str, str]:
        """Return the Numba signature of each dtype; one under "any" if the kernel does not depend on it."""
        if "real" not in self.signature:
            return {"any": self.signature}
        return {dtype: self.signature.replace("real", held) for dtype, held in REAL_DTYPES.items()}


_entries: dict[str, KernelEntry] = {}


def kernel(signature: str, **options: object) -> Callable[[Callable], Callable]:
    """Decorate a kernel: compile it with `cuda.jit(**options)` when it is launched, and list it.

    Args:
        signature: Numba's notation, for example `"void(real[:, ::1], float32[::1], int64)"`, where `real` stands
            for float32 and for bfloat16 (held as uint16).
        **options: For `cuda.jit`; `launch_bounds` is the greatest number of threads a block.
    """

    def decorate(function: Callable) -> Callable:
        name = f"{function.__module__.removeprefix('kernels.')}.{function.__name__}"
        _entries[name] = KernelEntry(name, function, signature, options)
        return cuda.jit(**options)(function)

    return decorate


def all_kernels() -> dict[str, KernelEntry]:
    """Import every module of the package and return all kernels by name."""
    for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if not module.name.startswith("kernels.simulator"):
            importlib.import_module(module.name)
    return dict(sorted(_entries.items()))
