"""Matrix product, step 7: copies run stages ahead, fragments a step ahead, and the tensor cores never wait.

Shared memory is a ring of 3 stages of 64 terms. While one is multiplied the next two are under way. One barrier a stage
tells that the next one has come and that the one before may be overwritten. A warp loads the fragments of 16 terms
while it multiplies those of the 16 before. A tile is 128 x 256 outputs, so that what is read serves more products.
There are as many blocks as multiprocessors, and each takes every n-th tile, in an order that lets blocks that run side
by side share what they read through the L2 cache. The ring runs on into the next tile: its first stages are under way
while a block stores its outputs.

The gradient of a weight has few outputs, each a long sum, which is cut into slices (`slices.py`). This is the
production kernel for GPUs without Hopper's instructions. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda, float32, int32, uint8, uint32

from kernels.architecture import most_shared_bytes, n_multiprocessors
from kernels.launch import Launch, ceil_div
from kernels.matmul import step6_swizzle
from kernels.matmul.common import (
    LAYOUTS,
    OUTPUTS,
    Product,
    epilogue_of,
    forward_launcher,
    grad_input_launcher,
    grad_weight_launcher,
    in_pieces,
    layout_of,
    takes_pieces,
    unfused,
)
from kernels.matmul.outputs import PATCH_BYTES, add_bias_device, make_pairs_storer, store_floats_device
from kernels.matmul.slices import likely_slices, partial_sums, sum_slices
from kernels.matmul.tensor_tiles import (
    COLUMNS,
    FRAGMENTS,
    TERMS,
    WARP,
    clear_device,
    make_operand,
    multiply_device,
)
from kernels.matmul.tuning import Choice, choose
from kernels.ptx import cp_async_commit, cp_async_wait, shared_address
from kernels.registry import kernel

TILE_I, TILE_J = 128, 256  # outputs of a block at a time
BLOCK = 256
WARPS_I = TILE_I // WARP
A_BYTES = 2 * TILE_I * TERMS
STAGE_BYTES = A_BYTES + 2 * TILE_J * TERMS
STAGES = 3
AHEAD = STAGES - 1  # stages under way while one is multiplied
PENDING = AHEAD - 1  # of these, those that may still be under way when the next one is needed
RING_BYTES = STAGES * STAGE_BYTES
LAST_STAGE = RING_BYTES - STAGE_BYTES
SHARED_BYTES = RING_BYTES + BLOCK // 32 * PATCH_BYTES
GROUPS = (16, 8, 32)
"""Rows of tiles that are done column by column, so that blocks running side by side read the same operands."""
SLICES_TRIED = 4
WORD = 0xFFFFFFFF
"""Cuts a number to 32 bits: the compiler divides such numbers with far fewer instructions than those of 64."""


@cuda.jit(device=True)
def divide_device(x, y):
    """Divide numbers that fit in 32 bits."""
    return (x & WORD) // (y & WORD)


@cuda.jit(device=True)
def tile_place_device(tile, group, I, J):  # noqa: E741
    """Return the first row and column of a tile: down a group of so many rows of tiles, then one column on."""
    rows, columns = (I + TILE_I - 1) // TILE_I, (J + TILE_J - 1) // TILE_J
    first = divide_device(tile, group * columns) * group
    within = tile - first * columns
    high = min(rows - first, group)
    column = divide_device(within, high)
    return (first + within - column * high) * TILE_I, column * TILE_J


@cuda.jit(device=True)
def slice_device(item, slices, I, J, K, sliced):  # noqa: E741
    """Return the tile and number of a piece of work, and its first stage and end; an empty one past the last."""
    tiles = (I + TILE_I - 1) // TILE_I * ((J + TILE_J - 1) // TILE_J)
    stages = (K + TERMS - 1) // TERMS
    if not sliced:
        return min(item, tiles - 1), 0, 0, stages if item < tiles else 0
    index = divide_device(item, tiles)
    first, end = divide_device(stages * index, slices), divide_device(stages * (index + 1), slices)
    return item - index * tiles, index, first, min(end, stages)


def make_copier(layout: str) -> tuple[Callable, Callable, Callable]:
    """Make the device functions that begin the copies of a piece of work, start that of a stage, and go on to the next.

    What a thread copies next goes from one to the other: of each operand the element, and the rows and terms left
    there; the stages left of the piece, and its number.
    """
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    first_a_device, copy_a_device, _ = make_operand(TILE_I, BLOCK, a_k_contiguous, is_a=True)
    first_b_device, copy_b_device, _ = make_operand(TILE_J, BLOCK, b_k_contiguous, is_a=False)
    sliced = layout == "grad_weight"

    @cuda.jit(device=True)
    def begin_device(item, slices, group, I, J, K):  # noqa: E741
        """Return what this thread copies first of a piece of work."""
        tile, _, first, end = slice_device(item, slices, I, J, K, sliced)
        i, j = tile_place_device(tile, group, I, J)
        k, end_k = first * TERMS, min(K, end * TERMS)
        return first_a_device(i, k, end_k, I, K) + first_b_device(j, k, end_k, J, K) + (int32(end - first), item)

    @cuda.jit(device=True)
    def copy_stage_device(stage, a, b, ahead, I, J, K):  # noqa: E741
        """Start copying what is `ahead`."""
        a_index, a_rows, a_terms, b_index, b_rows, b_terms, _, _ = ahead
        copy_a_device(stage, a, a_index, a_rows, a_terms, I, K)
        copy_b_device(stage + A_BYTES, b, b_index, b_rows, b_terms, J, K)
        cp_async_commit()

    @cuda.jit(device=True)
    def next_stage_device(ahead, slices, group, I, J, K):  # noqa: E741
        """Return what comes after `ahead`: the next stage, or the first one of the block's next piece of work."""
        a_index, a_rows, a_terms, b_index, b_rows, b_terms, left, item = ahead
        if left == 1:
            return begin_device(item + cuda.gridDim.x, slices, group, I, J, K)
        a_index += TERMS if a_k_contiguous else TERMS * I
        b_index += TERMS if b_k_contiguous else TERMS * J
        a_terms, b_terms = int32(a_terms - TERMS), int32(b_terms - TERMS)
        return a_index, a_rows, a_terms, b_index, b_rows, b_terms, int32(left - 1), item

    return begin_device, copy_stage_device, next_stage_device


