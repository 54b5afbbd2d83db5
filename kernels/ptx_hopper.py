"""The instructions that only Hopper has (sm_90a): barriers in shared memory, TMA copies, registers of warp groups.

As `kernels.ptx`, whose rules hold here too; products with `wgmma` are in `kernels.wgmma`. A kernel that uses these is
registered with `@kernel(..., architectures=("sm_90a",))`.

The Tensor Memory Accelerator (TMA) copies whole boxes between a matrix in global memory and shared memory. One thread
starts a copy and goes on. A box is laid out in shared memory as rows of 128 bytes; byte address bits 4 to 6 are XORed
with bits 7 to 9 (the 128-byte swizzle), so that neither rows nor columns of it meet in one bank. A box must start at a
multiple of 1024 bytes. What the matrix looks like is said by a `kernels.tensor_map.TensorMap`, whose `array` the kernel
takes; coordinates count elements, `x` along the contiguous axis. They may lie past the end, and for loads below zero;
`x` must be a multiple of 16 bytes. Otherwise, and at a store that starts below zero, an H100 stops: "illegal
instruction".

A barrier (mbarrier) is 8 bytes of shared memory that counts two things: arrivals of threads and bytes of copies. Its
phase is over when all expected arrivals and bytes have come, and the next one begins. Phases are numbered by parity: a
wait for parity 0 passes when the first phase is over, for 1 when the second is, and so on; a wait for parity 1 on a
fresh barrier passes at once. Shared addresses are those of `kernels.ptx.shared_address`.
"""

from __future__ import annotations

from kernels import SIMULATED
from kernels.intrinsics import device_operation, element_pointer, emit, on_registers

if not SIMULATED:
    from llvmlite import ir
    from numba.cuda import types

instruction = device_operation("kernels.simulator.hopper")

EVICT_FIRST = 0x12F0000000000000
"""A policy for the L2 cache: what createpolicy.fractional.L2::evict_first gives for the fraction 1.0."""


