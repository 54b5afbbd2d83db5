"""Matrix product, step 3: a block keeps 16 x 16 tiles of both operands in shared memory.

Each element read from global memory now serves 16 outputs. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import Launch, ceil_div
from kernels.matmul.common import SIGNATURES, Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.registry import kernel

TILE = 16
PITCH = TILE + 1  # one column more, so that a column of the tile does not lie in one bank
BLOCK = TILE * TILE


@kernel(*SIGNATURES, launch_bounds=BLOCK)
def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate):  # noqa: E741
    """A block owns 16 x 16 outputs at a time, a thread one of them."""
    tile_a = cuda.shared.array((TILE, PITCH), float32)  # [i, k]
    tile_b = cuda.shared.array((TILE, PITCH), float32)  # [k, j]
    slow, fast = cuda.threadIdx.x // TILE, cuda.threadIdx.x % TILE
    # neighbouring threads load what is contiguous in memory
    a_i, a_k = (slow, fast) if a_k_contiguous else (fast, slow)
    b_k, b_j = (fast, slow) if b_k_contiguous else (slow, fast)
    a_row, a_column = (K, 1) if a_k_contiguous else (1, I)
    b_row, b_column = (1, K) if b_k_contiguous else (J, 1)
    n_columns = (J + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < (I + TILE - 1) // TILE * n_columns:
        first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
        total = float32(0)
        k = 0
        while k < K:
            inside = first_i + a_i < I and k + a_k < K
            tile_a[a_i, a_k] = load(a, (first_i + a_i) * a_row + (k + a_k) * a_column) if inside else float32(0)
            inside = k + b_k < K and first_j + b_j < J
            tile_b[b_k, b_j] = load(b, (k + b_k) * b_row + (first_j + b_j) * b_column) if inside else float32(0)
            cuda.syncthreads()  # both tiles are complete
            for term in range(TILE):
                total += tile_a[slow, term] * tile_b[term, fast]
            cuda.syncthreads()  # all have read the tiles: the next may be loaded
            k += TILE
        i, j = first_i + slow, first_j + fast
        if i < I and j < J:
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
