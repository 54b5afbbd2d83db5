"""Matrix product, step 4: each thread keeps 8 x 8 outputs in registers and moves four numbers at a time.

Sixteen numbers read from shared memory, with four instructions, now serve 64 multiplications instead of two for one.
From global memory too a thread takes four neighbours with one instruction, where rows come in fours. This is the
production kernel for float32. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, load4, store, store4
from kernels.launch import Launch, ceil_div
from kernels.matmul.common import (
    SIGNATURES,
    Product,
    forward_launcher,
    grad_input_launcher,
    grad_weight_launcher,
    in_pieces,
)
from kernels.ptx import bits_float, load_shared_128, shared_address
from kernels.registry import kernel

SIDE = 16  # threads of a block in each direction
OWN = 8  # outputs of a thread in each direction: four neighbours, and four half a tile further
TILE = SIDE * OWN
HALF = TILE // 2
TERMS = 8
PITCH = TILE + 4
TILE_FLOATS = TERMS * PITCH
BLOCK = SIDE * SIDE


@cuda.jit(device=True)
def load_four_device(into_4, source, index, n_inside, whole):
    """Load four neighbouring elements at once where rows are `whole` pieces, else those that are inside, and zeros."""
    for e in range(4):
        into_4[e] = load(source, index + e) if e < n_inside and not whole else float32(0)
    if whole and n_inside > 0:
        load4(into_4, source, index)


@cuda.jit(device=True)
def store_four_device(out, index, n_inside, x_4, accumulate, whole):
    """Store four neighbouring outputs, at once or those that are inside."""
    before_4 = cuda.local.array(4, float32)
    if accumulate:
        load_four_device(before_4, out, index, n_inside, whole)
        for e in range(4):
            x_4[e] += before_4[e]
    if not whole:
        for e in range(4):
            if e < n_inside:
                store(out, index + e, x_4[e])
    elif n_inside > 0:
        store4(out, index, x_4)


@cuda.jit(device=True)
def load_tile_device(tile, source, first, k, size, K, k_contiguous, whole):
    """Load the tile [k, i] of an operand, four elements a thread that lie side by side in memory; zeros outside."""
    x_4 = cuda.local.array(4, float32)
    if k_contiguous:
        row, term = first + (cuda.threadIdx.x >> 1), k + (cuda.threadIdx.x & 1) * 4
        load_four_device(x_4, source, row * K + term, min(K - term, 4) if row < size else 0, whole)
        step = PITCH
    else:
        row, term = first + (cuda.threadIdx.x & 31) * 4, k + (cuda.threadIdx.x >> 5)
        load_four_device(x_4, source, term * size + row, min(size - row, 4) if term < K else 0, whole)
        step = 1
    for e in range(4):
        tile[(term - k) * PITCH + row - first + e * step] = x_4[e]


@cuda.jit(device=True)
def load_own_device(own_8, address):
    """Load this thread's eight numbers of a row of a tile: four neighbours, and four half a tile further."""
    for half in range(2):
        words = load_shared_128(address + half * HALF * 4)
        for e in range(4):
            own_8[half * 4 + e] = bits_float(words[e])


@cuda.jit(device=True)
def store_own_device(out, bias, sums, i, j, I, J, has_bias, accumulate, whole):  # noqa: E741
    """Store this thread's outputs, four neighbours at a time."""
    x_4 = cuda.local.array(4, float32)
    bias_4 = cuda.local.array(4, float32)
    for half in range(2):
        column = j + half * HALF
        load_four_device(bias_4, bias, column, min(J - column, 4) if has_bias else 0, False)
        for r in range(OWN):
            row = i + r % 4 + r // 4 * HALF
            for e in range(4):
                x_4[e] = sums[r, half * 4 + e] + bias_4[e]
            n_inside = min(J - column, 4) if row < I else 0
            store_four_device(out, row * J + column, n_inside, x_4, accumulate, whole)


@kernel(*(s.replace(")", ", int64, int64, int64)") for s in SIGNATURES), launch_bounds=(BLOCK, 2))
def matmul_kernel(
    out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate, whole_a, whole_b, whole_out  # noqa: E741
):  # fmt: skip
    """A block owns 128 x 128 outputs at a time, a thread 8 x 8; the loops are written out, so sums are in registers."""
    tile_a = cuda.shared.array(TILE_FLOATS, float32, 16)  # [k, i]
    tile_b = cuda.shared.array(TILE_FLOATS, float32, 16)  # [k, j]
    sums = cuda.local.array((OWN, OWN), float32)
    own_a = cuda.local.array(OWN, float32)
    own_b = cuda.local.array(OWN, float32)
    y, x = cuda.threadIdx.x // SIDE * 4, cuda.threadIdx.x % SIDE * 4
    from_a, from_b = shared_address(tile_a, y), shared_address(tile_b, x)
    n_columns = (J + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < (I + TILE - 1) // TILE * n_columns:
        first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
        for r in range(OWN):
            for c in range(OWN):
                sums[r, c] = float32(0)
        k = 0
        while k < K:
            load_tile_device(tile_a, a, first_i, k, I, K, a_k_contiguous, whole_a)
            load_tile_device(tile_b, b, first_j, k, J, K, b_k_contiguous, whole_b)
            cuda.syncthreads()  # both tiles are complete
            for term in range(TERMS):
                load_own_device(own_a, from_a + term * PITCH * 4)
                load_own_device(own_b, from_b + term * PITCH * 4)
                for r in range(OWN):
                    for c in range(OWN):
                        sums[r, c] += own_a[r] * own_b[c]
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
            k += TERMS
        store_own_device(out, bias, sums, first_i + y, first_j + x, I, J, has_bias, accumulate, whole_out)
        item += cuda.gridDim.x


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output."""
    whole = (
        in_pieces(product.a, product.K if product.a_k_contiguous else product.I),
        in_pieces(product.b, product.K if product.b_k_contiguous else product.J),
        in_pieces(product.out, product.J),
    )
    grid = ceil_div(product.I, TILE) * ceil_div(product.J, TILE)
    return [Launch(matmul_kernel, grid, BLOCK, (*product.arguments(), *whole), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
