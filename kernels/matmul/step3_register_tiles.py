"""Matrix product, step 3: each thread keeps 4 x 4 outputs in registers.

Eight numbers read from shared memory now serve 16 multiplications instead of one for two. Flat arrays: I rows, J
columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import Launch, ceil_div
from kernels.matmul.common import SIGNATURES, Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.registry import kernel

SIDE = 16  # threads of a block in each direction
OWN = 4  # outputs of a thread in each direction
TILE = SIDE * OWN
TERMS = 16
PITCH = TILE + 1
BLOCK = SIDE * SIDE


@cuda.jit(device=True)
def load_tile_device(tile, source, first, k, size, K, k_contiguous):
    """Load the tile [k, i] of an operand; neighbouring threads load what is contiguous in memory, zeros outside."""
    for part in range(OWN):
        piece = cuda.threadIdx.x + part * BLOCK
        if k_contiguous:
            i, term = piece // TERMS, piece % TERMS
            where = (first + i) * K + k + term
        else:
            i, term = piece % TILE, piece // TILE
            where = (k + term) * size + first + i
        tile[term, i] = load(source, where) if first + i < size and k + term < K else float32(0)


@kernel(*SIGNATURES, launch_bounds=BLOCK)
def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate):  # noqa: E741
    """A block owns 64 x 64 outputs at a time; a thread those at every 16th row and column."""
    tile_a = cuda.shared.array((TERMS, PITCH), float32)  # [k, i]
    tile_b = cuda.shared.array((TERMS, PITCH), float32)  # [k, j]
    sums = cuda.local.array((OWN, OWN), float32)
    own_a = cuda.local.array(OWN, float32)
    own_b = cuda.local.array(OWN, float32)
    y, x = cuda.threadIdx.x // SIDE, cuda.threadIdx.x % SIDE
    n_columns = (J + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < (I + TILE - 1) // TILE * n_columns:
        first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
        for r in range(OWN):
            for c in range(OWN):
                sums[r, c] = float32(0)
        k = 0
        while k < K:
            load_tile_device(tile_a, a, first_i, k, I, K, a_k_contiguous)
            load_tile_device(tile_b, b, first_j, k, J, K, b_k_contiguous)
            cuda.syncthreads()  # both tiles are complete
            for term in range(TERMS):
                for r in range(OWN):
                    own_a[r] = tile_a[term, y + r * SIDE]
                    own_b[r] = tile_b[term, x + r * SIDE]
                for r in range(OWN):
                    for c in range(OWN):
                        sums[r, c] += own_a[r] * own_b[c]
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
            k += TERMS
        for r in range(OWN):
            for c in range(OWN):
                i, j = first_i + y + r * SIDE, first_j + x + c * SIDE
                if i < I and j < J:
                    total = sums[r, c]
                    if has_bias:
                        total += load(bias, j)
                    if accumulate:
                        total += load(out, i * J + j)
                    store(out, i * J + j, total)
        item += cuda.gridDim.x


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output."""
    grid = ceil_div(product.I, TILE) * ceil_div(product.J, TILE)
    return [Launch(matmul_kernel, grid, BLOCK, product.arguments(), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
