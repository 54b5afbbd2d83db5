"""What every launcher needs: taking and checking arrays, sizes of grids, and launches that are cheap to repeat.

A launcher takes torch tensors and Numba device arrays on a GPU, NumPy arrays and torch CPU tensors in the simulator,
without copying. bfloat16 is a torch tensor of that dtype or any array of uint16. It is written as

    @launcher
    def scale(out_NC, inp_NC, weight_C, stream=0):
        arrays, sizes = take(real={"out_NC": out_NC, "inp_NC": inp_NC}, float32={"weight_C": weight_C})
        return [Launch(scale_kernel, sizes.N, 256, (arrays.out_NC, arrays.inp_NC, arrays.weight_C), stream)]

Calling `scale(...)` checks and launches; `scale.prepare(...)` checks and returns the launches, to be called as often as
wanted (a launch costs a fifth of taking the arrays again). Nothing is launched when a check fails.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from numba import cuda

from kernels import SIMULATED

PACK = 8
"""Elements that `elements.load8` and `store8` move at once."""

WARP_SIZE = 32

MAX_SHARED_BYTES = 227 * 1024
"""Shared memory that a block of a Hopper GPU may ask for; 163 KiB on an A100."""

_BYTES_128 = 16


def ceil_div(a: int, b: int) -> int:
    """Divide and round up."""
    return -(-a // b)


# ---- taking arrays -------------------------------------------------------------------------------------------------


class _Reinterpreted:
    """A CUDA array seen as uint16; keeps the owner of the memory alive."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {**owner.__cuda_array_interface__, "typestr": "<u2"}


def as_array(x: object, name: str):
    """Return a NumPy array (simulator) or a Numba device array (GPU) over the memory of `x`, without a copy.

    Raises:
        ValueError: `x` is no array, or lies where the kernels do not run.
    """
    bf16 = str(getattr(x, "dtype", "")) == "torch.bfloat16"
    if hasattr(x, "detach"):
        x = x.detach()
    if SIMULATED:
        if hasattr(x, "__cuda_ndarray__"):
            return x._ary
        if isinstance(x, np.ndarray):
            return x
        if hasattr(x, "numpy") and x.device.type == "cpu":
            return (x.view(sys.modules["torch"].uint16) if bf16 else x).numpy()
        raise ValueError(f"{name}: the simulator takes NumPy arrays and torch CPU tensors, not {type(x).__name__}")
    if getattr(x, "__cuda_ndarray__", False):
        return x
    if hasattr(x, "__cuda_array_interface__"):
        return cuda.as_cuda_array(_Reinterpreted(x) if bf16 else x, sync=False)
    raise ValueError(f"{name}: kernels on a GPU take arrays in its memory, not {type(x).__name__}")


def address(array) -> int:
    """Return the address of the first element of what `as_array` gave."""
    interface = array.__array_interface__ if SIMULATED else array.__cuda_array_interface__
    return interface["data"][0]


def take(**groups: dict[str, object]) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Take the arrays of a launcher and check that they fit together.

    The suffix of a name gives the axes: `out_NC` has axes N and C. All arrays must agree on the size of each letter; a
    digit is a size itself. Axes in front of those named are merged into the first, so (B, T, C) may be given for
    `out_NC`, and any shape for `out_N`.

    Args:
        **groups: Arrays by name, grouped by dtype: `float32`, `int32`, ..., or `real`, whose arrays
            must be all float32 or all bfloat16. An array that is None is left None.

    Returns:
        The arrays by name, and the sizes by letter.

    Raises:
        ValueError: An array has another dtype, dimension, size or device, or is not C-contiguous.
    """
    arrays: dict[str, object] = {}
    sizes: dict[str, int] = {}
    seen_in: dict[str, str] = {}
    devices: dict[str, str] = {}
    for dtype, group in groups.items():
        given = {name: x for name, x in group.items() if x is not None}
        taken = {name: as_array(x, name) for name, x in given.items()}
        _check_dtypes(dtype, taken)
        for name, array in taken.items():
            if not SIMULATED and hasattr(given[name], "device"):
                devices.setdefault(str(given[name].device), name)
            arrays[name] = _fit(name, array, sizes, seen_in)
        arrays.update(dict.fromkeys(set(group) - set(given)))
    if len(devices) > 1:
        raise ValueError(f"arrays on several devices: {', '.join(f'{n} on {d}' for d, n in devices.items())}")
    return SimpleNamespace(**arrays), SimpleNamespace(**sizes)


def _check_dtypes(expected: str, arrays: dict[str, object]) -> None:
    """Check the arrays of one group."""
    for name, array in arrays.items():
        dtype = str(array.dtype)
        if expected == "real":
            if dtype not in ("float32", "uint16"):
                raise ValueError(f"{name} is {dtype}; float32 or bfloat16 (uint16) is needed")
            first = next(iter(arrays))
            if dtype != str(arrays[first].dtype):
                raise ValueError(f"{name} is {dtype} but {first} is {arrays[first].dtype}; both must be the same")
        elif dtype != expected:
            raise ValueError(f"{name} is {dtype}; {expected} is needed")


def _fit(name: str, array, sizes: dict[str, int], seen_in: dict[str, str]):
    """Check one array against the sizes known so far, add its own, and return it with the axes of its suffix."""
    axes = name.rpartition("_")[2]
    if not (array.is_c_contiguous() if hasattr(array, "is_c_contiguous") else array.flags.c_contiguous):
        raise ValueError(f"{name} is not C-contiguous")
    if array.ndim < len(axes):
        raise ValueError(f"{name} has shape {tuple(array.shape)}; the axes {', '.join(axes)} are needed")
    n_merged = array.ndim - len(axes) + 1
    shape = (int(np.prod(array.shape[:n_merged])), *(int(n) for n in array.shape[n_merged:]))
    for axis, size in zip(axes, shape, strict=True):
        wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if size != wanted:
            where = "" if axis.isdigit() else f" in {seen_in[axis]}"
            raise ValueError(f"{name} has shape {tuple(array.shape)}: axis {axis} is {size} but {wanted}{where}")
        seen_in.setdefault(axis, name)
    return array if tuple(array.shape) == shape else array.reshape(*shape)


def n_packs(length: int, *arrays, pack: int = PACK) -> int:
    """Return how many whole packs of elements at the start of each row can be moved with 128-bit accesses.

    Args:
        length: Elements of a row; a one-dimensional array is one row.
        *arrays: What the kernel accesses that way.
        pack: Elements moved at once.

    Returns:
        `length // pack`, or 0 if some row of an array does not start at a multiple of 16 bytes.
    """
    for array in arrays:
        if address(array) % _BYTES_128 or (array.ndim > 1 and length * array.dtype.itemsize % _BYTES_128):
            return 0
    return length // pack


# ---- launches ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def as_stream(stream: object):
    """Return a stream as Numba takes it: 0 for the default one, a Numba stream, or the pointer of another library's."""
    return cuda.external_stream(stream) if isinstance(stream, int) and stream and not SIMULATED else stream


