"""Hopper's instructions against independent formulas: in the simulator, and on a Hopper GPU where there is one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kernels import SIMULATED, accumulators, host, ptx, ptx_hopper, wgmma  # must come before numba
from kernels.launch import Launch
from kernels.simulator import reversed_order
from kernels.tensor_map import TensorMap
from kernels.tuples import each_pair

from numba import cuda, float32, uint8, uint32  # isort: skip
from numba import uint64 as numba_uint64  # isort: skip

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


# ---- TMA -----------------------------------------------------------------------------------------------------------


@cuda.jit
def load_2d_kernel(out, words, x, y):
    shared = cuda.shared.array(0, uint8, 1024)
    base = aligned_start(shared)
    barrier = base + 65536
    t = cuda.threadIdx.x
    if t == 0:
        ptx_hopper.mbarrier_init(barrier, 1)
        ptx_hopper.mbarrier_init_fence()
        ptx_hopper.mbarrier_expect(barrier, out.size)
        ptx_hopper.tma_load_2d(base, words, x, y, barrier)
    cuda.syncthreads()
    ptx_hopper.mbarrier_wait(barrier, 0)
    start = base - ptx.shared_address(shared, 0)
    while t < out.size:
        out[t] = shared[start + t]
        t += cuda.blockDim.x


@cuda.jit
def load_3d_kernel(out, words, x, y, z):
    shared = cuda.shared.array(0, uint8, 1024)
    base = aligned_start(shared)
    barrier = base + 65536
    t = cuda.threadIdx.x
    if t == 0:
        ptx_hopper.mbarrier_init(barrier, 1)
        ptx_hopper.mbarrier_init_fence()
        ptx_hopper.mbarrier_expect(barrier, out.size)
        ptx_hopper.tma_load_3d(base, words, x, y, z, barrier)
    cuda.syncthreads()
    ptx_hopper.mbarrier_wait(barrier, 0)
    start = base - ptx.shared_address(shared, 0)
    while t < out.size:
        out[t] = shared[start + t]
        t += cuda.blockDim.x


def box_bytes(array: np.ndarray, starts: tuple, box: tuple, swizzle: int) -> np.ndarray:
    """What a load leaves in shared memory, element by element."""
    raw = np.zeros(int(np.prod(box)) * array.itemsize, np.uint8)
    bits = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    for n, place in enumerate(np.ndindex(*box)):
        where = tuple(s + p for s, p in zip(starts, place, strict=True))
        if all(0 <= w < size for w, size in zip(where, array.shape, strict=True)):
            first = n * array.itemsize
            first ^= (first >> 7 & bits) << 4
            raw[first : first + array.itemsize] = np.frombuffer(array[where].tobytes(), np.uint8)
    return raw


@pytest.mark.parametrize(
    ("dtype", "shape", "box", "starts", "swizzle"),
    [
        ("uint16", (100, 96), (64, 64), (0, 0), 128),
        ("uint16", (100, 88), (64, 64), (-3, -8), 128),
        ("uint16", (100, 88), (32, 64), (90, 64), 128),
        ("float32", (40, 36), (16, 32), (30, 8), 128),
        ("uint16", (40, 64), (24, 32), (20, 40), 64),
        ("uint16", (40, 64), (24, 16), (0, 8), 32),
        ("uint16", (40, 64), (8, 40), (36, 32), 0),
        ("uint16", (40, 64), (8, 64), (100, 0), 128),  # all of it outside
    ],
)
def test_tma_load_swizzles_and_fills_with_zeros(dtype, shape, box, starts, swizzle):
    array = RNG.integers(0, 2**31, shape).astype(dtype)
    tensor_map = TensorMap(host.to_device(array), box, swizzle=swizzle)
    out = np.zeros(tensor_map.box_bytes, np.uint8)
    (result,) = run(load_2d_kernel, 128, out, tensor_map, starts[1], starts[0])
    np.testing.assert_array_equal(result, box_bytes(array, starts, box, swizzle))


def test_tma_load_from_part_of_an_array_of_three_axes():
    array = random_bf16(2, 50, 3 * 64)
    tensor_map = TensorMap(host.to_device(array), (1, 64, 64), shape=(2, 40, 128))
    out = np.zeros(tensor_map.box_bytes, np.uint8)
    (result,) = run(load_3d_kernel, 128, out, tensor_map, 64, 7, 1)
    np.testing.assert_array_equal(result, box_bytes(array[:, :40, :128], (1, 7, 64), (1, 64, 64), 128))


@cuda.jit
def store_kernel(inp, words_2, words_3, words_sum, x, y, z):
    """Store what lies in `inp`, twice as a box of two axes and once of three, and add it to a third array."""
    shared = cuda.shared.array(0, uint8, 1024)
    base = aligned_start(shared)
    start = base - ptx.shared_address(shared, 0)
    t = cuda.threadIdx.x
    while t < inp.size:
        shared[start + t] = inp[t]
        t += cuda.blockDim.x
    ptx_hopper.fence_async_shared()
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        ptx_hopper.tma_store_2d_hinted(words_2, x, y, base, ptx_hopper.EVICT_FIRST)
        ptx_hopper.tma_store_3d(words_3, x, y, z, base)
        ptx_hopper.bulk_commit()
        ptx_hopper.tma_reduce_add_2d(words_sum, x, y, base)
        ptx_hopper.bulk_commit()
        ptx_hopper.bulk_wait_read(1)
        ptx_hopper.bulk_wait(0)


@pytest.mark.parametrize(("x", "y", "z"), [(0, 0, 0), (16, 3, 1), (8, 9, 1)])
def test_tma_store_leaves_out_what_lies_outside(x, y, z):
    box = (8, 32)
    values = RNG.standard_normal(box).astype(np.float32)
    before = RNG.standard_normal((2, 10, 40)).astype(np.float32)
    inp = box_bytes(values, (0, 0), box, 128)
    two, three, total = (host.to_device(a) for a in (before[0], before, before[0]))
    run(
        store_kernel,
        64,
        inp,
        TensorMap(two, box, shape=(10, 36)),
        TensorMap(three, (1, *box), shape=(2, 10, 36)),
        TensorMap(total, box, shape=(10, 36)),
        x,
        y,
        z,
    )
    inside = np.zeros((10, 40), np.float32)
    expected, seen = before.copy(), np.zeros((10, 40), bool)
    for row, column in np.ndindex(*box):
        if 0 <= y + row < 10 and 0 <= x + column < 36:
            seen[y + row, x + column] = True
            inside[y + row, x + column] = values[row, column]
    np.testing.assert_array_equal(host.to_host(two), np.where(seen, inside, before[0]))
    expected[z] = np.where(seen, inside, before[z])
    np.testing.assert_array_equal(host.to_host(three), expected)
    runs = 2 if SIMULATED else 1  # the simulator ran it in both orders
    np.testing.assert_allclose(host.to_host(total), before[0] + runs * inside, rtol=0, atol=2e-6)


def test_tma_store_is_cut_to_whole_16_bytes_only():
    box = (8, 32)
    values = RNG.standard_normal(box).astype(np.float32)
    arrays = [host.to_device(np.zeros((8, 40), np.float32)) for _ in range(3)]
    maps = [TensorMap(array, box[-2:], shape=(7, 30)) for array in arrays]
    maps[1] = TensorMap(arrays[1], (1, *box), shape=(1, 7, 30), strides=(1280, 160, 4))
    run(store_kernel, 64, box_bytes(values, (0, 0), box, 128), *maps, 0, 0, 0)
    expected = np.zeros((8, 40), np.float32)
    expected[:7, :32] = values[:7]  # and not only 30
    np.testing.assert_array_equal(host.to_host(arrays[0]), expected)
    np.testing.assert_array_equal(host.to_host(arrays[1]), expected)


def test_bulk_load():
    @cuda.jit
    def kernel(out, inp):
        shared = cuda.shared.array(1024, float32, 128)
        barrier = cuda.shared.array(1, numba_uint64, 8)
        t = cuda.threadIdx.x
        address = ptx.shared_address(barrier, 0)
        if t == 0:
            ptx_hopper.mbarrier_init(address, 1)
            ptx_hopper.mbarrier_init_fence()
            ptx_hopper.mbarrier_expect(address, 4 * 64)
            ptx_hopper.bulk_load(ptx.shared_address(shared, 4), inp, 8, 4 * 64, address)
        cuda.syncthreads()
        ptx_hopper.mbarrier_wait(address, 0)
        out[t] = shared[4 + t]

    inp = RNG.standard_normal(100).astype(np.float32)
    out, _ = run(kernel, 64, np.zeros(64, np.float32), inp, shared_bytes=0)
    np.testing.assert_array_equal(out, inp[8:72])


# ---- barriers ------------------------------------------------------------------------------------------------------


def test_phases_of_a_barrier():
    @cuda.jit
    def kernel(out, n_phases):
        shared = cuda.shared.array(32, float32)
        barriers = cuda.shared.array(2, numba_uint64, 8)
        full, empty = ptx.shared_address(barriers, 0), ptx.shared_address(barriers, 1)
        t = cuda.threadIdx.x
        if t == 0:
            ptx_hopper.mbarrier_init(full, 16)
            ptx_hopper.mbarrier_init(empty, 32)
            ptx_hopper.mbarrier_init_fence()
        cuda.syncthreads()
        phase = 0
        while phase < n_phases:
            if t < 32:  # writes when the other warp has read
                ptx_hopper.mbarrier_wait(empty, (phase + 1) % 2)
                shared[t] = float32(100 * phase + t)
                cuda.syncwarp()
                ptx_hopper.mbarrier_arrive_if(full, t % 2)
            else:
                ptx_hopper.mbarrier_wait(full, phase % 2)
                out[phase, t - 32] = shared[t - 32]
                ptx_hopper.mbarrier_arrive_if(empty, 1)
            phase += 1

    (out,) = run(kernel, 64, np.zeros((5, 32), np.float32), 5, shared_bytes=0)
    np.testing.assert_array_equal(out, 100 * np.arange(5)[:, None] + np.arange(32))


def test_named_barriers_and_the_first_lane_of_a_warp():
    @cuda.jit
    def kernel(out):
        shared = cuda.shared.array(1, float32)
        t = cuda.threadIdx.x
        warp = ptx_hopper.warp_uniform(uint32(t // 32 + 10 * (t % 32)))
        out[t] = warp
        if warp == 3:  # gives without waiting, the others but warp 2 wait for it
            if t % 32 == 0:
                shared[0] = float32(7)
            ptx_hopper.barrier_arrive(5, 96)
        elif warp < 2:
            ptx_hopper.barrier_sync(5, 96)
            out[t] += shared[0]

    (out,) = run(kernel, 128, np.zeros(128, np.float32), shared_bytes=0)
    np.testing.assert_array_equal(out, np.repeat([7, 8, 2, 3], 32))


# ---- registers and shared memory -----------------------------------------------------------------------------------


def accumulators_of(tile: np.ndarray) -> np.ndarray:
    """The floats of each thread of a 64-row tile, by the formula of PTX's figure of the D fragment."""
    n = tile.shape[1] // 2
    held = np.empty((128, n), tile.dtype)
    for t, i in np.ndindex(128, n):
        warp, lane = divmod(t, 32)
        held[t, i] = tile[16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2]
    return held


