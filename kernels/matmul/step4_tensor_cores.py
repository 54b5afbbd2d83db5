"""Matrix product, step 4: bfloat16 on the tensor cores with `mma.sync`, fed by `cp.async` and `ldmatrix`.

A block's 8 warps own 128 x 128 outputs, a warp 64 x 32 of them as 4 x 4 tensor-core tiles of 16 x 8. While one stage of
32 terms is multiplied the next is copied. Each operand keeps in shared memory the order it has in global memory,
and `ldmatrix` transposes where the tensor core wants it otherwise. Copies move 16 bytes, so the contiguous size of
both operands must be a multiple of 8; other shapes, and float32, go to step 3. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32, uint16

from kernels.elements import load, store
from kernels.launch import Launch, address, ceil_div
from kernels.matmul import step3_register_tiles
from kernels.matmul.common import SIGNATURES, Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.ptx import (
    cp_async_16,
    cp_async_commit,
    cp_async_wait,
    ldmatrix_x4,
    ldmatrix_x4_trans,
    mma_m16n8k16_bf16,
    shared_address,
)
from kernels.registry import kernel

TILE = 128  # outputs of a block in each direction
TERMS = 32  # of a stage
WARP_I, WARP_J = 64, 32  # outputs of a warp
BLOCK = 256
K_PITCH = TERMS + 8  # of a row of the tile; 16 bytes more, so that the 8 rows of ldmatrix lie in different banks
ROW_PITCH = TILE + 8
STAGE = TILE * K_PITCH  # elements; enough for TERMS * ROW_PITCH too
TWO_STAGES = 2 * STAGE


@cuda.jit(device=True)
def start_copy_device(tile, stage, source, first, k, size, K, k_contiguous):
    """Start copying one operand's stage: 512 pieces of 8 elements, two a thread; zeros where it hangs over the edge."""
    for part in range(2):
        piece = cuda.threadIdx.x + part * BLOCK
        if k_contiguous:
            i, term = piece >> 2, (piece & 3) * 8
            to = i * K_PITCH + term
            where = (first + i) * K + k + term
        else:
            i, term = (piece & 15) * 8, piece >> 4
            to = term * ROW_PITCH + i
            where = (k + term) * size + first + i
        inside = first + i < size and k + term < K
        target = shared_address(tile, stage * STAGE + to)
        cp_async_16(target, source, where if inside else 0, 16 if inside else 0)


@cuda.jit(device=True)
def load_fragments_device(tile, stage, i, k, k_contiguous, lane_i, lane_k):
    """Load the four 8 x 8 matrices of a 16 x 16 part of a tile, of rows i and terms k; each lane names one row."""
    if k_contiguous:
        return ldmatrix_x4(shared_address(tile, stage * STAGE + (i + lane_i) * K_PITCH + k + lane_k))
    return ldmatrix_x4_trans(shared_address(tile, stage * STAGE + (k + lane_k) * ROW_PITCH + i + lane_i))


@cuda.jit(device=True)
def multiply_row_device(a, b_left, b_right, row):
    """Add a 16 x 16 times a 16 x 32 part to one row of four tensor-core tiles."""
    return (
        mma_m16n8k16_bf16(a, b_left[0], b_left[1], row[0]),
        mma_m16n8k16_bf16(a, b_left[2], b_left[3], row[1]),
        mma_m16n8k16_bf16(a, b_right[0], b_right[1], row[2]),
        mma_m16n8k16_bf16(a, b_right[2], b_right[3], row[3]),
    )


@cuda.jit(device=True)
def multiply_stage_device(sums, tile_a, tile_b, stage, warp_i, warp_j, a_k_contiguous, b_k_contiguous):
    """Return the warp's sums with the products of one stage added."""
    lane = cuda.threadIdx.x & 31
    in_8, second, fourth = lane & 7, (lane >> 3 & 1) * 8, (lane >> 4) * 8
    # a: matrices ordered (i, k) = (0, 0), (8, 0), (0, 8), (8, 8); b: (j, k) = (0, 0), (0, 8), (8, 0), (8, 8)
    a_i, a_k = (in_8 + second, fourth) if a_k_contiguous else (second, in_8 + fourth)
    b_j, b_k = (in_8 + fourth, second) if b_k_contiguous else (fourth, in_8 + second)
    for k in range(0, TERMS, 16):
        b_left = load_fragments_device(tile_b, stage, warp_j, k, b_k_contiguous, b_j, b_k)
        b_right = load_fragments_device(tile_b, stage, warp_j + 16, k, b_k_contiguous, b_j, b_k)
        a_0 = load_fragments_device(tile_a, stage, warp_i, k, a_k_contiguous, a_i, a_k)
        a_1 = load_fragments_device(tile_a, stage, warp_i + 16, k, a_k_contiguous, a_i, a_k)
        a_2 = load_fragments_device(tile_a, stage, warp_i + 32, k, a_k_contiguous, a_i, a_k)
        a_3 = load_fragments_device(tile_a, stage, warp_i + 48, k, a_k_contiguous, a_i, a_k)
        sums = (
            multiply_row_device(a_0, b_left, b_right, sums[0]),
            multiply_row_device(a_1, b_left, b_right, sums[1]),
            multiply_row_device(a_2, b_left, b_right, sums[2]),
            multiply_row_device(a_3, b_left, b_right, sums[3]),
        )
    return sums