def make_loader(layout: str) -> Callable:
    """Make the device function that loads the fragments of 16 terms of a stage, those of this thread's warp."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    *_, load_a_device = make_operand(TILE_I, BLOCK, a_k_contiguous, is_a=True)
    *_, load_b_device = make_operand(TILE_J, BLOCK, b_k_contiguous, is_a=False)

    @cuda.jit(device=True)
    def load_step_device(a_words, b_words, buffer, stage, step):
        """Load step number `step` of a stage into a buffer of words."""
        warp = cuda.threadIdx.x >> 5
        load_a_device(a_words, buffer, stage, warp % WARPS_I * WARP, step)
        load_b_device(b_words, buffer, stage + A_BYTES, warp // WARPS_I * WARP, step)

    return load_step_device


def make_kernel(layout: str, epilogue: str):
    """Make the kernel of one layout and epilogue."""
    begin_device, copy_stage_device, next_stage_device = make_copier(layout)
    load_step_device = make_loader(layout)
    store_device = store_floats_device if OUTPUTS[layout] == "float32" else make_pairs_storer(epilogue)
    sliced = layout == "grad_weight"
    out = f"{OUTPUTS[layout]}[::1]"
    signature = f"void({out}, uint16[::1], uint16[::1], uint16[::1], {out}{', int64' * 8})"

    @kernel(signature, name=f"{layout}_{epilogue}_kernel", launch_bounds=(BLOCK, 1))
    def matmul_kernel(out, a, b, bias, more, I, J, K, has_bias, accumulate, whole, slices, group):  # noqa: E741
        """A block owns a slice of 128 x 256 outputs at a time, a warp 64 x 64."""
        memory = cuda.shared.array(0, uint8, 128)
        sums = cuda.local.array((FRAGMENTS, COLUMNS, 4), float32)
        a_words = cuda.local.array((2, FRAGMENTS, 4), uint32)
        b_words = cuda.local.array((2, FRAGMENTS, 4), uint32)
        ring = shared_address(memory, 0)
        warp = cuda.threadIdx.x >> 5
        pieces = (I + TILE_I - 1) // TILE_I * ((J + TILE_J - 1) // TILE_J) * slices
        item = cuda.blockIdx.x
        ahead = begin_device(item, slices, group, I, J, K)
        for stage in range(AHEAD):
            copy_stage_device(ring + stage * STAGE_BYTES, a, b, ahead, I, J, K)
            ahead = next_stage_device(ahead, slices, group, I, J, K)
        read, write = uint32(0), uint32(LAST_STAGE)
        cp_async_wait(PENDING)
        cuda.syncthreads()  # the copies of all threads to the first stage are there
        load_step_device(a_words, b_words, 0, ring, 0)
        while item < pieces:
            clear_device(sums)
            _, _, first, end = slice_device(item, slices, I, J, K, sliced)
            left = int32(end - first)
            while left > 0:
                load_step_device(a_words, b_words, 1, ring + read, 1)
                copy_stage_device(ring + write, a, b, ahead, I, J, K)
                multiply_device(sums, a_words, b_words, 0)
                load_step_device(a_words, b_words, 0, ring + read, 2)
                multiply_device(sums, a_words, b_words, 1)
                load_step_device(a_words, b_words, 1, ring + read, 3)
                multiply_device(sums, a_words, b_words, 0)
                ahead = next_stage_device(ahead, slices, group, I, J, K)
                write = read
                read = uint32(read + STAGE_BYTES) if read < LAST_STAGE else uint32(0)
                cp_async_wait(PENDING)
                cuda.syncthreads()  # the next stage is there, and all have loaded what they need of this one
                load_step_device(a_words, b_words, 0, ring + read, 0)
                multiply_device(sums, a_words, b_words, 1)
                left = int32(left - 1)
            tile, index, _, _ = slice_device(item, slices, I, J, K, sliced)
            i, j = tile_place_device(tile, group, I, J)
            i += warp % WARPS_I * WARP + index * I
            j += warp // WARPS_I * WARP
            if has_bias:
                add_bias_device(sums, bias, j, J)
            store_device(ring + RING_BYTES, sums, out, more, i, j, I + index * I, J, accumulate, whole)
            item += cuda.gridDim.x
        cp_async_wait(0)

    return matmul_kernel


KERNELS = {
    (layout, epilogue): make_kernel(layout, epilogue)
    for layout, epilogue in [
        ("forward", "plain"),
        ("forward", "gelu"),
        ("forward", "residual"),
        ("grad_input", "plain"),
        ("grad_weight", "plain"),
    ]
}


def n_tiles(product: Product) -> int:
    """Return how many tiles cover the output of a product."""
    return ceil_div(product.I, TILE_I) * ceil_div(product.J, TILE_J)


def options_of(product: Product) -> list[Choice]:
    """Return the ways in which a product can be done, the likeliest first."""
    slices = [1]
    if layout_of(product) == "grad_weight" and in_pieces(product.out, product.J):
        slices = likely_slices(n_tiles(product), ceil_div(product.K, TERMS), n_multiprocessors())[:SLICES_TRIED]
    by_slices = [{"slices": n, "group": GROUPS[0]} for n in slices]
    return by_slices + [{"slices": slices[0], "group": group} for group in GROUPS[1:]]


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each multiprocessor, or use step 6 on a GPU of less shared memory and for ragged rows."""
    layout, (epilogue, more) = layout_of(product), epilogue_of(product)
    if not takes_pieces(product) or most_shared_bytes() < SHARED_BYTES:
        return unfused(step6_swizzle.step, product, stream)
    whole = in_pieces(product.out, product.J)
    if (layout, epilogue) not in KERNELS or (epilogue != "plain" and not (whole and in_pieces(more, product.J))):
        return unfused(step, product, stream)
    choice = choose("sm_80", product, options_of(product))
    slices = choice["slices"]
    out = product.out if slices == 1 else partial_sums(slices * product.out.size, stream)
    accumulate = slices == 1 and product.accumulate
    has_bias = product.bias is not None
    arrays = (out, product.a, product.b, product.bias if has_bias else product.a, more)
    numbers = (int(has_bias), int(accumulate), int(whole), slices, choice["group"])
    arguments = (*arrays, product.I, product.J, product.K, *numbers)
    grid = min(n_multiprocessors(), n_tiles(product) * slices)
    launches = [Launch(KERNELS[layout, epilogue], grid, BLOCK, arguments, stream, SHARED_BYTES)]
    return launches if slices == 1 else [*launches, sum_slices(product.out, out, slices, product.accumulate, stream)]


matmul_forward = forward_launcher(step, fused=True)
matmul_grad_input = grad_input_launcher(step, fused=True)
matmul_grad_weight = grad_weight_launcher(step)