_shared_bytes_allowed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""By compiled kernel, since each overload has a limit of its own."""


def _raise_shared_limit(compiled, configuration) -> None:
    """Let a compiled kernel be launched with as much dynamic shared memory as it is about to be."""
    if _shared_bytes_allowed.get(compiled, 0) >= configuration.sharedmem:
        return
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    handle = compiled._codelibrary.get_cufunc().handle
    (status,) = driver.cuKernelSetAttribute(attribute, configuration.sharedmem, handle, cuda.get_current_device().id)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ValueError(f"{configuration.sharedmem} bytes of shared memory are refused by this GPU: {status.name}")
    _shared_bytes_allowed[compiled] = configuration.sharedmem


def _allow_shared_memory(configured) -> None:
    """Raise the limit of whichever overload Numba chooses, before it is launched; `configured` may be a shared one."""
    if _raise_shared_limit not in configured.pre_launch_callbacks:
        configured.pre_launch_callbacks.append(_raise_shared_limit)


@dataclass
class Launch:
    """A kernel with its grid, block and arguments; calling it launches it, as often as wanted.

    Python floats become float32: no kernel here computes in float64. A grid with a zero launches nothing.

    Raises:
        ValueError: `shared_bytes` is more than any GPU here has.
    """

    kernel: Callable
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    arguments: tuple
    stream: object = 0
    shared_bytes: int = 0
    _configured: Callable | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.shared_bytes > MAX_SHARED_BYTES:
            raise ValueError(
                f"{self.shared_bytes} bytes of shared memory are more than the {MAX_SHARED_BYTES} of a block; "
                "use smaller tiles or fewer stages"
            )
        self.arguments = tuple(np.float32(a) if isinstance(a, float) else a for a in self.arguments)

    def __call__(self) -> None:
        """Launch the kernel."""
        if self._configured is None:
            grid = self.grid if isinstance(self.grid, tuple) else (self.grid,)
            if 0 in grid:
                return
            self._configured = self.kernel[grid, self.block, as_stream(self.stream), self.shared_bytes]
            if self.shared_bytes and not SIMULATED:  # 48 KB are free, but those of arrays of fixed size count, too
                _allow_shared_memory(self._configured)
        self._configured(*self.arguments)


class Prepared(tuple):
    """The launches of one operation, in order; calling it launches them all."""

    def __call__(self) -> None:
        """Launch them all."""
        for launch in self:
            launch()


def launcher(prepare: Callable[..., list[Launch]]) -> Callable[..., None]:
    """Decorate a function that checks and returns launches: calling it launches them, `.prepare(...)` returns them."""

    @functools.wraps(prepare)
    def prepared(*arguments: object, **keywords: object) -> Prepared:
        return Prepared(prepare(*arguments, **keywords))

    @functools.wraps(prepare)
    def run(*arguments: object, **keywords: object) -> None:
        prepared(*arguments, **keywords)()

    run.prepare = prepared
    return run
