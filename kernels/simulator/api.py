"""What a kernel finds under `cuda` in the simulator, and the `cuda.jit` that makes kernels of functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import numpy as np
from numba import cuda
from numba.cuda.simulator.kernelapi import FakeCUDAModule

from kernels.simulator.errors import LaunchError, SimulatorError
from kernels.simulator.execution import FULL_MASK, Dim3, Values, current_thread, run_grid
from kernels.simulator.memory import LocalMemory, SimulatedArray
from kernels.simulator.shared import DYNAMIC_SHARED_LIMIT
from kernels.simulator.trace import argument_array

MAX_THREADS_PER_BLOCK = 1024

JIT_OPTIONS = frozenset(
    "argtypes boundscheck cache debug device extensions fastmath forceinline inline launch_bounds lineinfo lto "
    "max_registers opt shared_memory_carveout".split()
)
"""Options of `cuda.jit` that are accepted. They change speed, not results, except `launch_bounds`, which is checked."""


class SimulatedKernel:
    """A function made a kernel by `cuda.jit`; `kernel[grid, block, stream, shared_bytes](*arguments)` runs it."""

    def __init__(self, function: Callable, max_threads: int) -> None:
        self.py_func = function
        self.max_threads = max_threads
        functools.update_wrapper(self, function)

    def __getitem__(self, configuration: tuple) -> Callable[..., None]:
        grid, block, *rest = configuration
        dynamic_bytes = rest[1] if len(rest) > 1 else 0
        grid, block = _dim3(grid), _dim3(block)
        name = self.py_func.__name__
        n_threads = block.x * block.y * block.z
        if not 1 <= n_threads <= self.max_threads:
            raise LaunchError(f"{name}: {n_threads} threads a block; from 1 to {self.max_threads} are possible")
        if min(grid) < 1 or grid.x >= 2**31 or max(grid.y, grid.z) >= 2**16:
            raise LaunchError(f"{name}: no GPU accepts the grid {tuple(grid)}")
        if dynamic_bytes > DYNAMIC_SHARED_LIMIT:
            raise LaunchError(f"{name}: {dynamic_bytes} bytes of shared memory; {DYNAMIC_SHARED_LIMIT} are possible")
        return functools.partial(self._launch, grid, block, dynamic_bytes)

    def __call__(self, *arguments: object) -> object:
        """Run as a device function, from inside a kernel."""
        current_thread()
        return self.py_func(*arguments)

    def _launch(self, grid: Dim3, block: Dim3, dynamic_bytes: int, *arguments: object) -> None:
        names = inspect.signature(self.py_func).bind(*arguments).arguments
        run_grid(self.py_func, [_argument(v, n) for n, v in names.items()], grid, block, dynamic_bytes)


def _dim3(size: int | tuple) -> Dim3:
    sizes = size if isinstance(size, (tuple, list)) else (size,)
    return Dim3(*(int(n) for n in sizes), *(1,) * (3 - len(sizes)))


def _argument(value: object, name: str) -> object:
    """Make of a launch argument what the kernel sees: checked arrays, Python integers, floats as they are."""
    if hasattr(value, "__cuda_ndarray__"):
        value = value._ary
    if isinstance(value, np.ndarray):
        return argument_array(value, name)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (int, float, np.floating, tuple)):
        return value
    raise TypeError(f"argument {name}: a kernel takes arrays and numbers, not {type(value).__name__}")


def jit(function=None, **options):
    """Make a kernel, or with `device=True` a device function, as `numba.cuda.jit` does; signatures are ignored."""
    unknown = set(options) - JIT_OPTIONS
    if unknown:
        raise TypeError(f"cuda.jit has no option {', '.join(sorted(unknown))} in the simulator")

    def decorate(function: Callable) -> Callable:
        if options.get("device"):
            return function
        bounds = options.get("launch_bounds") or MAX_THREADS_PER_BLOCK
        return SimulatedKernel(function, bounds if isinstance(bounds, int) else bounds[0])

    return decorate(function) if inspect.isfunction(function) else decorate


def syncthreads() -> None:
    """Wait for all threads of the block (those that have returned are not waited for)."""
    current_thread().meet("syncthreads", None, None, None)


def _block_vote(name: str, reduce: Callable[[list], int]) -> Callable[[object], int]:
    def combine(values: Values) -> Values:
        return dict.fromkeys(values, reduce([bool(v) for v in values.values()]))

    return lambda value: current_thread().meet(name, None, value, combine)


def syncwarp(mask: int = FULL_MASK) -> None:
    """Wait for the lanes of the mask."""
    current_thread().meet("syncwarp", mask, None, None)


def warp_collective(name: str, mask: int, value: object, combine: Callable[[Values], Values]) -> object:
    """Hand `value` to an operation of the whole warp, and return what `combine` gives for this lane."""
    return current_thread().meet(name, mask, value, combine)


def _shuffle(name: str, source: Callable[[int, int], int]) -> Callable[[int, object, int], object]:
    """Make a shuffle; `source(lane, operand)` is the lane read, or the own lane when that lies outside the warp."""

    def combine(values: Values) -> Values:
        results = {}
        for lane, (_, operand) in values.items():
            other = source(lane, operand)
            other = other if 0 <= other < 32 else lane
            if other not in values:
                raise SimulatorError(f"{name}: lane {lane} reads lane {other}, which takes no part: undefined")
            results[lane] = values[other][0]
        return results

    return lambda mask, value, operand: warp_collective(name, mask, (value, operand), combine)


def _warp_vote(name: str, reduce: Callable[[Values], object]) -> Callable[[int, object], object]:
    def combine(values: Values) -> Values:
        return dict.fromkeys(values, reduce(values))

    return lambda mask, predicate: warp_collective(name, mask, predicate, combine)


def _grid(n: int):
    thread = current_thread()
    shape = thread.block.shape
    index = tuple(thread.blockIdx[i] * shape[i] + thread.threadIdx[i] for i in range(n))
    return index[0] if n == 1 else index


def _gridsize(n: int):
    block = current_thread().block
    size = tuple(block.grid[i] * block.shape[i] for i in range(n))
    return size[0] if n == 1 else size


def _fma(a, b, c):
    """Multiply and add with one rounding, for float32."""
    return np.float32(float(a) * float(b) + float(c))


class _SharedMemoryOfBlock:
    """`cuda.shared`: forwards to the shared memory of the running block."""

    @property
    def array(self) -> Callable[..., SimulatedArray]:
        return current_thread().block.shared.array


_PER_THREAD = {
    "threadIdx": lambda thread: thread.threadIdx,
    "blockIdx": lambda thread: thread.blockIdx,
    "blockDim": lambda thread: thread.block.shape,
    "gridDim": lambda thread: thread.block.grid,
    "laneid": lambda thread: thread.lane,
}


def _attribute(name: str):
    """Look up an attribute of `numba.cuda` that depends on the running thread."""
    if name not in _PER_THREAD:
        raise AttributeError(f"module 'numba.cuda' has no attribute {name!r} in the simulator")
    return _PER_THREAD[name](current_thread())


def install() -> None:
    """Put the simulator in the place of Numba's own: fill in `numba.cuda`. May be called again."""
    stock = FakeCUDAModule((1, 1, 1), (1, 1, 1), 0)
    for name in "atomic fp16 threadfence threadfence_block threadfence_system popc cbrt brev clz ffs selp".split():
        setattr(cuda, name, getattr(stock, name))
    names = {
        "__getattr__": _attribute,
        "jit": jit,
        "warpsize": 32,
        "grid": _grid,
        "gridsize": _gridsize,
        "shared": _SharedMemoryOfBlock(),
        "local": LocalMemory(),
        "fma": _fma,
        "syncthreads": syncthreads,
        "syncthreads_count": _block_vote("syncthreads_count", sum),
        "syncthreads_and": _block_vote("syncthreads_and", lambda votes: int(all(votes))),
        "syncthreads_or": _block_vote("syncthreads_or", lambda votes: int(any(votes))),
        "syncwarp": syncwarp,
        "shfl_sync": _shuffle("shfl_sync", lambda lane, source: source & 31),
        "shfl_xor_sync": _shuffle("shfl_xor_sync", lambda lane, mask: lane ^ mask),
        "shfl_up_sync": _shuffle("shfl_up_sync", lambda lane, delta: lane - delta),
        "shfl_down_sync": _shuffle("shfl_down_sync", lambda lane, delta: lane + delta),
        "ballot_sync": _warp_vote("ballot_sync", lambda votes: sum(1 << n for n, vote in votes.items() if vote)),
        "any_sync": _warp_vote("any_sync", lambda votes: any(votes.values())),
        "all_sync": _warp_vote("all_sync", lambda votes: all(votes.values())),
        "eq_sync": _warp_vote("eq_sync", lambda votes: len(set(votes.values())) == 1),
    }
    for name, value in names.items():
        setattr(cuda, name, value)
