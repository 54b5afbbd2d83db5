"""How a warp stores its 64 x 64 sums: turned in a patch of shared memory, so that each lane has 16 bytes of a row.

A lane holds pairs of neighbouring outputs, and the next pair belongs to the next lane: stored as they are, they would
fill 16 bytes of a line at a time. A warp writes 16 rows of rounded pairs, or 8 of float32, into its patch and reads
them back along the rows. Rows of a patch are padded so that what lanes write at once lies in different banks.

A product says whether the rows of its output come in `whole` pieces of 16 bytes; if not, outputs are stored one by one.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, store
from kernels.matmul.tensor_tiles import COLUMNS, FRAGMENTS, WARP
from kernels.ptx import (
    bits_float,
    float_bits,
    load_128,
    load_shared_128,
    pack_bf16x2,
    store_128,
    store_shared_32,
    store_shared_64,
    unpack_bf16x2,
)

PAIR_ROW_BYTES = WARP * 2 + 16
FLOAT_ROW_BYTES = WARP * 4 + 32
PATCH_BYTES = 16 * PAIR_ROW_BYTES  # 8 * FLOAT_ROW_BYTES are the same


@cuda.jit(device=True)
def add_bias_device(sums, bias, j, J):
    """Add the bias to a warp's sums, whose first column is j."""
    j += (cuda.threadIdx.x & 3) * 2
    for n in range(COLUMNS):
        for e in range(2):
            column = j + n * 8 + e
            x = load(bias, column) if column < J else float32(0)
            for m in range(FRAGMENTS):
                sums[m, n, e] += x
                sums[m, n, 2 + e] += x


@cuda.jit(device=True)
def add_pairs_device(x, y):
    """Add two words of two bfloat16."""
    x_low, x_high = unpack_bf16x2(x)
    y_low, y_high = unpack_bf16x2(y)
    return pack_bf16x2(x_low + y_low, x_high + y_high)


@cuda.jit(device=True)
def add_floats_device(x, y):
    """Add two float32 given by their bits."""
    return float_bits(bits_float(x) + bits_float(y))


@cuda.jit(device=True)
def store_pairs_piece_device(out, index, n_inside, words, accumulate, whole):
    """Store 8 neighbouring bfloat16, or those of them that are inside."""
    if whole and n_inside > 0:
        if accumulate:
            x = load_128(out, index)
            words = (
                add_pairs_device(words[0], x[0]), add_pairs_device(words[1], x[1]),
                add_pairs_device(words[2], x[2]), add_pairs_device(words[3], x[3]),
            )  # fmt: skip
        store_128(out, index, words)
    elif n_inside > 0:
        for e in range(8):
            if e < n_inside:
                x = unpack_bf16x2(words[e >> 1])[e & 1]
                store(out, index + e, x + load(out, index + e) if accumulate else x)


@cuda.jit(device=True)
def store_floats_piece_device(out, index, n_inside, words, accumulate, whole):
    """Store 4 neighbouring float32, or those of them that are inside."""
    if whole and n_inside > 0:
        if accumulate:
            x = load_128(out, index)
            words = (
                add_floats_device(words[0], x[0]), add_floats_device(words[1], x[1]),
                add_floats_device(words[2], x[2]), add_floats_device(words[3], x[3]),
            )  # fmt: skip
        store_128(out, index, words)
    elif n_inside > 0:
        for e in range(4):
            if e < n_inside:
                x = bits_float(words[e])
                store(out, index + e, x + load(out, index + e) if accumulate else x)


@cuda.jit(device=True)
def store_pairs_device(patches, sums, out, i, j, I, J, accumulate, whole):  # noqa: E741
    """Round a warp's sums from row i and column j on and store them, 16 rows at a time."""
    lane = cuda.threadIdx.x & 31
    patch = patches + (cuda.threadIdx.x >> 5) * PATCH_BYTES
    to = patch + (lane >> 2) * PAIR_ROW_BYTES + (lane & 3) * 4
    at = patch + (lane >> 3) * PAIR_ROW_BYTES + (lane & 7) * 16
    plain = whole and not accumulate and i + WARP <= I and j + WARP <= J  # nothing to ask for each piece
    i += lane >> 3
    j += (lane & 7) * 8
    index = i * J + j
    for m in range(FRAGMENTS):
        for n in range(COLUMNS):
            store_shared_32(to + n * 16, pack_bf16x2(sums[m, n, 0], sums[m, n, 1]))
            store_shared_32(to + n * 16 + 8 * PAIR_ROW_BYTES, pack_bf16x2(sums[m, n, 2], sums[m, n, 3]))
        cuda.syncwarp()  # the patch is complete
        if plain:
            for row in range(0, 16, 4):
                store_128(out, index + row * J, load_shared_128(at + row * PAIR_ROW_BYTES))
        else:
            for row in range(0, 16, 4):
                words = load_shared_128(at + row * PAIR_ROW_BYTES)
                n_inside = J - j if i + row < I else 0
                store_pairs_piece_device(out, index + row * J, n_inside, words, accumulate, whole)
        cuda.syncwarp()  # the patch has been read: the next rows may overwrite it
        i += 16
        index += 16 * J


@cuda.jit(device=True)
def store_floats_device(patches, sums, out, i, j, I, J, accumulate, whole):  # noqa: E741
    """Store a warp's sums from row i and column j on as float32, 8 rows at a time."""
    lane = cuda.threadIdx.x & 31
    patch = patches + (cuda.threadIdx.x >> 5) * PATCH_BYTES
    to = patch + (lane >> 2) * FLOAT_ROW_BYTES + (lane & 3) * 8
    at = patch + (lane >> 4) * FLOAT_ROW_BYTES + (lane & 15) * 16
    plain = whole and not accumulate and i + WARP <= I and j + WARP <= J
    i += lane >> 4
    j += (lane & 15) * 4
    index = i * J + j
    for m in range(FRAGMENTS):
        for half in range(2):
            for n in range(COLUMNS):
                left, right = sums[m, n, 2 * half], sums[m, n, 2 * half + 1]
                store_shared_64(to + n * 32, float_bits(left), float_bits(right))
            cuda.syncwarp()  # the patch is complete
            if plain:
                for row in range(0, 8, 2):
                    store_128(out, index + row * J, load_shared_128(at + row * FLOAT_ROW_BYTES))
            else:
                for row in range(0, 8, 2):
                    words = load_shared_128(at + row * FLOAT_ROW_BYTES)
                    n_inside = J - j if i + row < I else 0
                    store_floats_piece_device(out, index + row * J, n_inside, words, accumulate, whole)
            cuda.syncwarp()  # the patch has been read: the next rows may overwrite it
            i += 8
            index += 8 * J