@cuda.jit(device=True)
def twice_device(i, pair):
    """Give both floats of a column pair to the upper and to the lower row."""
    return pair[0], pair[1], pair[0], pair[1]


load_all = accumulators.load_columns(64)
store_second = accumulators.store_float_box(64, 32)
pack_all = accumulators.pack_accumulators(64)
store_words = accumulators.store_words_box(32, 64)
store_bf16 = accumulators.store_bf16_box(64, 64)


def test_boxes_of_accumulators():
    """128 columns: to a box of floats, to boxes of bfloat16 in two ways, and one of them back as an operand."""

    @cuda.jit
    def kernel(boxes, words_back, row):
        shared = cuda.shared.array(0, uint8, 1024)
        base = aligned_start(shared)
        start = base - ptx.shared_address(shared, 0)
        t = cuda.threadIdx.x
        floats = shared[start + 65536 : start + 65536 + 512].view(float32)
        floats[t] = row[t]
        cuda.syncthreads()
        half = load_all(base + 65536 + 8 * (t % 4))  # each row of the accumulators is the row of floats
        acc = each_pair(twice_device, (half,))
        store_second(acc, base, t)
        store_words(pack_all(acc), base + BOX_BYTES, t)
        store_bf16(acc, base + 2 * BOX_BYTES, t)
        cuda.syncthreads()
        words = accumulators.load_words_box(base + BOX_BYTES, t)
        for i in range(16):
            words_back[t, i] = words[i]
        i = t
        while i < boxes.size:
            boxes[i] = shared[start + i]
            i += 128

    row = RNG.standard_normal(128).astype(np.float32)
    boxes, words, _ = run(kernel, 128, np.zeros(3 * BOX_BYTES, np.uint8), np.zeros((128, 16), np.uint32), row)
    tile = np.broadcast_to(row, (64, 128))
    np.testing.assert_array_equal(boxes[:BOX_BYTES], box_bytes(tile[:, 32:64], (0, 0), (64, 32), 128))
    rounded = host.to_bf16(tile[:, 64:])
    for box in (boxes[BOX_BYTES : 2 * BOX_BYTES], boxes[2 * BOX_BYTES :]):
        np.testing.assert_array_equal(box, box_bytes(rounded, (0, 0), (64, 64), 128))
    pairs = accumulators_of(rounded).astype(np.uint32)
    np.testing.assert_array_equal(words, pairs[:, 0::2] | pairs[:, 1::2] << 16)


