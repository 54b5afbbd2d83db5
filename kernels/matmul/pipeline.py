"""What the warp-specialised steps share: a producer that fills a ring of stages, and consumers that multiply from it.

A block is three warp groups and does one tile of 128 x 256 outputs after the other. One thread of the first group, the
producer, copies stages ahead of the other two, the consumers, which own 64 rows each. Every stage has two barriers:
"full" is over when its bytes have come, "empty" when both consumers have multiplied from it. Consumers never wait for
each other, and the producer runs on into the next tile. Registers move from the producer to the consumers.

The dynamic shared memory of a block, from an address that is a multiple of 1024:

    4 stages of (128 + 256) rows of 128 bytes | 2 staging boxes a consumer | barriers: full, empty, staging
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda, int32, int64, uint8, uint32, uint64

from kernels.accumulators import pack_accumulators, zero_words
from kernels.launch import ceil_div
from kernels.matmul.common import Product
from kernels.matmul.hopper import (
    BOX_BYTES,
    LAYOUTS,
    ROW_BYTES,
    TERMS,
    WARP_GROUP,
    make_describer,
    make_loader,
)
from kernels.ptx import pack_bf16x2, shared_address, unpack_bf16x2
from kernels.ptx_hopper import (
    mbarrier_arrive_if,
    mbarrier_init,
    mbarrier_init_fence,
    mbarrier_wait,
    tma_prefetch_map,
)
from kernels.tuples import each, each_four
from kernels.wgmma import wgmma_ss, wgmma_wait, wgmma_wait_for

TILE_I, TILE_J = 128, 256  # outputs of a block at a time
CONSUMERS = TILE_I // 64
BLOCK = (1 + CONSUMERS) * WARP_GROUP
STAGES = 4
IN_RING, ROUNDS = STAGES - 1, 2
"""With n stages used before, the next one is n & IN_RING, used the (n >> ROUNDS)-th time."""
A_BYTES = TILE_I * ROW_BYTES
STAGE_BYTES = (TILE_I + TILE_J) * ROW_BYTES
ACCUMULATORS = TILE_J // 2  # of a thread
GROUP = 16
"""Rows of tiles that are done column by column, so that blocks running side by side read the same operands."""

STAGING = 2  # boxes of a consumer
STAGING_AT = STAGES * STAGE_BYTES
FULL_AT = STAGING_AT + CONSUMERS * STAGING * BOX_BYTES
EMPTY_AT = FULL_AT + 8 * STAGES
STAGED_AT = EMPTY_AT + 8 * STAGES
SHARED_BYTES = STAGED_AT + 8 * CONSUMERS * STAGING + 1024

PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232


no_bias = zero_words(TILE_J // 8)
pack = pack_accumulators(ACCUMULATORS)


def n_tiles(product: Product) -> int:
    """Return how many tiles cover the output of a product."""
    return ceil_div(product.I, TILE_I) * ceil_div(product.J, TILE_J)


@cuda.jit(device=True)
def start_block_device(readers):
    """Make the barriers, and return the address of the shared memory; so many arrivals free a stage."""
    memory = cuda.shared.array(0, uint8, 1024)
    base = (shared_address(memory, 0) + 1023) & 0xFFFFFC00
    if cuda.threadIdx.x == 0:
        for stage in range(STAGES):
            mbarrier_init(base + FULL_AT + 8 * stage, 1)
            mbarrier_init(base + EMPTY_AT + 8 * stage, readers)
        for box in range(CONSUMERS * STAGING):
            mbarrier_init(base + STAGED_AT + 8 * box, 1)
        mbarrier_init_fence()
    cuda.syncthreads()  # the barriers are there
    return base


@cuda.jit(device=True)
def divide_device(x, y):
    """Divide whole numbers below 2**32; a GPU takes ten times as long for 64 bits, and here the tensor cores wait."""
    return int64(uint32(x) // uint32(y))


@cuda.jit(device=True)
def tile_place_device(tile, I, J):  # noqa: E741
    """Return the first row and column of a tile: down 16 rows of tiles, then one column on."""
    rows, columns = (I + TILE_I - 1) // TILE_I, (J + TILE_J - 1) // TILE_J
    group = divide_device(tile, GROUP * columns)
    within = tile - group * GROUP * columns
    high = min(rows - group * GROUP, GROUP)
    column = divide_device(within, high)
    return (group * GROUP + within - column * high) * TILE_I, column * TILE_J


@cuda.jit(device=True)
def n_tiles_device(I, J):  # noqa: E741
    """Return how many tiles cover the output."""
    return (I + TILE_I - 1) // TILE_I * ((J + TILE_J - 1) // TILE_J)


@cuda.jit(device=True)
def slice_start_device(index, slices, K):
    """Return the first stage of a slice of the terms."""
    return divide_device((K + TERMS - 1) // TERMS * index, slices)


def make_producer(layout: str) -> Callable:
    """Make the device function of the one thread that copies."""
    load_stage_device = make_loader(layout, TILE_I, TILE_J)

    @cuda.jit(device=True)
    def produce_device(base, map_a, map_b, I, J, K, slices):  # noqa: E741
        """Copy the stages of all tiles of this block, each as soon as its place in the ring is free."""
        tma_prefetch_map(map_a)
        tma_prefetch_map(map_b)
        tiles = n_tiles_device(I, J)
        used = int32(0)
        item = int32(cuda.blockIdx.x)
        while item < tiles * slices:
            index = divide_device(item, tiles)
            i, j = tile_place_device(item - index * tiles, I, J)
            first_i, first_j = int32(i), int32(j)
            step, end = int32(slice_start_device(index, slices, K)), int32(slice_start_device(index + 1, slices, K))
            while step < end:
                stage = used & IN_RING
                # the wait for the phase before the first passes at once: the ring is empty
                mbarrier_wait(base + EMPTY_AT + 8 * stage, used >> ROUNDS & 1 ^ 1)
                load_stage_device(
                    base + stage * STAGE_BYTES, base + FULL_AT + 8 * stage, map_a, map_b, first_i, first_j, step * TERMS
                )
                used = int32(used + 1)
                step = int32(step + 1)
            item = int32(item + cuda.gridDim.x)

    return produce_device


def make_stage_multiplier(layout: str) -> Callable:
    """Make the device function that starts the products of one stage."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    describe_a_device, describe_b_device = make_describer(a_k_contiguous), make_describer(b_k_contiguous)
    multiply = wgmma_ss(TILE_J, TERMS // 16, not a_k_contiguous, not b_k_contiguous)

    @cuda.jit(device=True)
    def multiply_stage_device(acc, base, consumer, used, keep, frees):
        """Wait for a stage and start its products; when those of the stage before are over, free that one.

        With keep = 0 the tile begins. `frees` is 1 in the thread that speaks for its warp group, and 0 if this is the
        first stage of the tile, before which all have been freed.
        """
        stage = used & IN_RING
        mbarrier_wait(base + FULL_AT + 8 * stage, used >> ROUNDS & 1)
        a = base + stage * STAGE_BYTES
        acc = multiply(acc, describe_a_device(a + consumer * BOX_BYTES), describe_b_device(a + A_BYTES), keep)
        wgmma_wait(1)
        mbarrier_arrive_if(base + EMPTY_AT + 8 * ((used - 1) & IN_RING), frees)
        return acc

    return multiply_stage_device


def make_tile_multiplier(layout: str) -> Callable:
    """Make the device function that multiplies a tile, or a slice of its terms, from start to end."""
    multiply_stage_device = make_stage_multiplier(layout)
    finished = wgmma_wait_for(ACCUMULATORS)

    @cuda.jit(device=True)
    def multiply_tile_device(acc, base, consumer, used, n_steps, leader):
        """Return the accumulators of `n_steps` stages, of which `used` stages of the ring were used before."""
        step = 0
        while step < n_steps:
            acc = multiply_stage_device(acc, base, consumer, used + step, step, leader if step else 0)
            step += 1
        acc = finished(acc)
        mbarrier_arrive_if(base + EMPTY_AT + 8 * ((used + n_steps - 1) & IN_RING), leader)
        return acc

    return multiply_tile_device


# ---- rounding, with the bias ---------------------------------------------------------------------------------------


@cuda.jit(device=True)
def bias_word_device(place, nothing, bias_words, first):
    """Return the bias of two neighbouring columns, the thread's pair number `place`."""
    return bias_words[uint64(first) + uint64(4 * place)]  # unsigned: Numba need not look for negative indices


@cuda.jit(device=True)
def bias_word_at_edge_device(place, nothing, bias_words, first):
    """The same in a tile that hangs over the edge: zeros past the end."""
    return bias_words[first + 4 * place] if first + 4 * place < bias_words.size else nothing


@cuda.jit(device=True)
def load_bias_device(bias_words, j, thread, has_bias):
    """Return a thread's 32 words of the bias of a tile whose first column is j; zeros if there is none."""
    words = no_bias()
    if has_bias:
        first = (j >> 1) + (thread & 3)
        if j + TILE_J <= 2 * bias_words.size:
            words = each(bias_word_device, (words, bias_words, first))
        else:
            words = each(bias_word_at_edge_device, (words, bias_words, first))
    return words


@cuda.jit(device=True)
def round_four_device(place, four, bias):
    """Add the bias to a pair of columns in two rows, and round."""
    left, right = unpack_bf16x2(bias[place])
    return pack_bf16x2(four[0] + left, four[1] + right), pack_bf16x2(four[2] + left, four[3] + right)


@cuda.jit(device=True)
def round_tile_device(acc, bias, has_bias):
    """Return the accumulators, with the bias, as words of two bfloat16."""
    if has_bias:
        return each_four(round_four_device, (acc, bias))
    return pack(acc)
