"""A GPU in Python: runs Numba CUDA kernels on a CPU, tensor-core kernels too, and reports what a GPU would not.

Numba's own simulator runs one operating-system thread a CUDA thread and knows no warp operations. This one runs
one greenlet a CUDA thread, so it is deterministic and 20 to 100 times faster, and it knows what modern kernels need.

    import kernels                       # chooses the simulator when there is no GPU
    from numba import cuda

    @cuda.jit
    def row_sum(out, inp): ...           # unchanged source
    row_sum[grid, block](out, inp)       # NumPy arrays, written in place

What it knows beyond Numba's: `syncwarp`, the `shfl_*_sync` family, `ballot_sync`, `any/all/eq_sync`; several
`cuda.shared.array` on one line, with an alignment; all options of `cuda.jit`; and through `kernels.ptx` and
`kernels.elements` the stand-ins of PTX instructions (128-bit accesses, `ldmatrix`, `mma.sync`, `cp.async`). Kernels for
Hopper run too (`kernels.ptx_hopper`, `kernels.wgmma`): barriers with phases and bytes, TMA with its swizzles and edges,
`wgmma` from the real descriptors, named barriers, register budgets. A thread that waits lets the others run.

What it reports, with the kernel's name and source line, the thread and the block:
- `OutOfBoundsError`: an index outside an array, negative ones included (Numba would wrap them around);
- `MisalignedError`: a vector access at an address that is no multiple of its size. A shared array declared without
  an alignment lies, on purpose, at the worst address that its declaration allows;
- `DivergenceError`: threads that wait at different barriers or warp operations, with each waiting group; a lane
  missing from its own mask; a deadlock, with what each barrier still lacks: a wrong parity, too few arrivals or bytes;
- `SimulatorError`: a shuffle from a lane that takes no part; shared memory touched while TMA fills it, by a thread that
  neither waited for the copy nor met one that did, or while `wgmma` or a TMA store still has to read it; accumulators
  read before their wait; a missing `fence_async_shared`, `mbarrier_init_fence` or last `bulk_wait`; too
  many arrivals; `LaunchError`: a launch no GPU accepts.
Shared and local memory start as NaN, so that reading before writing shows. `cp.async`, TMA and `wgmma` do their work
only when waited for, so that a missing wait shows. `reversed_order()` runs threads backwards, and such work at once: a
test that compares both orders finds most missing barriers. `tracing()` records each access to the arrays, and
`warp_steps` shows them as a warp makes them.

What it does not check: races that give the same result in both orders, bank conflicts, coalescing, caches, speed, the
rounding order of tensor cores, spills. Numbers are NumPy's: `float32 * 0.5` stays float32 here but is float64 on the
GPU (write `float32(0.5)`); integers are exact Python integers here and wrap at 64 bits there. Blocks run one after the
other, so a grid-wide barrier or a spin on another block never ends.
"""

from kernels.simulator.api import install, jit, warp_collective
from kernels.simulator.errors import DivergenceError, LaunchError, MisalignedError, OutOfBoundsError, SimulatorError
from kernels.simulator.execution import current_thread, reversed_order
from kernels.simulator.memory import SimulatedArray
from kernels.simulator.trace import Access, WarpStep, tracing, warp_steps

__all__ = [
    "Access",
    "DivergenceError",
    "LaunchError",
    "MisalignedError",
    "OutOfBoundsError",
    "SimulatedArray",
    "SimulatorError",
    "WarpStep",
    "current_thread",
    "install",
    "jit",
    "reversed_order",
    "tracing",
    "warp_collective",
    "warp_steps",
]