# ---- wgmma ---------------------------------------------------------------------------------------------------------

B_OFFSET = 65536


@cuda.jit(device=True)
def fill_device(shared, start, data):
    """Copy bytes to shared memory by ordinary stores of 128 threads, for wgmma to see."""
    t = cuda.threadIdx.x
    while t < data.size:
        shared[start + t] = data[t]
        t += 128
    ptx_hopper.fence_async_shared()
    cuda.syncthreads()


def operand_bytes(x: np.ndarray, mn_major: bool, gap: int = 0) -> np.ndarray:
    """An operand (rows or columns, terms) in boxes of 64 along its contiguous axis, `gap` bytes between boxes."""
    lying = x.T if mn_major else x
    boxes = []
    for first in range(0, lying.shape[1], 64):
        boxes += [box_bytes(lying, (0, first), (lying.shape[0], 64), 128), np.zeros(gap, np.uint8)]
    return np.concatenate(boxes)


@pytest.mark.parametrize(
    ("columns", "steps", "a_mn", "b_mn"),
    [(64, 4, False, False), (192, 4, False, True), (128, 4, True, True), (72, 2, True, False), (8, 4, False, False)],
)
def test_wgmma_from_shared_memory(columns, steps, a_mn, b_mn):
    """The first product throws its accumulators away, the second adds; then one of fresh accumulators."""
    n = columns // 2
    product, fresh = wgmma.wgmma_ss(columns, steps, a_mn, b_mn), wgmma.wgmma_ss_new(columns, steps, a_mn, b_mn)
    finish, one_left = wgmma.wgmma_wait_for(n), wgmma.wgmma_wait_for(n, 1)
    zeros = accumulators.zero_accumulators(n)
    terms, gap = 16 * steps, 1024
    next_box = terms * 128 + gap

    @cuda.jit
    def kernel(out, a, b):
        shared = cuda.shared.array(0, uint8, 1024)
        base = aligned_start(shared)
        start = base - ptx.shared_address(shared, 0)
        fill_device(shared, start, a)
        fill_device(shared, start + B_OFFSET, b)
        a_at = wgmma.wgmma_descriptor_mn(base, 8192) if a_mn else wgmma.wgmma_descriptor(base)
        b_base = base + B_OFFSET
        b_at = wgmma.wgmma_descriptor_mn(b_base, next_box) if b_mn else wgmma.wgmma_descriptor(b_base)
        acc = product(zeros(), a_at, b_at, 0)
        acc = product(acc, a_at, b_at, 1)
        other = fresh(a_at, b_at)
        acc = one_left(acc)
        other = finish(other)
        t = cuda.threadIdx.x
        for i in range(n):
            out[0, t, i] = acc[i]
            out[1, t, i] = other[i]

    a_MK, b_NK = random_bf16(64, terms), random_bf16(columns, terms)
    inputs = operand_bytes(a_MK, a_mn), operand_bytes(b_NK, b_mn, gap)
    out, *_ = run(kernel, 128, np.zeros((2, 128, n), np.float32), *inputs)
    expected = accumulators_of(host.from_bf16(a_MK).astype(np.float64) @ host.from_bf16(b_NK).T.astype(np.float64))
    np.testing.assert_allclose(out[0], 2 * expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(out[1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("columns", "b_mn"), [(64, True), (128, False)])
def test_wgmma_with_a_in_registers(columns, b_mn):
    n = columns // 2
    product = wgmma.wgmma_rs(columns, 4, b_mn)
    zeros, finish = accumulators.zero_accumulators(n), wgmma.wgmma_wait_for(n)

    @cuda.jit
    def kernel(out, a, b):
        shared = cuda.shared.array(0, uint8, 1024)
        base = aligned_start(shared)
        start = base - ptx.shared_address(shared, 0)
        fill_device(shared, start, a)
        fill_device(shared, start + B_OFFSET, b)
        b_base = base + B_OFFSET
        b_at = wgmma.wgmma_descriptor_mn(b_base, 8192) if b_mn else wgmma.wgmma_descriptor(b_base)
        t = cuda.threadIdx.x
        words = accumulators.load_words_box(base, t)
        acc = product(zeros(), words, b_at)
        acc = product(acc, words, b_at)
        acc = product(acc, words, b_at)
        wgmma.wgmma_wait(0)
        acc = finish(acc)
        for i in range(n):
            out[t, i] = acc[i]

    a_MK, b_NK = random_bf16(64, 64), random_bf16(columns, 64)
    inputs = operand_bytes(a_MK, False), operand_bytes(b_NK, b_mn)
    out, *_ = run(kernel, 128, np.zeros((128, n), np.float32), *inputs)
    expected = accumulators_of(host.from_bf16(a_MK).astype(np.float64) @ host.from_bf16(b_NK).T.astype(np.float64))
    np.testing.assert_allclose(out, 3 * expected, rtol=1e-5, atol=1e-4)


def test_every_instruction_is_documented_with_its_manual_section():
    n = 0
    for module in (ptx_hopper, wgmma):
        for name, operation in vars(module).items():
            if re.match("mbarrier_|tma_|bulk_|barrier_|wgmma_|(in|de)crease_registers", name):
                assert re.search(r"\[.+\]", operation.__doc__), name
                n += 1
    assert n >= 28
