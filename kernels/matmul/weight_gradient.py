"""The gradient of the weight on Hopper: few outputs, each a sum over all rows of the batch, cut into slices.

With 65,536 rows a tile is a long sum, and there are fewer tiles than multiprocessors, or just too many for one round.
So the terms are cut into slices, and a tile and a slice are one piece of work. Pieces of one slice run side by side,
since they share what they read. How the pieces of a tile become one sum, always in the same order, depends:

- In several rounds they mostly end one after the other. They take turns to add to the output itself; a counter a tile
  says whose turn it is. There is no scratch memory, and waiting is rare. A block waits only for pieces that were begun
  before its own, so all end: there are no more blocks than multiprocessors.
- In one round they all end together and would stand in a queue. Each stores its part apart, and a second kernel adds.

The gradient of the bias, if it is wanted, is summed beside it (`column_sums.py`), a part for each slice.

Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda

from kernels.accumulators import store_float_box, zero_accumulators
from kernels.architecture import n_multiprocessors
from kernels.host import to_device
from kernels.launch import Launch, address, ceil_div
from kernels.matmul.bias import finish_column_sums
from kernels.matmul.column_sums import SUMMERS, parts_of, sum_columns_device
from kernels.matmul.common import Product, bias_apart
from kernels.matmul.hopper import (
    BOX,
    BOX_BYTES,
    ROW_BYTES,
    WARP_GROUP,
    matrix_map,
    operand_maps,
    portable_step,
    takes_tma,
)
from kernels.matmul.pipeline import (
    ACCUMULATORS,
    BLOCK,
    CONSUMERS,
    EMPTY_AT,
    IN_RING,
    SHARED_BYTES,
    STAGING,
    STAGING_AT,
    TERMS,
    TILE_I,
    TILE_J,
    divide_device,
    make_producer,
    make_stage_multiplier,
    n_tiles,
    n_tiles_device,
    slice_start_device,
    start_block_device,
    tile_place_device,
)
from kernels.matmul.slices import partial_sums, sum_slices
from kernels.ptx_hopper import (
    barrier_sync,
    bulk_commit,
    bulk_wait,
    bulk_wait_read,
    decrease_registers,
    fence_async_shared,
    increase_registers,
    mbarrier_arrive_if,
    tma_reduce_add_2d,
    tma_store_2d,
    tma_store_3d,
    warp_uniform,
)
from kernels.registry import kernel
from kernels.tensor_map import TensorMap
from kernels.wgmma import wgmma_wait_for

SIGNATURE = (
    "void(uint64[::1], uint64[::1], uint64[::1], int32[::1], float32[::1], int64, int64, int64, int64, int64, int64, "
    "int64)"
)

PRODUCER_REGISTERS, CONSUMER_REGISTERS = 56, 224
"""The warps that sum need more than a mere producer."""

BOX_J = ROW_BYTES // 4  # columns of a box of float32
zeros = zero_accumulators(ACCUMULATORS)
finished = wgmma_wait_for(ACCUMULATORS)
produce_device, multiply_stage_device = make_producer("grad_weight"), make_stage_multiplier("grad_weight")
store_box_0, store_box_1 = store_float_box(ACCUMULATORS, 0), store_float_box(ACCUMULATORS, 32)
store_box_2, store_box_3 = store_float_box(ACCUMULATORS, 64), store_float_box(ACCUMULATORS, 96)
store_box_4, store_box_5 = store_float_box(ACCUMULATORS, 128), store_float_box(ACCUMULATORS, 160)
store_box_6, store_box_7 = store_float_box(ACCUMULATORS, 192), store_float_box(ACCUMULATORS, 224)


@cuda.jit(device=True)
def store_box_device(box, acc, place, thread):
    """Store one of the eight boxes of a consumer's columns: which registers these are must be known when compiled."""
    if box == 0:
        store_box_0(acc, place, thread)
    elif box == 1:
        store_box_1(acc, place, thread)
    elif box == 2:
        store_box_2(acc, place, thread)
    elif box == 3:
        store_box_3(acc, place, thread)
    elif box == 4:
        store_box_4(acc, place, thread)
    elif box == 5:
        store_box_5(acc, place, thread)
    elif box == 6:
        store_box_6(acc, place, thread)
    else:
        store_box_7(acc, place, thread)


@cuda.jit(device=True)
def add_tile_device(acc, staging, thread, number, map_out, i, j, adds, turns, turn, index, apart):
    """Add a consumer's part of a tile to the output, or store it, when it is its slice's turn; TMA goes on alone."""
    box = 0
    while box < TILE_J // BOX_J:
        place = staging + (box & 1) * BOX_BYTES
        if thread == 0:
            bulk_wait_read(1)
        barrier_sync(number, WARP_GROUP)  # the box before the last has been read: its place is free
        store_box_device(box, acc, place, thread)
        fence_async_shared()
        barrier_sync(number, WARP_GROUP)  # all have written their part
        if thread == 0:
            if box == 0 and not apart:
                while cuda.atomic.add(turns, turn, 0) != index:  # until the slices before this one have been added
                    pass
                cuda.threadfence()
            if apart:
                tma_store_3d(map_out, j + box * BOX_J, i, index, place)
            elif adds:
                tma_reduce_add_2d(map_out, j + box * BOX_J, i, place)
            else:
                tma_store_2d(map_out, j + box * BOX_J, i, place)
            bulk_commit()
        box += 1


