"""The gradient of the weight on Hopper: few outputs, each a sum over all rows of the batch, cut into slices.

With 65,536 rows a tile is a long sum, and there are fewer tiles than multiprocessors, or just too many for one round.
So the terms are cut into slices, and a tile and a slice are one piece of work. Pieces of one slice run side by side,
since they share what they read. All pieces of a tile add to the output itself, and they take turns: a counter a tile
says whose turn it is. So the order of each sum is fixed, there is no scratch memory, and as slices mostly end one after
the other, waiting is rare. A block waits only for pieces that were begun before its own, so all end: there are no more
blocks than multiprocessors. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda

from kernels.accumulators import zero_accumulators
from kernels.architecture import n_multiprocessors
from kernels.host import to_device
from kernels.launch import Launch, address, ceil_div
from kernels.matmul.common import Product
from kernels.matmul.hopper import WARP_GROUP, operand_maps, portable_step, takes_tma
from kernels.matmul.pipeline import (
    ACCUMULATORS,
    BLOCK,
    CONSUMER_REGISTERS,
    CONSUMERS,
    PRODUCER_REGISTERS,
    SHARED_BYTES,
    TERMS,
    TILE_I,
    TILE_J,
    make_producer,
    make_tile_multiplier,
    n_tiles,
    n_tiles_device,
    slice_start_device,
    start_block_device,
    tile_place_device,
)
from kernels.ptx_hopper import add_pair, barrier_sync, decrease_registers, increase_registers, warp_uniform
from kernels.registry import kernel
from kernels.tuples import each_pair

SIGNATURE = "void(float32[::1], uint64[::1], uint64[::1], int32[::1], int64, int64, int64, int64, int64)"

zeros = zero_accumulators(ACCUMULATORS)
produce_device, multiply_tile_device = make_producer("grad_weight"), make_tile_multiplier("grad_weight")


@cuda.jit(device=True)
def add_pair_device(pair, values, out, i, j, I, J, adds):  # noqa: E741
    """Add two neighbouring accumulators of a thread to the output, or store them, as far as they lie inside."""
    i += 8 * (pair & 1)
    j += 8 * (pair >> 1)
    if i < I and j < J:  # J is a multiple of 8: both or none
        if adds:
            add_pair(out, i * J + j, values[0], values[1])
        else:
            out[i * J + j] = values[0]
            out[i * J + j + 1] = values[1]
    return pair


@cuda.jit(device=True)
def wait_for_turn_device(turns, turn, index, thread, number):
    """Wait until all slices before number `index` have been added."""
    if thread == 0:
        while cuda.atomic.add(turns, turn, 0) != index:
            pass
        cuda.threadfence()
    barrier_sync(number, WARP_GROUP)  # it is this slice's turn


@cuda.jit(device=True)
def pass_turn_device(turns, turn, index, slices, thread, number):
    """Let the next slice add; the last one leaves the counter at zero for the next launch."""
    cuda.threadfence()  # what this thread added is there before the counter moves
    barrier_sync(number, WARP_GROUP)  # all threads have added
    if thread == 0:
        cuda.atomic.exch(turns, turn, index + 1 if index + 1 < slices else 0)


@kernel(SIGNATURE, architectures=("sm_90a",), launch_bounds=(BLOCK, 1))
def grad_weight_kernel(out, map_a, map_b, turns, I, J, K, slices, accumulate):  # noqa: E741
    """A block owns one slice of 128 x 256 outputs at a time; warp group 0 produces, 1 and 2 consume."""
    base = start_block_device()
    warp_group = warp_uniform(cuda.threadIdx.x // WARP_GROUP)
    if warp_group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(base, map_a, map_b, I, J, K, slices)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consumer, thread = warp_group - 1, cuda.threadIdx.x % WARP_GROUP
        leader = 1 if thread == 0 else 0
        tiles = n_tiles_device(I, J)
        acc = zeros()
        used = 0
        item = cuda.blockIdx.x
        while item < tiles * slices:
            tile, index = item % tiles, item // tiles
            n_steps = slice_start_device(index + 1, slices, K) - slice_start_device(index, slices, K)
            acc = multiply_tile_device(acc, base, consumer, used, n_steps, leader)
            used += n_steps
            i, j = tile_place_device(tile, I, J)
            i += consumer * 64 + 16 * (thread >> 5) + (thread >> 2 & 7)
            j += 2 * (thread & 3)
            turn = tile * CONSUMERS + consumer
            if slices > 1:
                wait_for_turn_device(turns, turn, index, thread, warp_group)
            each_pair(add_pair_device, (acc, out, i, j, I, J, accumulate or index > 0))
            if slices > 1:
                pass_turn_device(turns, turn, index, slices, thread, warp_group)
            item += cuda.gridDim.x


MAX_SLICES = 24
MIN_STEPS = 32
"""Stages of a slice: adding a tile to the output takes about as long as three."""
STEPS_OF_ADDING = 3


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
    if not takes_tma(product) or address(product.out) % 8:
        return portable_step(product, stream)
    tiles = n_tiles(product)
    slices = slices_of(tiles, product.K, n_multiprocessors())
    maps = [tensor_map.array for tensor_map in operand_maps(product, TILE_I, TILE_J)]
    turns = _turns(tiles * CONSUMERS, stream)
    sizes = (product.I, product.J, product.K, slices, int(product.accumulate))
    grid = min(n_multiprocessors(), tiles * slices)
    return [Launch(grad_weight_kernel, grid, BLOCK, (product.out, *maps, turns, *sizes), stream, SHARED_BYTES)]
