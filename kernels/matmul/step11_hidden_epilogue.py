"""Matrix product, step 11, production on Hopper: a tile is finished and stored while the next one is multiplied.

When a tile's sums are done, a consumer rounds them, with the bias, to 64 words a thread and starts the next tile at
once. After every other of the next tile's stages it finishes a quarter of those words (`hidden_epilogue.py`), so that
the tensor cores need not wait, and GELU, its derivative or a residual cost no pass over memory of their own. The
gradient of the weight has few tiles and is step 10's. What TMA cannot move goes to the best step without it. Flat
arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda

from kernels.accumulators import zero_accumulators, zero_words
from kernels.architecture import n_multiprocessors
from kernels.launch import Launch, address
from kernels.matmul import weight_gradient
from kernels.matmul.common import Product, epilogue_of, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.matmul.hidden_epilogue import EPILOGUES
from kernels.matmul.hopper import (
    BOX,
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
    EMPTY_AT,
    IN_RING,
    PRODUCER_REGISTERS,
    SHARED_BYTES,
    TERMS,
    TILE_I,
    TILE_J,
    load_bias_device,
    make_producer,
    make_stage_multiplier,
    n_tiles,
    n_tiles_device,
    round_tile_device,
    start_block_device,
    tile_place_device,
)
from kernels.ptx_hopper import bulk_wait, decrease_registers, increase_registers, mbarrier_arrive_if, warp_uniform
from kernels.registry import kernel
from kernels.wgmma import wgmma_wait_for

SIGNATURE = "void(uint64[::1], uint64[::1], uint64[::1], uint64[::1], uint32[::1], int64, int64, int64, int64, int64)"

zeros = zero_accumulators(ACCUMULATORS)
no_words = zero_words(ACCUMULATORS // 2)
finished = wgmma_wait_for(ACCUMULATORS)


def make_kernel(layout: str, epilogue: str):
    """Make the kernel of one layout and epilogue."""
    produce_device, multiply_stage_device = make_producer(layout), make_stage_multiplier(layout)
    advance_device, n_calls = EPILOGUES[epilogue]

    @kernel(SIGNATURE, name=f"{layout}_{epilogue}_kernel", architectures=("sm_90a",), launch_bounds=(BLOCK, 1))
    def matmul_kernel(map_a, map_b, map_out, map_more, bias, I, J, K, has_bias, accumulate):  # noqa: E741
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
            n_steps = (K + TERMS - 1) // TERMS
            acc = zeros()
            words, i, j = no_words(), 0, 0  # the tile that is being finished
            calls = 0  # that this takes: none before the first tile
            used = 0
            tile = cuda.blockIdx.x
            while tile < n_tiles_device(I, J):
                step = 0
                while step < n_steps:
                    acc = multiply_stage_device(acc, base, consumer, used + step, step, leader if step else 0)
                    # every other stage, so that one consumer keeps the tensor cores busy while the other is here
                    if step & 1 == consumer and step >> 1 < calls:
                        words = advance_device(
                            step >> 1, words, base, consumer, thread, map_out, map_more, i, j, accumulate
                        )
                    step += 1
                call = (n_steps + 1 - consumer) >> 1
                while call < calls:  # if there are too few stages
                    words = advance_device(call, words, base, consumer, thread, map_out, map_more, i, j, accumulate)
                    call += 1
                used += n_steps
                i, j = tile_place_device(tile, I, J)
                i += consumer * 64
                bias_pairs = load_bias_device(bias, j, thread, has_bias)
                acc = finished(acc)
                mbarrier_arrive_if(base + EMPTY_AT + 8 * ((used - 1) & IN_RING), leader)
                words = round_tile_device(acc, bias_pairs, has_bias)
                calls = n_calls
                tile += cuda.gridDim.x
            for call in range(calls):
                words = advance_device(call, words, base, consumer, thread, map_out, map_more, i, j, accumulate)
            if thread == 0:
                bulk_wait(0)

    return matmul_kernel


KERNELS = {
    (layout, epilogue): make_kernel(layout, epilogue)
    for layout, epilogue in [
        ("forward", "plain"),
        ("forward", "gelu"),
        ("forward", "residual"),
        ("grad_input", "plain"),
        ("grad_input", "gelu_backward"),
    ]
}


def takes_tma_everywhere(product: Product) -> bool:
    """Tell whether TMA can move all arrays of a product with a bfloat16 output."""
    arrays = [product.out, epilogue_of(product)[1]] + ([] if product.bias is None else [product.bias])
    return takes_tma(product) and product.J % 8 == 0 and all(address(array) % 16 == 0 for array in arrays)


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each multiprocessor, or use the portable step where TMA cannot read or write."""
    layout = layout_of(product)
    if layout == "grad_weight":
        return weight_gradient.step(product, stream)
    if not takes_tma_everywhere(product):
        return portable_step(product, stream)
    epilogue, more = epilogue_of(product)
    maps = [*operand_maps(product, TILE_I, TILE_J)]
    maps += [matrix_map(array, product.I, product.J, (BOX, BOX)) for array in (product.out, more)]
    sizes = (product.I, product.J, product.K, int(product.bias is not None), int(product.accumulate))
    arguments = (*(tensor_map.array for tensor_map in maps), bias_words(product), *sizes)
    grid = min(n_multiprocessors(), n_tiles(product))
    return [Launch(KERNELS[layout, epilogue], grid, BLOCK, arguments, stream, SHARED_BYTES)]


matmul_forward = forward_launcher(step, fused=True)
matmul_grad_input = grad_input_launcher(step, fused=True)
matmul_grad_weight = grad_weight_launcher(step, fused=True)
