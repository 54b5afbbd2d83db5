"""Matrix product, step 10: a warp group that only copies, two that only multiply, and blocks that stay.

There are as many blocks as multiprocessors, and each takes every n-th tile, in an order that lets neighbours share what
they read through the L2 cache. A tile is 128 x 256 outputs, so that a byte of shared memory serves more products. The
epilogue rounds, goes through staging boxes in shared memory and is stored by TMA; the tensor cores wait for it.
The gradient of the weight, which sums over all rows of the batch, is in `weight_gradient.py`. What TMA cannot move goes
to the best step without it. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda

from kernels.accumulators import store_words_box, zero_accumulators
from kernels.architecture import n_multiprocessors
from kernels.launch import Launch, address
from kernels.matmul import weight_gradient
from kernels.matmul.common import Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.matmul.hopper import (
    BOX,
    BOX_BYTES,
    WARP_GROUP,
    bias_words,
    layout_of,
    matrix_map,
    operand_maps,
    portable_step,
    takes_tma,
)
from kernels.matmul.pipeline import (
    ACCUMULATORS,
    BLOCK,
    CONSUMER_REGISTERS,
    CONSUMERS,
    PRODUCER_REGISTERS,
    SHARED_BYTES,
    STAGING,
    STAGING_AT,
    TERMS,
    TILE_I,
    TILE_J,
    load_bias_device,
    make_producer,
    make_tile_multiplier,
    n_tiles,
    n_tiles_device,
    round_tile_device,
    start_block_device,
    tile_place_device,
)
from kernels.ptx_hopper import (
    barrier_sync,
    bulk_commit,
    bulk_wait,
    bulk_wait_read,
    decrease_registers,
    fence_async_shared,
    increase_registers,
    tma_reduce_add_2d,
    tma_store_2d,
    warp_uniform,
)
from kernels.registry import kernel

SIGNATURE = "void(uint64[::1], uint64[::1], uint64[::1], uint32[::1], int64, int64, int64, int64, int64)"

zeros = zero_accumulators(ACCUMULATORS)
store_box_0 = store_words_box(ACCUMULATORS // 2, 0)
store_box_1 = store_words_box(ACCUMULATORS // 2, 64)
store_box_2 = store_words_box(ACCUMULATORS // 2, 128)
store_box_3 = store_words_box(ACCUMULATORS // 2, 192)


@cuda.jit(device=True)
def store_box_device(box, words, staging, thread, number, map_out, i, j, accumulate):
    """Store 64 of a consumer's 256 columns through one of its two staging boxes."""
    place = staging + box % STAGING * BOX_BYTES
    if thread == 0:
        bulk_wait_read(1)
    barrier_sync(number, WARP_GROUP)  # the box before the last has been read: its place is free
    if box == 0:
        store_box_0(words, place, thread)
    elif box == 1:
        store_box_1(words, place, thread)
    elif box == 2:
        store_box_2(words, place, thread)
    else:
        store_box_3(words, place, thread)
    fence_async_shared()
    barrier_sync(number, WARP_GROUP)  # all have written their part
    if thread == 0:
        if accumulate:
            tma_reduce_add_2d(map_out, j + box * BOX, i, place)
        else:
            tma_store_2d(map_out, j + box * BOX, i, place)
        bulk_commit()


def make_kernel(layout: str):
    """Make the kernel of one layout."""
    produce_device, multiply_tile_device = make_producer(layout), make_tile_multiplier(layout)

    @kernel(SIGNATURE, name=f"{layout}_kernel", architectures=("sm_90a",), launch_bounds=(BLOCK, 1))
    def matmul_kernel(map_a, map_b, map_out, bias, I, J, K, has_bias, accumulate):  # noqa: E741
        """A block owns 128 x 256 outputs at a time; warp group 0 produces, 1 and 2 consume."""
        base = start_block_device(CONSUMERS)
        warp_group = warp_uniform(cuda.threadIdx.x // WARP_GROUP)
        if warp_group == 0:
            decrease_registers(PRODUCER_REGISTERS)
            if cuda.threadIdx.x == 0:
                produce_device(base, map_a, map_b, I, J, K, 1)
        else:
            increase_registers(CONSUMER_REGISTERS)
            consumer, thread = warp_group - 1, cuda.threadIdx.x & (WARP_GROUP - 1)
            leader = 1 if thread == 0 else 0
            staging = base + STAGING_AT + consumer * STAGING * BOX_BYTES
            n_steps = (K + TERMS - 1) // TERMS
            acc = zeros()
            used = 0
            tile = cuda.blockIdx.x
            while tile < n_tiles_device(I, J):
                acc = multiply_tile_device(acc, base, consumer, used, n_steps, leader)
                used += n_steps
                i, j = tile_place_device(tile, I, J)
                bias_pairs = load_bias_device(bias, j, thread, has_bias)
                words = round_tile_device(acc, bias_pairs, has_bias)
                for box in range(TILE_J // BOX):
                    store_box_device(box, words, staging, thread, warp_group, map_out, i + consumer * 64, j, accumulate)
                tile += cuda.gridDim.x
            if thread == 0:
                bulk_wait(0)

    return matmul_kernel


KERNELS = {layout: make_kernel(layout) for layout in ("forward", "grad_input")}


def takes_tma_both_ways(product: Product) -> bool:
    """Tell whether TMA can read the operands and write the bfloat16 output of a product."""
    biases = [] if product.bias is None else [product.bias]
    aligned = all(address(array) % 16 == 0 for array in [product.out, *biases])
    return takes_tma(product) and product.J % 8 == 0 and aligned


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each multiprocessor, or use the portable step where TMA cannot read or write."""
    layout = layout_of(product)
    if layout == "grad_weight":
        return weight_gradient.step(product, stream)
    if not takes_tma_both_ways(product):
        return portable_step(product, stream)
    maps = [tensor_map.array for tensor_map in operand_maps(product, TILE_I, TILE_J)]
    map_out = matrix_map(product.out, product.I, product.J, (BOX, BOX)).array
    sizes = (product.I, product.J, product.K, int(product.bias is not None), int(product.accumulate))
    grid = min(n_multiprocessors(), n_tiles(product))
    return [Launch(KERNELS[layout], grid, BLOCK, (*maps, map_out, bias_words(product), *sizes), stream, SHARED_BYTES)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step, fused=True)