def _effects(text: str, operands: str):
    """Generate an instruction that reads or writes memory or synchronises; an array stands for its address."""

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(ir.IntType(64), 0)
        values = [
            element_pointer(context, builder, kind, value, zero) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        emit(builder, text, "", operands, values, effects=True)
        return context.get_dummy_value()

    return generate


def _with_literal(text: str, literal):
    """Make signature and generator of an instruction whose only operand is a literal number, written for %d."""
    if not isinstance(literal, types.IntegerLiteral):
        return None
    text = text % literal.literal_value

    def generate(context, builder, signature, arguments):
        emit(builder, text, "", "", [], effects=True)
        return context.get_dummy_value()

    return types.void(literal), generate


# ---- barriers in shared memory -------------------------------------------------------------------------------------


@instruction
def mbarrier_init(typing_context, address, count):
    """Make of 8 bytes a barrier whose phases each expect `count` arrivals [mbarrier: mbarrier.init]."""
    return types.void(types.uint32, types.uint32), _effects("mbarrier.init.shared::cta.b64 [$0], $1;", "rr")


@instruction
def mbarrier_init_fence(typing_context):
    """Make this thread's new barriers visible to TMA; threads see them after `syncthreads` [fence.mbarrier_init]."""
    return types.void(), _effects("fence.mbarrier_init.release.cluster; fence.proxy.async;", "")


@instruction
def mbarrier_expect(typing_context, address, n_bytes):
    """Arrive, and let this phase expect `n_bytes` more of copies [mbarrier: mbarrier.arrive.expect_tx]."""
    text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;"
    return types.void(types.uint32, types.uint32), _effects(text, "rr")


@instruction
def mbarrier_arrive_if(typing_context, address, predicate):
    """Arrive once if `predicate` is not 0, without a branch [mbarrier: mbarrier.arrive]."""
    text = "{ .reg .pred p; setp.ne.b32 p, $1, 0; @p mbarrier.arrive.shared::cta.b64 _, [$0]; }"
    return types.void(types.uint32, types.uint32), _effects(text, "rr")


@instruction
def mbarrier_wait(typing_context, address, parity):
    """Wait until the phase of this parity is over; what its copies brought may be read then.

    The form without `.acquire.cluster`, which throws away the first-level cache at each wait.
    [mbarrier: mbarrier.try_wait.parity]
    """
    text = (
        "{ .reg .pred over; again: mbarrier.try_wait.parity.shared::cta.b64 over, [$0], $1; "
        "@over bra done; bra again; done: }"
    )
    return types.void(types.uint32, types.uint32), _effects(text, "rr")


# ---- TMA: boxes of matrices ----------------------------------------------------------------------------------------


def _tma_load(axes: int, tensor_map):
    coordinates = ", ".join(f"${2 + axis}" for axis in range(axes))
    text = f"cp.async.bulk.tensor.{axes}d.shared::cluster.global.mbarrier::complete_tx::bytes"
    text += f" [$0], [$1, {{{coordinates}}}], [${2 + axes}];"
    arguments = [types.uint32, tensor_map, *[types.int32] * axes, types.uint32]
    return types.void(*arguments), _effects(text, "rl" + "r" * axes + "r")


def _tma_store(name: str, axes: int, tensor_map, policy: bool = False):
    coordinates = ", ".join(f"${1 + axis}" for axis in range(axes))
    text = f"{name}.bulk_group{'.L2::cache_hint' if policy else ''}"
    text += f" [$0, {{{coordinates}}}], [${1 + axes}]{f', ${2 + axes}' if policy else ''};"
    arguments = [tensor_map, *[types.int32] * axes, types.uint32] + [types.uint64] * policy
    return types.void(*arguments), _effects(text, "l" + "r" * axes + "r" + "l" * policy)


@instruction
def tma_prefetch_map(typing_context, tensor_map):
    """Fetch a tensor map ahead of its first use [Data Movement: prefetch.tensormap]."""
    return types.void(tensor_map), _effects("prefetch.tensormap [$0];", "l")


@instruction
def tma_load_2d(typing_context, to_address, tensor_map, x, y, barrier):
    """Start to copy the box at (x, y) to a shared address; its bytes count at `barrier`.

    Elements outside the matrix arrive as zeros and count too. [Asynchronous copy: cp.async.bulk.tensor]
    """
    return _tma_load(2, tensor_map)


@instruction
def tma_load_3d(typing_context, to_address, tensor_map, x, y, z, barrier):
    """Like tma_load_2d for an array of three axes [Asynchronous copy: cp.async.bulk.tensor]."""
    return _tma_load(3, tensor_map)


@instruction
def tma_prefetch_3d(typing_context, tensor_map, x, y, z):
    """Start to bring the box at (x, y, z) into the L2 cache only [Asynchronous copy: cp.async.bulk.prefetch.tensor]."""
    text = "cp.async.bulk.prefetch.tensor.3d.L2.global [$0, {$1, $2, $3}];"
    return types.void(tensor_map, types.int32, types.int32, types.int32), _effects(text, "lrrr")


@instruction
def tma_store_2d(typing_context, tensor_map, x, y, from_address):
    """Start to copy a box from a shared address to (x, y); what lies outside the matrix is left out.

    Before it, every thread that wrote the box calls `fence_async_shared`, and all meet; after it, `bulk_commit`.
    The edge along x is cut to whole 16 bytes only: see `kernels.tensor_map`. [Asynchronous copy: cp.async.bulk.tensor]
    """
    return _tma_store("cp.async.bulk.tensor.2d.global.shared::cta", 2, tensor_map)


@instruction
def tma_store_3d(typing_context, tensor_map, x, y, z, from_address):
    """Like tma_store_2d for an array of three axes [Asynchronous copy: cp.async.bulk.tensor]."""
    return _tma_store("cp.async.bulk.tensor.3d.global.shared::cta", 3, tensor_map)


@instruction
def tma_store_2d_hinted(typing_context, tensor_map, x, y, from_address, policy):
    """Like tma_store_2d with a policy for the L2 cache, EVICT_FIRST [cp.async.bulk.tensor]."""
    return _tma_store("cp.async.bulk.tensor.2d.global.shared::cta", 2, tensor_map, policy=True)


@instruction
def tma_reduce_add_2d(typing_context, tensor_map, x, y, from_address):
    """Like tma_store_2d, but add the box to what is there; each sum is rounded to the matrix's dtype.

    Additions of several boxes to one place have no fixed order. [Asynchronous copy: cp.reduce.async.bulk.tensor]
    """
    return _tma_store("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile", 2, tensor_map)


@instruction
def bulk_load(typing_context, to_address, array, index, n_bytes, barrier):
    """Start to copy `n_bytes` from element `index` of an array to a shared address; they count at `barrier`.

    Both addresses and the number must be multiples of 16. [Asynchronous copy: cp.async.bulk]
    """

    def generate(context, builder, signature, arguments):
        to_address, array, index, n_bytes, barrier = arguments
        pointer = element_pointer(context, builder, signature.args[1], array, index)
        text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
        emit(builder, text, "", "rlrr", [to_address, pointer, n_bytes, barrier], effects=True)
        return context.get_dummy_value()

    return types.void(types.uint32, array, types.int64, types.uint32, types.uint32), generate


@instruction
def bulk_commit(typing_context):
    """Close the group of this thread's stores started since the last one [cp.async.bulk.commit_group]."""
    return types.void(), _effects("cp.async.bulk.commit_group;", "")


@instruction
def bulk_wait(typing_context, n_pending):
    """Wait until at most `n_pending` (a literal) of this thread's groups are under way [cp.async.bulk.wait_group].

    A kernel must wait for its last group: shared memory must live until it has been read.
    """
    return _with_literal("cp.async.bulk.wait_group %d;", n_pending)


@instruction
def bulk_wait_read(typing_context, n_pending):
    """Like bulk_wait, but only until shared memory has been read and may be reused [cp.async.bulk.wait_group.read]."""
    return _with_literal("cp.async.bulk.wait_group.read %d;", n_pending)


@instruction
def fence_async_shared(typing_context):
    """Let later TMA stores and wgmma see what this thread wrote to shared memory [membar: fence.proxy.async]."""
    return types.void(), _effects("fence.proxy.async.shared::cta;", "")


# ---- warps and warp groups -----------------------------------------------------------------------------------------


@instruction
def barrier_sync(typing_context, number, n_threads):
    """Wait at barrier `number` (1 to 15) until `n_threads`, whole warps, have come to it [bar.sync]."""
    return types.void(types.uint32, types.uint32), _effects("bar.sync $0, $1;", "rr")


@instruction
def barrier_arrive(typing_context, number, n_threads):
    """Come to barrier `number` without waiting; `n_threads` are those that wait and those that do not [bar.arrive]."""
    return types.void(types.uint32, types.uint32), _effects("bar.arrive $0, $1;", "rr")


@instruction
def warp_uniform(typing_context, x):
    """Return lane 0's number in all lanes of the warp, so that the compiler knows it to be the same [shfl.sync.idx]."""
    text = "shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;"
    return types.uint32(types.uint32), on_registers(text, "r", "r", effects=True)


@instruction
def increase_registers(typing_context, n):
    """Let each thread of this warp group have `n` registers (a literal, a multiple of 8, 24 to 256) [setmaxnreg.inc].

    It waits until others have given up enough. The kernel needs `launch_bounds=(threads, 1)`.
    """
    return _with_literal("setmaxnreg.inc.sync.aligned.u32 %d;", n)


@instruction
def decrease_registers(typing_context, n):
    """Give up all but `n` registers of each thread of this warp group, for others to take [setmaxnreg.dec]."""
    return _with_literal("setmaxnreg.dec.sync.aligned.u32 %d;", n)
