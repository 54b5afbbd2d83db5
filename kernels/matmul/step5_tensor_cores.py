"""Matrix product, step 5: bfloat16 on the tensor cores, one instruction of a warp for 16 x 8 outputs and 16 terms.

The tiles are loaded element by element; two neighbouring terms of a row make a word, which is what `mma.sync` takes
from a lane. A block's 4 warps own 128 x 128 outputs, a warp 64 x 64: a lane reads 32 words of shared memory for 32
instructions of 2,048 multiplications. Any size goes; float32 is left to step 4. Flat arrays: I rows, J columns, K
terms.
"""

from __future__ import annotations

from numba import cuda, float32, uint8, uint32

from kernels.launch import Launch, ceil_div
from kernels.matmul import step4_register_tiles
from kernels.matmul.common import Product, forward_launcher, grad_input_launcher, grad_weight_launcher, in_pieces
from kernels.matmul.outputs import PATCH_BYTES, add_bias_device, store_floats_device, store_pairs_device
from kernels.matmul.tensor_tiles import COLUMNS, FRAGMENTS, WARP, clear_device, multiply_device
from kernels.ptx import shared_address
from kernels.registry import kernel

TILE = 128  # outputs of a block in each direction
BLOCK = 128
TERMS = 16  # of a tile
PAIRS = TERMS // 2  # words of a row
PITCH = PAIRS + 4  # words from row to row, so that 8 rows of 4 words lie in different banks
TILE_WORDS = TILE * PITCH
PATCHES_BYTES = BLOCK // 32 * PATCH_BYTES


@cuda.jit(device=True)
def load_tile_device(tile, source, first, k, size, K, k_contiguous):
    """Load the words [row, pair of terms] of an operand, zeros outside; neighbouring threads load neighbours."""
    for part in range(TILE * PAIRS // BLOCK):
        piece = cuda.threadIdx.x + part * BLOCK
        row, pair = (piece >> 3, piece & 7) if k_contiguous else (piece & 127, piece >> 7)
        word = uint32(0)
        for half in range(2):
            i, term = first + row, k + 2 * pair + half
            if i < size and term < K:
                element = source[i * K + term] if k_contiguous else source[term * size + i]
                word |= uint32(element) << uint32(16 * half)
        tile[row * PITCH + pair] = word


@cuda.jit(device=True)
def load_fragments_device(words, tile, first_row, is_a):
    """Load the words of 64 rows of an operand that this lane hands to the tensor cores.

    With g = lane // 4 and q = lane % 4 the four words of 16 rows are those of rows g and g + 8 and pairs q and q + 4:
    of `a` rows first; of `b` pairs first, as an instruction takes two words of 8 rows.
    """
    lane = cuda.threadIdx.x & 31
    for m in range(FRAGMENTS):
        for e in range(4):
            row, pair = (e & 1, e >> 1) if is_a else (e >> 1, e & 1)
            row = first_row + m * 16 + (lane >> 2) + row * 8
            words[0, m, e] = tile[row * PITCH + (lane & 3) + pair * 4]


def make_kernel(output: str):
    """Make the kernel for outputs of one dtype."""
    store_device = store_floats_device if output == "float32" else store_pairs_device
    signature = f"void({output}[::1], uint16[::1], uint16[::1], uint16[::1]{', int64' * 8})"

    @kernel(signature, name=f"{output}_kernel", launch_bounds=BLOCK)
    def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate, whole):  # noqa: E741
        """A block owns 128 x 128 outputs at a time, a warp 64 x 64."""
        tile_a = cuda.shared.array(TILE_WORDS, uint32)
        tile_b = cuda.shared.array(TILE_WORDS, uint32)
        patches = cuda.shared.array(PATCHES_BYTES, uint8, 16)
        sums = cuda.local.array((FRAGMENTS, COLUMNS, 4), float32)
        a_words = cuda.local.array((1, FRAGMENTS, 4), uint32)
        b_words = cuda.local.array((1, FRAGMENTS, 4), uint32)
        warp = cuda.threadIdx.x >> 5
        warp_i, warp_j = (warp & 1) * WARP, (warp >> 1) * WARP
        n_columns = (J + TILE - 1) // TILE
        item = cuda.blockIdx.x
        while item < (I + TILE - 1) // TILE * n_columns:
            first_i, first_j = item // n_columns * TILE, item % n_columns * TILE
            clear_device(sums)
            k = 0
            while k < K:
                load_tile_device(tile_a, a, first_i, k, I, K, a_k_contiguous)
                load_tile_device(tile_b, b, first_j, k, J, K, b_k_contiguous)
                cuda.syncthreads()  # both tiles are complete
                load_fragments_device(a_words, tile_a, warp_i, True)
                load_fragments_device(b_words, tile_b, warp_j, False)
                multiply_device(sums, a_words, b_words, 0)
                cuda.syncthreads()  # all have read the tiles: the next may be loaded
                k += TERMS
            i, j = first_i + warp_i, first_j + warp_j
            if has_bias:
                add_bias_device(sums, bias, j, J)
            store_device(shared_address(patches, 0), sums, out, out, i, j, I, J, accumulate, whole)
            item += cuda.gridDim.x

    return matmul_kernel


KERNELS = {output: make_kernel(output) for output in ("uint16", "float32")}


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a block for each tile of the output; float32 goes to step 4."""
    if str(product.a.dtype) != "uint16":
        return step4_register_tiles.step(product, stream)
    grid = ceil_div(product.I, TILE) * ceil_div(product.J, TILE)
    arguments = (*product.arguments(), int(in_pieces(product.out, product.J)))
    return [Launch(KERNELS[str(product.out.dtype)], grid, BLOCK, arguments, stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
