"""What the simulator reports of broken Hopper kernels, on which a GPU would hang or compute anything."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

from kernels import SIMULATED, accumulators, host, ptx, ptx_hopper, wgmma  # must come before numba

if not SIMULATED:
    pytest.skip("the simulator is tested without a GPU", allow_module_level=True)

from kernels.launch import Launch
from kernels.simulator import DivergenceError, MisalignedError, SimulatorError, reversed_order
from kernels.tensor_map import TensorMap

from numba import cuda, float32, uint8  # isort: skip

STAGE_BYTES = 2 * 64 * 128
OUT, BARRIERS = 2 * STAGE_BYTES, 2 * STAGE_BYTES + 64 * 128
N_STEPS = 5

product, finish = wgmma.wgmma_ss(64), wgmma.wgmma_wait_for(32)
zeros, store_box = accumulators.zero_accumulators(32), accumulators.store_bf16_box(32)


@cuda.jit
def product_kernel(map_out, map_a, map_b):
    """A 64 x 64 tile with a ring of two stages: one warp loads, a warp group multiplies."""
    base = ptx.shared_address(cuda.shared.array(0, uint8, 1024), 0)
    t = cuda.threadIdx.x
    if t == 0:
        for stage in range(2):
            ptx_hopper.mbarrier_init(base + BARRIERS + 16 * stage, 1)
            ptx_hopper.mbarrier_init(base + BARRIERS + 16 * stage + 8, 1)
        ptx_hopper.mbarrier_init_fence()
    cuda.syncthreads()
    if t == 128:
        for step in range(N_STEPS):
            stage, full = base + step % 2 * STAGE_BYTES, base + BARRIERS + step % 2 * 16
            ptx_hopper.mbarrier_wait(full + 8, (step // 2 + 1) % 2)
            ptx_hopper.mbarrier_expect(full, STAGE_BYTES)
            ptx_hopper.tma_load_2d(stage, map_a, 64 * step, 0, full)
            ptx_hopper.tma_load_2d(stage + 64 * 128, map_b, 64 * step, 0, full)
    elif t < 128:
        acc = zeros()
        for step in range(N_STEPS):
            stage, full = base + step % 2 * STAGE_BYTES, base + BARRIERS + step % 2 * 16
            ptx_hopper.mbarrier_wait(full, step // 2 % 2)
            acc = product(acc, wgmma.wgmma_descriptor(stage), wgmma.wgmma_descriptor(stage + 64 * 128), step)
            acc = finish(acc)
            ptx_hopper.mbarrier_arrive_if(full + 8, t == 0)
        store_box(acc, base + OUT, t)
        ptx_hopper.fence_async_shared()
        ptx_hopper.barrier_sync(1, 128)
        if t == 0:
            ptx_hopper.tma_store_2d(map_out, 0, 0, base + OUT)
            ptx_hopper.bulk_commit()
            ptx_hopper.bulk_wait(0)


def error_of_the_product() -> float:
    """Run the kernel in both orders and return the greatest error."""
    rng = np.random.default_rng(7)
    a_MK, b_NK = (host.to_bf16(rng.standard_normal((64, 64 * N_STEPS), np.float32)) for _ in range(2))
    expected = host.from_bf16(a_MK).astype(np.float64) @ host.from_bf16(b_NK).T.astype(np.float64)
    errors = []
    for order in (False, True):
        out_MN = np.zeros((64, 64), np.uint16)
        maps = [TensorMap(x, (64, 64)) for x in (out_MN, a_MK, b_NK)]
        launch = Launch(product_kernel, 1, 160, tuple(m.array for m in maps), 0, BARRIERS + 64)
        if order:
            with reversed_order():
                launch()
        else:
            launch()
        errors.append(host.max_error(host.values(out_MN), expected))
    return max(errors)


def line_of(text: str) -> int:
    lines, first = inspect.getsourcelines(product_kernel.py_func)
    return first + next(i for i, line in enumerate(lines) if text in line)


def leave_out(monkeypatch, module, name: str) -> None:
    monkeypatch.setattr(module, name, lambda *arguments: None)


def test_the_kernel_is_right():
    assert error_of_the_product() < 0.3  # bfloat16 near 64


# ---- broken in one place -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32 << 32, 1, 2])
def test_wrong_descriptor(monkeypatch, bits):
    """Another distance of rows, a start 16 or 32 bytes further."""
    right = wgmma.wgmma_descriptor
    monkeypatch.setattr(wgmma, "wgmma_descriptor", lambda address: right(address) + bits)
    with pytest.raises((SimulatorError, AssertionError)):
        assert error_of_the_product() < 1


def test_descriptor_that_starts_amid_the_swizzle(monkeypatch):
    right = wgmma.wgmma_descriptor
    monkeypatch.setattr(wgmma, "wgmma_descriptor", lambda address: right(address + 256))
    with pytest.raises(SimulatorError, match="starts in the first of 8 swizzled lines"):
        error_of_the_product()


def test_descriptor_without_swizzle(monkeypatch):
    right = wgmma.wgmma_descriptor
    monkeypatch.setattr(wgmma, "wgmma_descriptor", lambda address: right(address) & ~(3 << 62))
    with pytest.raises(SimulatorError, match="only the 128-byte swizzle"):
        error_of_the_product()


def test_wrong_parity_of_the_consumer(monkeypatch):
    """It multiplies what has not been copied yet."""
    right = ptx_hopper.mbarrier_wait

    def wrong(address, parity):
        right(address, parity if address % 16 else 1 - parity)

    monkeypatch.setattr(ptx_hopper, "mbarrier_wait", wrong)
    with pytest.raises(SimulatorError, match=rf":{line_of('stage, map_a')} .*still read by a product"):
        error_of_the_product()


def test_wrong_parity_of_the_producer_is_a_deadlock(monkeypatch):
    right = ptx_hopper.mbarrier_wait

    def wrong(address, parity):
        right(address, 1 - parity if address % 16 else parity)

    monkeypatch.setattr(ptx_hopper, "mbarrier_wait", wrong)
    with pytest.raises(DivergenceError) as caught:
        error_of_the_product()
    message = str(caught.value)
    assert "1 threads (128) at mbarrier_wait for parity 0" in message and "phase 0, 1 of 1 arrivals" in message
    assert "128 threads (0-127) at mbarrier_wait for parity 0" in message


def test_missing_wait_for_a_copy(monkeypatch):
    right = ptx_hopper.mbarrier_wait
    monkeypatch.setattr(ptx_hopper, "mbarrier_wait", lambda a, parity: right(a, parity) if a % 16 else None)
    with pytest.raises(SimulatorError, match="still read by a product"):
        error_of_the_product()


def test_too_few_bytes_expected_is_a_deadlock(monkeypatch):
    right = ptx_hopper.mbarrier_expect
    monkeypatch.setattr(ptx_hopper, "mbarrier_expect", lambda address, n: right(address, n + 16))
    with pytest.raises(DivergenceError, match="0 of 1 arrivals and 16 bytes missing"):
        error_of_the_product()


def test_missing_wait_for_the_product(monkeypatch):
    monkeypatch.setitem(globals(), "finish", lambda acc: acc)
    monkeypatch.setitem(globals(), "N_STEPS", 1)
    with pytest.raises(SimulatorError, match=rf":{line_of('store_box(acc')} .*before a wgmma_wait_for"):
        error_of_the_product()


def test_stage_freed_before_the_product_has_read_it(monkeypatch):
    monkeypatch.setitem(globals(), "finish", lambda acc: acc)
    with pytest.raises(SimulatorError, match="still read by a product, started at"):
        error_of_the_product()


def test_missing_fence_before_a_store(monkeypatch):
    leave_out(monkeypatch, ptx_hopper, "fence_async_shared")
    with pytest.raises(SimulatorError, match="did not call fence_async_shared") as caught:
        error_of_the_product()
    assert f":{line_of('tma_store_2d')} " in str(caught.value)


def test_missing_fence_after_making_barriers(monkeypatch):
    leave_out(monkeypatch, ptx_hopper, "mbarrier_init_fence")
    with pytest.raises(SimulatorError, match="mbarrier_init_fence is missing"):
        error_of_the_product()


def test_missing_wait_for_the_store(monkeypatch):
    leave_out(monkeypatch, ptx_hopper, "bulk_wait")
    with pytest.raises(SimulatorError, match=re.escape("bulk_wait(0) is missing")):
        error_of_the_product()


def test_missing_barrier_before_the_store(monkeypatch):
    leave_out(monkeypatch, ptx_hopper, "barrier_sync")
    with pytest.raises((SimulatorError, AssertionError)):
        assert error_of_the_product() < 0.3


def test_arrivals_that_are_too_many(monkeypatch):
    right = ptx_hopper.mbarrier_arrive_if
    monkeypatch.setattr(ptx_hopper, "mbarrier_arrive_if", lambda address, predicate: right(address, 1))
    with pytest.raises(SimulatorError):
        assert error_of_the_product() < 0.3


# ---- one instruction alone -----------------------------------------------------------------------------------------


def launch(function, n_threads: int, *arguments, shared_bytes: int = 16384) -> None:
    Launch(cuda.jit(function), 1, n_threads, arguments, 0, shared_bytes)()


def test_barrier_that_was_never_made():
    def kernel():
        ptx_hopper.mbarrier_wait(64, 0)

    with pytest.raises(SimulatorError, match="no initialised barrier at shared address 64"):
        launch(kernel, 32)


def test_named_barrier_that_not_all_reach():
    def kernel():
        if cuda.threadIdx.x < 32:
            ptx_hopper.barrier_sync(3, 64)

    with pytest.raises(DivergenceError, match=r"barrier_sync\(3, 64\), to which 32 have come"):
        launch(kernel, 64)


def test_named_barrier_with_two_counts():
    def kernel():
        ptx_hopper.barrier_sync(3, 64 if cuda.threadIdx.x < 32 else 96)

    with pytest.raises(SimulatorError, match="barrier 3 is for 64 threads, and here for 96"):
        launch(kernel, 96)


def test_more_registers_than_there_are():
    def kernel():
        ptx_hopper.increase_registers(240)

    with pytest.raises(DivergenceError, match=r"increase_registers\(240\), for which other warp groups hold too many"):
        launch(kernel, 384)


def test_registers_of_a_part_of_a_warp_group():
    def kernel():
        if cuda.threadIdx.x < 64:
            ptx_hopper.decrease_registers(40)

    with pytest.raises(DivergenceError, match="decrease_registers, to which 64 of 128 threads"):
        launch(kernel, 256)


def test_warp_groups_at_different_places():
    fresh = wgmma.wgmma_ss_new(64)

    def kernel():
        at = wgmma.wgmma_descriptor(0)
        if cuda.threadIdx.x < 64:
            fresh(at, at)
        else:
            fresh(at, at)

    with pytest.raises(DivergenceError, match="needs all 128 threads"):
        launch(kernel, 128)


def test_product_of_unfenced_writes_and_past_the_end():
    fresh = wgmma.wgmma_ss_new(64)

    def kernel(first):
        shared = cuda.shared.array(0, float32, 1024)
        shared[cuda.threadIdx.x] = 0
        cuda.syncthreads()
        at = wgmma.wgmma_descriptor(first)
        fresh(at, at)

    with pytest.raises(SimulatorError, match="did not call fence_async_shared"):
        launch(kernel, 128, 0)
    with pytest.raises(IndexError, match="pass the 16384 bytes declared"):
        launch(kernel, 128, 15360)


def test_wait_that_is_too_weak():
    fresh, weak = wgmma.wgmma_ss_new(64), wgmma.wgmma_wait_for(32, 1)

    def weak_wait():
        weak(fresh(wgmma.wgmma_descriptor(0), wgmma.wgmma_descriptor(0)))

    with pytest.raises(SimulatorError, match="a wait that leaves 1 groups"):
        launch(weak_wait, 128)


def test_box_at_a_wrong_address_and_a_map_that_is_none():
    def kernel(words, address):
        if cuda.threadIdx.x == 0:
            ptx_hopper.mbarrier_init(16000, 1)
            ptx_hopper.mbarrier_init_fence()
            ptx_hopper.tma_load_2d(address, words, 0, 0, 16000)

    array = np.zeros((64, 64), np.uint16)
    with pytest.raises(MisalignedError, match="do not start at a multiple of 1024"):
        launch(kernel, 32, TensorMap(array, (64, 64)).array, 128)
    with pytest.raises(SimulatorError, match="is not the `array` of a TensorMap"):
        launch(kernel, 32, np.zeros(16, np.uint64), 0)


@pytest.mark.parametrize("x", [1, -4])
def test_coordinate_within_16_bytes(x):
    def kernel(words, x):
        if cuda.threadIdx.x == 0:
            ptx_hopper.mbarrier_init(16000, 1)
            ptx_hopper.mbarrier_init_fence()
            ptx_hopper.tma_load_2d(0, words, x, 0, 16000)

    with pytest.raises(MisalignedError, match=f"x = {x}, which is no multiple of 16 bytes"):
        launch(kernel, 32, TensorMap(np.zeros((64, 64), np.uint16), (64, 64)).array, x)


@pytest.mark.parametrize(("x", "y"), [(-8, 0), (0, -1)])
def test_store_that_starts_below_zero(x, y):
    def kernel(words, x, y):
        if cuda.threadIdx.x == 0:
            ptx_hopper.tma_store_2d(words, x, y, 0)

    with pytest.raises(SimulatorError, match="only a load may start below 0"):
        launch(kernel, 32, TensorMap(np.zeros((64, 64), np.uint16), (64, 64)).array, x, y)


def test_reading_an_array_that_a_copy_fills():
    def kernel(words, out):
        shared = cuda.shared.array(0, float32, 1024)
        if cuda.threadIdx.x == 0:
            ptx_hopper.mbarrier_init(16000, 1)
            ptx_hopper.mbarrier_init_fence()
            ptx_hopper.mbarrier_expect(16000, 8192)
            ptx_hopper.tma_load_2d(0, words, 0, 0, 16000)
        cuda.syncthreads()
        out[cuda.threadIdx.x] = shared[cuda.threadIdx.x]

    array = np.zeros((64, 64), np.uint16)
    with pytest.raises(SimulatorError, match=r"thread \(0, 0, 0\).*is the target of a copy"):
        launch(kernel, 32, TensorMap(array, (64, 64)).array, np.zeros(32, np.float32))


@pytest.mark.parametrize("they_meet", ["not at all", "at a block barrier", "at a named barrier", "at an mbarrier"])
def test_reading_what_only_another_thread_has_waited_for(they_meet):
    def kernel(words, out):
        shared = cuda.shared.array(0, float32, 1024)
        t = cuda.threadIdx.x
        if t == 0:
            ptx_hopper.mbarrier_init(16000, 1)
            ptx_hopper.mbarrier_init(16008, 1)
            ptx_hopper.mbarrier_init_fence()
            ptx_hopper.mbarrier_expect(16000, 8192)
            ptx_hopper.tma_load_2d(0, words, 0, 0, 16000)
            ptx_hopper.mbarrier_wait(16000, 0)
            ptx_hopper.mbarrier_arrive_if(16008, 1)
        cuda.syncwarp()
        if they_meet == "at a block barrier":
            cuda.syncthreads()
        elif they_meet == "at a named barrier":
            ptx_hopper.barrier_sync(1, 64)
        elif they_meet == "at an mbarrier":
            ptx_hopper.mbarrier_wait(16008, 0)
        out[t] = shared[t]

    array, out = np.ones((64, 64), np.uint16), np.zeros(64, np.float32)
    if they_meet == "not at all":
        with pytest.raises(SimulatorError, match="thread neither waited for phase 0 of it nor met one that did"):
            launch(kernel, 64, TensorMap(array, (64, 64)).array, out)
    else:
        launch(kernel, 64, TensorMap(array, (64, 64)).array, out)
        np.testing.assert_array_equal(out.view(np.uint16), 1)
