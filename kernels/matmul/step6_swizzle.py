"""Matrix product, step 6: pieces of 16 bytes all the way to the tensor cores, swizzled so that no banks conflict.

`cp.async` copies a piece to shared memory without a detour through registers, and `ldmatrix` loads four matrices of
8 x 8 elements at once, transposed where the terms do not lie side by side. Still every copy is waited for before its
tile is multiplied. Sizes that do not come in whole pieces go to step 5. Flat arrays: I rows, J columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32, uint8, uint32

from kernels.launch import Launch, ceil_div
from kernels.matmul import step5_tensor_cores
from kernels.matmul.common import (
    LAYOUTS,
    OUTPUTS,
    Product,
    forward_launcher,
    grad_input_launcher,
    grad_weight_launcher,
    in_pieces,
    layout_of,
    takes_pieces,
)
from kernels.matmul.outputs import add_bias_device, store_floats_device, store_pairs_device
from kernels.matmul.step5_tensor_cores import BLOCK, PATCHES_BYTES, TILE
from kernels.matmul.tensor_tiles import (
    COLUMNS,
    FRAGMENTS,
    STEPS,
    TERMS,
    WARP,
    clear_device,
    make_operand,
    multiply_device,
)
from kernels.ptx import cp_async_commit, cp_async_wait, shared_address
from kernels.registry import kernel

TILE_BYTES = 2 * TILE * TERMS
TILES_BYTES = 2 * TILE_BYTES


def make_kernel(layout: str):
    """Make the kernel of one layout."""
    a_k_contiguous, b_k_contiguous = LAYOUTS[layout]
    first_a_device, copy_a_device, load_a_device = make_operand(TILE, BLOCK, a_k_contiguous, is_a=True)
    first_b_device, copy_b_device, load_b_device = make_operand(TILE, BLOCK, b_k_contiguous, is_a=False)
    store_device = store_floats_device if OUTPUTS[layout] == "float32" else store_pairs_device
    signature = f"void({OUTPUTS[layout]}[::1], uint16[::1], uint16[::1], uint16[::1]{', int64' * 6})"

    @kernel(signature, name=f"{layout}_kernel", launch_bounds=BLOCK)
    def matmul_kernel(out, a, b, bias, I, J, K, has_bias, accumulate, whole):  # noqa: E741
        """A block owns 128 x 128 outputs at a time, a warp 64 x 64."""
        tiles = cuda.shared.array(TILES_BYTES, uint8, 128)
        patches = cuda.shared.array(PATCHES_BYTES, uint8, 16)
        sums = cuda.local.array((FRAGMENTS, COLUMNS, 4), float32)
        a_words = cuda.local.array((1, FRAGMENTS, 4), uint32)
        b_words = cuda.local.array((1, FRAGMENTS, 4), uint32)
        tile_a, tile_b = shared_address(tiles, 0), shared_address(tiles, TILE_BYTES)
        warp = cuda.threadIdx.x >> 5
        warp_i, warp_j = (warp & 1) * WARP, (warp >> 1) * WARP
        n_columns = (J + TILE - 1) // TILE
        item = cuda.blockIdx.x
        while item < (I + TILE - 1) // TILE * n_columns:
            first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
            clear_device(sums)
            k = 0
            while k < K:
                index, rows, terms = first_a_device(first_i, k, K, I, K)
                copy_a_device(tile_a, a, index, rows, terms, I, K)
                index, rows, terms = first_b_device(first_j, k, K, J, K)
                copy_b_device(tile_b, b, index, rows, terms, J, K)
                cp_async_commit()
                cp_async_wait(0)
                cuda.syncthreads()  # the copies of all threads are there
                for step in range(STEPS):
                    load_a_device(a_words, 0, tile_a, warp_i, step)
                    load_b_device(b_words, 0, tile_b, warp_j, step)
                    multiply_device(sums, a_words, b_words, 0)
                cuda.syncthreads()  # all have read the tiles: the next may be copied
                k += TERMS
            i, j = first_i + warp_i, first_j + warp_j
            if has_bias:
                add_bias_device(sums, bias, j, J)
            store_device(shared_address(patches, 0), sums, out, out, i, j, I, J, accumulate, whole)
            item += cuda.gridDim.x

    return matmul_kernel


KERNELS = {layout: make_kernel(layout) for layout in LAYOUTS}


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output; what does not come in whole pieces goes to step 5."""
    if not takes_pieces(product):
        return step5_tensor_cores.step(product, stream)
    grid = ceil_div(product.I, TILE) * ceil_div(product.J, TILE)
    has_bias, whole = product.bias is not None, in_pieces(product.out, product.J)
    arrays = (product.out, product.a, product.b, product.bias if has_bias else product.a)
    arguments = (*arrays, product.I, product.J, product.K, int(has_bias), int(product.accumulate), int(whole))
    return [Launch(KERNELS[layout_of(product)], grid, BLOCK, arguments, stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