@cuda.jit(device=True)
def pass_turn_device(turns, turn, index, slices, apart):
    """Let the next slice add when this one is in memory; the last leaves the counter at zero for the next launch."""
    bulk_wait(0)
    if not apart:
        cuda.threadfence()
        cuda.atomic.exch(turns, turn, index + 1 if index + 1 < slices else 0)


@kernel(SIGNATURE, architectures=("sm_90a",), launch_bounds=(BLOCK, 1))
def grad_weight_kernel(map_a, map_b, map_out, turns, sums_S, I, J, K, slices, apart, accumulate, bias_parts):  # noqa: E741
    """A block owns one slice of 128 x 256 outputs at a time; warp group 0 produces and sums, 1 and 2 consume."""
    base = start_block_device(CONSUMERS + SUMMERS if bias_parts else CONSUMERS)
    warp_group = warp_uniform(cuda.threadIdx.x // WARP_GROUP)
    if warp_group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(base, map_a, map_b, I, J, K, slices)
        elif bias_parts and 32 <= cuda.threadIdx.x < 32 + 32 * SUMMERS:
            sum_columns_device(base, sums_S, I, J, K, slices, bias_parts)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consumer, thread = warp_group - 1, cuda.threadIdx.x & (WARP_GROUP - 1)
        leader = 1 if thread == 0 else 0
        staging = base + STAGING_AT + consumer * STAGING * BOX_BYTES
        tiles = n_tiles_device(I, J)
        acc = zeros()
        used = 0
        turn, index, owes = 0, 0, 0  # the piece that TMA is adding, and whether its turn has still to be passed on
        item = cuda.blockIdx.x
        while item < tiles * slices:
            next_index = divide_device(item, tiles)
            n_steps = slice_start_device(next_index + 1, slices, K) - slice_start_device(next_index, slices, K)
            step = 0
            while step < n_steps:
                acc = multiply_stage_device(acc, base, consumer, used + step, step, leader if step else 0)
                if owes and (step == 1 or step == n_steps - 1):  # under the products of the next piece
                    pass_turn_device(turns, turn, index, slices, apart)
                    owes = 0
                step += 1
            used += n_steps
            tile, index = item - next_index * tiles, next_index
            i, j = tile_place_device(tile, I, J)
            acc = finished(acc)
            mbarrier_arrive_if(base + EMPTY_AT + 8 * ((used - 1) & IN_RING), leader)
            turn = tile * CONSUMERS + consumer
            adds = accumulate or index > 0
            i += consumer * 64
            add_tile_device(acc, staging, thread, warp_group, map_out, i, j, adds, turns, turn, index, apart)
            owes = leader
            item += cuda.gridDim.x
        if owes:
            pass_turn_device(turns, turn, index, slices, apart)


MAX_SLICES = 24
MIN_STEPS = 16  # stages of a slice
STEPS_OF_ADDING = 12
"""What another round costs, in stages: fitted to times of an H100, where adding a tile takes 5 us, about 7 stages."""


@functools.cache
def slices_of(tiles: int, K: int, multiprocessors: int) -> int:
    """Return into how many slices to cut the terms: those that keep all multiprocessors busy and add seldom."""
    n_steps = ceil_div(K, TERMS)

    def rounds_in_steps(slices: int) -> float:
        rounds = ceil_div(tiles * slices, multiprocessors)
        return rounds * (n_steps / slices + STEPS_OF_ADDING)

    return min(range(1, max(1, min(MAX_SLICES, n_steps // MIN_STEPS)) + 1), key=rounds_in_steps)


@functools.cache
def _turns(size: int, stream: object):
    """Return counters at zero. Launches on one stream run one after the other and may share them."""
    return to_device(np.zeros(size, np.int32))


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each multiprocessor, or use the portable step where TMA cannot read the operands."""
    if not takes_tma(product) or address(product.out) % 16:
        return bias_apart(portable_step, product, stream)
    tiles = n_tiles(product)
    slices = slices_of(tiles, product.K, n_multiprocessors())
    apart = 1 < slices and tiles * slices <= n_multiprocessors()
    if apart:
        out = partial_sums(slices * product.I * product.J, stream)
        map_out = TensorMap(out.reshape(slices, product.I, product.J), (1, BOX, BOX_J))
    else:
        map_out = matrix_map(product.out, product.I, product.J, (BOX, BOX_J))
    maps = [*operand_maps(product, TILE_I, TILE_J), map_out]
    has_bias = product.grad_bias is not None
    parts = parts_of(product, slices) if has_bias else 0
    arrays = (_turns(tiles * CONSUMERS, stream), product.scratch if has_bias else product.out)
    numbers = (product.I, product.J, product.K, slices, int(apart), int(product.accumulate), parts)
    arguments = (*(tensor_map.array for tensor_map in maps), *arrays, *numbers)
    grid = min(n_multiprocessors(), tiles * slices)
    launches = [Launch(grad_weight_kernel, grid, BLOCK, arguments, stream, SHARED_BYTES)]
    if apart:
        launches.append(sum_slices(product.out, out, slices, product.accumulate, stream))
    if has_bias:
        launches.append(finish_column_sums(product.grad_bias, product.scratch, slices * parts, stream))
    return launches