@cuda.jit(device=True)
def store_pair_device(out, bias, i, j, I, J, left, right, has_bias, accumulate):  # noqa: E741
    """Store two neighbouring outputs, those that lie inside."""
    for part in range(2):
        if i < I and j + part < J:
            total = right if part else left
            if has_bias:
                total += load(bias, j + part)
            if accumulate:
                total += load(out, i * J + j + part)
            store(out, i * J + j + part, total)


@cuda.jit(device=True)
def store_row_device(out, bias, i, j, I, J, row, has_bias, accumulate):  # noqa: E741
    """Store one row of four tensor-core tiles; a lane holds two pairs of each, eight rows apart."""
    lane = cuda.threadIdx.x & 31
    i += lane >> 2
    j += 2 * (lane & 3)
    for c in range(4):
        tile = row[c]
        store_pair_device(out, bias, i, j + 8 * c, I, J, tile[0], tile[1], has_bias, accumulate)
        store_pair_device(out, bias, i + 8, j + 8 * c, I, J, tile[2], tile[3], has_bias, accumulate)


@kernel(SIGNATURES[0].replace("real", "uint16"), SIGNATURES[1], launch_bounds=BLOCK)
def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate):  # noqa: E741
    """A block owns 128 x 128 outputs at a time, a warp 64 x 32; sums are tuples, which always are in registers."""
    tile_a = cuda.shared.array(TWO_STAGES, uint16, 16)  # [i, k] or [k, i]
    tile_b = cuda.shared.array(TWO_STAGES, uint16, 16)  # [j, k] or [k, j]
    zero = (float32(0), float32(0), float32(0), float32(0))
    zero_row = (zero, zero, zero, zero)
    warp = cuda.threadIdx.x >> 5
    warp_i, warp_j = (warp & 1) * WARP_I, (warp >> 1) * WARP_J
    n_columns = (J + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < (I + TILE - 1) // TILE * n_columns:
        first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
        sums = (zero_row, zero_row, zero_row, zero_row)
        start_copy_device(tile_a, 0, a, first_i, 0, I, K, a_k_contiguous)
        start_copy_device(tile_b, 0, b, first_j, 0, J, K, b_k_contiguous)
        cp_async_commit()
        stage = 0
        k = 0
        while k < K:
            if k + TERMS < K:
                start_copy_device(tile_a, 1 - stage, a, first_i, k + TERMS, I, K, a_k_contiguous)
                start_copy_device(tile_b, 1 - stage, b, first_j, k + TERMS, J, K, b_k_contiguous)
                cp_async_commit()
                cp_async_wait(1)
            else:
                cp_async_wait(0)
            cuda.syncthreads()  # the copies of all threads are there
            sums = multiply_stage_device(sums, tile_a, tile_b, stage, warp_i, warp_j, a_k_contiguous, b_k_contiguous)
            cuda.syncthreads()  # all have read this stage: it may be copied into
            stage = 1 - stage
            k += TERMS
        i, j = first_i + warp_i, first_j + warp_j
        store_row_device(out, bias, i, j, I, J, sums[0], has_bias, accumulate)
        store_row_device(out, bias, i + 16, j, I, J, sums[1], has_bias, accumulate)
        store_row_device(out, bias, i + 32, j, I, J, sums[2], has_bias, accumulate)
        store_row_device(out, bias, i + 48, j, I, J, sums[3], has_bias, accumulate)
        item += cuda.gridDim.x


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output, or step 3 where the tensor cores cannot be fed."""
    contiguous = (
        product.K if product.a_k_contiguous else product.I,
        product.K if product.b_k_contiguous else product.J,
    )
    aligned = address(product.a) % 16 == 0 and address(product.b) % 16 == 0
    if str(product.a.dtype) != "uint16" or any(size % 8 for size in contiguous) or not aligned:
        return step3_register_tiles.step(product, stream)
    grid = ceil_div(product.I, TILE) * ceil_div(product.J, TILE)
    return [Launch(matmul_kernel, grid, BLOCK, product.arguments(), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
