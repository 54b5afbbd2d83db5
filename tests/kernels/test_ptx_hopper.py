"""Hopper's instructions against independent formulas: in the simulator, and on a Hopper GPU where there is one."""

from __future__ import annotations


import numpy as np
import pytest

from kernels import SIMULATED, accumulators, host, ptx, ptx_hopper, wgmma  # must come before numba
from kernels.launch import Launch
from kernels.simulator import reversed_order
from kernels.tensor_map import TensorMap

from numba import cuda, uint8, uint32  # isort: skip

if not SIMULATED and cuda.get_current_device().compute_capability[0] != 9:
    pytest.skip("these are instructions of Hopper GPUs", allow_module_level=True)

RNG = np.random.default_rng(5)
SHARED_BYTES = 200 * 1024
BOX_BYTES = 64 * 128

only_simulated = pytest.mark.skipif(not SIMULATED, reason="a GPU would hang or give anything")


def random_bf16(*shape: int) -> np.ndarray:
    return host.to_bf16(RNG.standard_normal(shape).astype(np.float32))


def run(kernel, n_threads: int, *arguments, shared_bytes: int = SHARED_BYTES) -> list[np.ndarray]:
    """Launch one block and return the arguments as they are afterwards; in the simulator in both orders."""

    def once() -> list:
        arrays = [host.to_device(a) if isinstance(a, np.ndarray) else a for a in arguments]
        Launch(kernel, 1, n_threads, tuple(getattr(a, "array", a) for a in arrays), 0, shared_bytes)()
        return [host.to_host(a) for a in arrays if hasattr(a, "shape") and not isinstance(a, TensorMap)]

    results = once()
    if SIMULATED:
        with reversed_order():
            for one, other in zip(results, once(), strict=True):
                np.testing.assert_array_equal(one, other)
    return results


def swizzled(byte_address: np.ndarray) -> np.ndarray:
    """CUTLASS's Swizzle<3, 4, 3>: bits 7 to 9 are XORed into bits 4 to 6."""
    return byte_address ^ ((byte_address & 0b1110000000) >> 3)


@cuda.jit(device=True)
def aligned_start(shared):
    """The first shared address that is a multiple of 1024."""
    return (ptx.shared_address(shared, 0) + uint32(1023)) // uint32(1024) * uint32(1024)


# ---- a whole product: the instructions together --------------------------------------------------------------------

STAGES = 2
COLUMNS = 128
STAGE_BYTES = (128 + COLUMNS) * 128
BARRIERS = STAGES * STAGE_BYTES + 2 * BOX_BYTES

product = wgmma.wgmma_ss(COLUMNS)
finish = wgmma.wgmma_wait_for(COLUMNS // 2)
zeros = accumulators.zero_accumulators(COLUMNS // 2)
store_left = accumulators.store_bf16_box(COLUMNS // 2, 0)
store_right = accumulators.store_bf16_box(COLUMNS // 2, 64)


@cuda.jit(device=True)
def produce_device(base, map_a, map_b, K):
    """One thread: keep the ring of stages full."""
    step = 0
    while step * 64 < K:
        stage = base + step % STAGES * STAGE_BYTES
        full = base + BARRIERS + step % STAGES * 16
        ptx_hopper.mbarrier_wait(full + 8, (step // STAGES + 1) % 2)
        ptx_hopper.mbarrier_expect(full, STAGE_BYTES)
        ptx_hopper.tma_load_2d(stage, map_a, step * 64, 0, full)
        ptx_hopper.tma_load_2d(stage + 128 * 128, map_b, step * 64, 0, full)
        step += 1


@cuda.jit(device=True)
def consume_device(base, group, thread, K):
    """A warp group: multiply 64 rows of each stage, and return their sums."""
    acc = zeros()
    step = 0
    while step * 64 < K:
        stage = base + step % STAGES * STAGE_BYTES
        full = base + BARRIERS + step % STAGES * 16
        ptx_hopper.mbarrier_wait(full, step // STAGES % 2)
        a = wgmma.wgmma_descriptor(stage + group * BOX_BYTES)
        acc = product(acc, a, wgmma.wgmma_descriptor(stage + 128 * 128), step)
        acc = finish(acc)
        ptx_hopper.mbarrier_arrive_if(full + 8, thread == 0)
        step += 1
    return acc


@cuda.jit(launch_bounds=(384, 1))
def product_kernel(map_out, map_a, map_b, K):
    """Multiply 128 x K by the transpose of COLUMNS x K: one producer and two consumer warp groups."""
    base = aligned_start(cuda.shared.array(0, uint8, 1024))
    barriers = base + BARRIERS
    if cuda.threadIdx.x == 0:
        for stage in range(STAGES):
            ptx_hopper.mbarrier_init(barriers + 16 * stage, 1)
            ptx_hopper.mbarrier_init(barriers + 16 * stage + 8, 2)
        ptx_hopper.mbarrier_init_fence()
    cuda.syncthreads()
    warp_group = ptx_hopper.warp_uniform(uint32(cuda.threadIdx.x // 128))
    if warp_group == 0:
        ptx_hopper.decrease_registers(40)
        if cuda.threadIdx.x == 0:
            ptx_hopper.tma_prefetch_map(map_a)
            produce_device(base, map_a, map_b, K)
    else:
        ptx_hopper.increase_registers(232)
        group, thread = warp_group - 1, cuda.threadIdx.x % 128
        acc = consume_device(base, group, thread, K)
        box = base + STAGES * STAGE_BYTES + group * BOX_BYTES
        store_left(acc, box, thread)
        ptx_hopper.fence_async_shared()
        ptx_hopper.barrier_sync(1 + group, 128)
        if thread == 0:
            ptx_hopper.tma_store_2d(map_out, 0, group * 64, box)
            ptx_hopper.bulk_commit()
            ptx_hopper.bulk_wait_read(0)
        ptx_hopper.barrier_sync(1 + group, 128)
        store_right(acc, box, thread)
        ptx_hopper.fence_async_shared()
        ptx_hopper.barrier_sync(1 + group, 128)
        if thread == 0:
            ptx_hopper.tma_store_2d(map_out, 64, group * 64, box)
            ptx_hopper.bulk_commit()
            ptx_hopper.bulk_wait(0)


@pytest.mark.parametrize(("M", "N", "K"), [(128, 128, 256), (100, 72, 104)])
def test_tile_of_a_matrix_product(M, N, K):
    a_MK, b_NK = random_bf16(M, K), random_bf16(N, K)
    out_MN = np.full((M, N), 0x7FFF, np.uint16)
    device = [host.to_device(x) for x in (out_MN, a_MK, b_NK)]
    maps = [TensorMap(device[0], (64, 64)), TensorMap(device[1], (128, 64)), TensorMap(device[2], (COLUMNS, 64))]
    run(product_kernel, 384, *maps, K, shared_bytes=BARRIERS + 1024 + 64)
    expected = host.from_bf16(a_MK).astype(np.float64) @ host.from_bf16(b_NK).T.astype(np.float64)
    error = np.abs(host.values(device[0]) - expected)
    assert np.all(error <= 2.0**-8 * np.abs(expected) + 1e-4)
