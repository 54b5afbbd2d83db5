"""How a warp stores its 64 x 64 sums: turned in a patch of shared memory, so that each lane has 16 bytes of a row.

A lane holds pairs of neighbouring outputs, and the next pair belongs to the next lane: stored as they are, they would
fill 16 bytes of a line at a time. A warp writes 16 rows of rounded pairs, or 8 of float32, into its patch and reads
them back along the rows. Rows of a patch are padded so that what lanes write at once lies in different banks.

A product says whether the rows of its output come in `whole` pieces of 16 bytes; if not, outputs are stored one by one.
Whole pieces of pairs can be finished on the way, with a second array `more` of the same shape (`EPILOGUES`):

    plain       store the words, or add them
    gelu        store the words in `more`, and GELU of them in the output
    residual    add those of `more`
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda, float32, uint32

from kernels.elements import load, store
from kernels.matmul.tensor_tiles import COLUMNS, FRAGMENTS, WARP
from kernels.matmul.words import add_word_device, gelu_word_device
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
from kernels.tuples import each

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
def add_floats_device(place, x, y):
    """Add two float32 given by their bits."""
    return float_bits(bits_float(x) + bits_float(y))


@cuda.jit(device=True)
def store_pairs_piece_device(out, index, n_inside, words, accumulate, whole):
    """Store 8 neighbouring bfloat16, or those of them that are inside."""
    if whole and n_inside > 0:
        if accumulate:
            words = each(add_word_device, (words, load_128(out, index)))
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
            words = each(add_floats_device, (words, load_128(out, index)))
        store_128(out, index, words)
    elif n_inside > 0:
        for e in range(4):
            if e < n_inside:
                x = bits_float(words[e])
                store(out, index + e, x + load(out, index + e) if accumulate else x)


@cuda.jit(device=True)
def store_plain_device(out, more, index, n_inside, words, loaded, accumulate, whole):
    """Store 8 neighbouring outputs, or add them."""
    store_pairs_piece_device(out, index, n_inside, words, accumulate, whole)


@cuda.jit(device=True)
def store_gelu_device(out, more, index, n_inside, words, loaded, accumulate, whole):
    """Store 8 neighbouring numbers in `more` and GELU of them in the output."""
    if n_inside > 0:
        store_128(more, index, words)
        store_128(out, index, each(gelu_word_device, (words,)))


@cuda.jit(device=True)
def store_residual_device(out, more, index, n_inside, words, loaded, accumulate, whole):
    """Store 8 neighbouring numbers plus those loaded of `more`."""
    if n_inside > 0:
        store_128(out, index, each(add_word_device, (words, loaded)))


EPILOGUES = {
    "plain": (store_plain_device, False),
    "gelu": (store_gelu_device, False),
    "residual": (store_residual_device, True),
}
"""By kind: what stores a piece, and whether it needs that of `more`. All but plain take whole pieces alone."""


def make_pairs_storer(epilogue: str = "plain") -> Callable:
    """Make the device function that rounds a warp's sums from row i and column j on and stores them, 16 rows at a time.

    What is needed of `more` is loaded 16 rows ahead.
    """
    store_piece_device, loads = EPILOGUES[epilogue]
    always_asks = epilogue != "plain"

    @cuda.jit(device=True)
    def load_rows_device(loaded, buffer, more, index, n_rows, n_inside, J):
        """Load this lane's pieces of 16 rows, of which `n_rows` are inside."""
        for row in range(0, 16, 4):
            if row < n_rows and n_inside > 0:
                words = load_128(more, index + row * J)
                for e in range(4):
                    loaded[buffer, row >> 2, e] = words[e]

    @cuda.jit(device=True)
    def store_rows_device(m, to, at, sums, out, more, loaded, index, n_rows, n_inside, J, accumulate, whole, plain):
        """Store 16 rows, number m of the warp, through its patch."""
        for n in range(COLUMNS):
            store_shared_32(to + n * 16, pack_bf16x2(sums[m, n, 0], sums[m, n, 1]))
            store_shared_32(to + n * 16 + 8 * PAIR_ROW_BYTES, pack_bf16x2(sums[m, n, 2], sums[m, n, 3]))
        if loads and m + 1 < FRAGMENTS:
            load_rows_device(loaded, (m + 1) & 1, more, index + 16 * J, n_rows - 16, n_inside, J)
        cuda.syncwarp()  # the patch is complete
        for row in range(0, 16, 4):
            words, k = load_shared_128(at + row * PAIR_ROW_BYTES), row >> 2
            if plain:
                store_128(out, index + row * J, words)
            else:
                four = (loaded[m & 1, k, 0], loaded[m & 1, k, 1], loaded[m & 1, k, 2], loaded[m & 1, k, 3])
                inside = n_inside if row < n_rows else 0
                store_piece_device(out, more, index + row * J, inside, words, four, accumulate, whole)
        cuda.syncwarp()  # the patch has been read: the next rows may overwrite it

    @cuda.jit(device=True)
    def store_pairs_device(patches, sums, out, more, i, j, I, J, accumulate, whole):  # noqa: E741
        lane = cuda.threadIdx.x & 31
        patch = patches + (cuda.threadIdx.x >> 5) * PATCH_BYTES
        to = patch + (lane >> 2) * PAIR_ROW_BYTES + (lane & 3) * 4
        at = patch + (lane >> 3) * PAIR_ROW_BYTES + (lane & 7) * 16
        plain = not always_asks and whole and not accumulate and i + WARP <= I and j + WARP <= J  # no piece to ask for
        i += lane >> 3
        j += (lane & 7) * 8
        loaded = cuda.local.array((2, 4, 4), uint32)
        if loads:
            load_rows_device(loaded, 0, more, i * J + j, I - i, J - j, J)
        index, n_rows, n_inside = i * J + j, I - i, J - j
        # one by one, since the compiler leaves a loop over so much code a loop, and puts what it indexes in memory
        store_rows_device(0, to, at, sums, out, more, loaded, index, n_rows, n_inside, J, accumulate, whole, plain)
        index, n_rows = index + 16 * J, n_rows - 16
        store_rows_device(1, to, at, sums, out, more, loaded, index, n_rows, n_inside, J, accumulate, whole, plain)
        index, n_rows = index + 16 * J, n_rows - 16
        store_rows_device(2, to, at, sums, out, more, loaded, index, n_rows, n_inside, J, accumulate, whole, plain)
        index, n_rows = index + 16 * J, n_rows - 16
        store_rows_device(3, to, at, sums, out, more, loaded, index, n_rows, n_inside, J, accumulate, whole, plain)

    return store_pairs_device


store_pairs_device = make_pairs_storer()


@cuda.jit(device=True)
def store_floats_device(patches, sums, out, more, i, j, I, J, accumulate, whole):  # noqa: E741
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
