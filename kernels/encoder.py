"""The embedding of tokens and positions, GPT-2's first layer.

Forward adds two table rows for each place of the text. Backward sums, for each table row, the gradients of all places
that used it, in a fixed order and without atomics: for a position the B places are known; for a token the host
sorts the places by token (`places_by_token`), and a block sums those of one token.

Letters: B batch, T time, C channels, V vocabulary; M = B*T + 1 segment bounds.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32

from kernels.elements import load_pack, n_packs_of, store_pack
from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, launcher, n_packs, take
from kernels.registry import kernel

BLOCK = 256
WARPS = BLOCK // WARP_SIZE
TILE = WARP_SIZE * PACK  # channels that a block of the token gradient sums at once
PARTIALS = WARPS * TILE


def places_by_token(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the places of a batch by their token, on the host.

    Args:
        tokens: int32 or int64, any shape, B*T elements from 0 to 65535.

    Returns:
        int32 (B*T,): the flat places, those of equal tokens together and in their order.
        int32 (B*T + 1,): where in it each token's places begin; unused entries at the end are B*T. The length does
        not depend on the tokens, so that a captured launch can be repeated with another batch.
    """
    flat = tokens.reshape(-1).astype(np.uint16)  # 16 bits are sorted in linear time
    places = np.argsort(flat, kind="stable").astype(np.int32)
    bounds = np.full(flat.size + 1, flat.size, np.int32)
    in_order = flat[places]
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))
    bounds[: starts.size] = starts
    return places, bounds


@kernel("void(real[:, ::1], int32[::1], real[:, ::1], real[:, ::1], int64, int64)", launch_bounds=BLOCK)
def encoder_forward_kernel(out_NC, tokens_N, token_weight_VC, position_weight_TC, T, packs):
    """A block owns places, one at a time; a thread owns packs of 8 channels."""
    token_8 = cuda.local.array(8, float32)
    position_8 = cuda.local.array(8, float32)
    n = cuda.blockIdx.x
    while n < out_NC.shape[0]:
        token_C = token_weight_VC[tokens_N[n]]
        position_C = position_weight_TC[n % T]
        pack = cuda.threadIdx.x
        while pack < n_packs_of(token_C):
            load_pack(token_8, token_C, pack, packs)
            load_pack(position_8, position_C, pack, packs)
            for j in range(8):
                token_8[j] += position_8[j]
            store_pack(out_NC[n], pack, packs, token_8)
            pack += cuda.blockDim.x
        n += cuda.gridDim.x


@kernel("void(float32[:, ::1], real[:, ::1], int64, int64)", launch_bounds=BLOCK)
def position_gradient_kernel(grad_position_weight_TC, grad_out_NC, T, packs):
    """A block owns positions, one at a time; a thread owns packs of 8 channels and sums over the batch."""
    x_8 = cuda.local.array(8, float32)
    sum_8 = cuda.local.array(8, float32)
    t = cuda.blockIdx.x
    while t < T:
        grad_C = grad_position_weight_TC[t]
        pack = cuda.threadIdx.x
        while pack < n_packs_of(grad_C):
            for j in range(8):
                sum_8[j] = float32(0)
            n = t
            while n < grad_out_NC.shape[0]:
                load_pack(x_8, grad_out_NC[n], pack, packs)
                for j in range(8):
                    sum_8[j] += x_8[j]
                n += T
            load_pack(x_8, grad_C, pack, packs)
            for j in range(8):
                sum_8[j] += x_8[j]
            store_pack(grad_C, pack, packs, sum_8)
            pack += cuda.blockDim.x
        t += cuda.gridDim.x


@kernel("void(float32[:, ::1], real[:, ::1], int32[::1], int32[::1], int32[::1], int64)", launch_bounds=BLOCK)
def token_gradient_kernel(grad_token_weight_VC, grad_out_NC, tokens_N, places_N, bounds_M, packs):
    """A block owns 256 channels of one token at a time; its 8 warps share the token's places."""
    partial = cuda.shared.array(PARTIALS, float32)
    x_8 = cuda.local.array(8, float32)
    sum_8 = cuda.local.array(8, float32)
    lane = cuda.threadIdx.x & 31
    warp = cuda.threadIdx.x >> 5
    C = grad_out_NC.shape[1]
    n_tiles = (C + TILE - 1) // TILE
    item = cuda.blockIdx.x
    while item < places_N.size * n_tiles:
        segment = item // n_tiles
        first_pack = (item % n_tiles) * WARP_SIZE
        first, end = bounds_M[segment], bounds_M[segment + 1]
        if first < end:
            for j in range(8):
                sum_8[j] = float32(0)
            i = first + warp
            while i < end:
                load_pack(x_8, grad_out_NC[places_N[i]], first_pack + lane, packs)
                for j in range(8):
                    sum_8[j] += x_8[j]
                i += WARPS
            for j in range(8):
                partial[warp * TILE + j * WARP_SIZE + lane] = sum_8[j]  # lanes side by side: no bank conflict
            cuda.syncthreads()  # all warps have written their sums
            c = first_pack * 8 + cuda.threadIdx.x
            if c < C:
                total = float32(0)
                where = (cuda.threadIdx.x & 7) * WARP_SIZE + (cuda.threadIdx.x >> 3)
                for w in range(WARPS):
                    total += partial[w * TILE + where]
                grad_token_weight_VC[tokens_N[places_N[first]], c] += total
            cuda.syncthreads()  # all have read: the next item may overwrite
        item += cuda.gridDim.x


def _block_of_row(C: int) -> int:
    """Return how many threads share a row: one a pack, in whole warps."""
    return min(BLOCK, WARP_SIZE * ceil_div(C, WARP_SIZE * PACK))


@launcher
def encoder_forward(out_BTC, tokens_BT, token_weight_VC, position_weight_SC, stream=0):
    """Add the embedding of each token to that of its position.

    Reads    tokens_BT: int32, from 0 to V-1 (not checked); token_weight_VC, position_weight_SC (S >= T): float32 or
             bfloat16; all C-contiguous, on the device.
    Writes   out_BTC (=), of the dtype of the tables.
    Work     B*T*C flop, about 3*B*T*C*itemsize bytes, the tables partly from the cache: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_encoder.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Radford et al. 2019, section 2.3; compare llm.c llmc/encoder.cuh @ f1e2ace.
    Book     Chapter 04.
    """
    arrays, sizes = take(
        real={"out_BTC": out_BTC, "token_weight_VC": token_weight_VC, "position_weight_SC": position_weight_SC},
        int32={"tokens_BT": tokens_BT},
    )
    B, T, C = sizes.B, sizes.T, sizes.C
    if T > sizes.S:
        raise ValueError(f"T is {T} but position_weight_SC has {sizes.S} positions")
    out_NC = arrays.out_BTC.reshape(B * T, C)
    packs = n_packs(C, out_NC, arrays.token_weight_VC, arrays.position_weight_SC)
    tokens_N = arrays.tokens_BT.reshape(B * T)
    arguments = (out_NC, tokens_N, arrays.token_weight_VC, arrays.position_weight_SC, T, packs)
    return [Launch(encoder_forward_kernel, B * T, _block_of_row(C), arguments, stream)]


@launcher
def encoder_backward(
    grad_token_weight_VC, grad_position_weight_SC, grad_out_BTC, tokens_BT, places_N, bounds_M, stream=0
):
    """Add to the gradients of both tables, deterministically.

    Reads    grad_out_BTC: float32 or bfloat16; tokens_BT: int32; places_N, bounds_M: int32, what `places_by_token`
             gave for these tokens; all C-contiguous, on the device.
    Writes   grad_token_weight_VC (+=), grad_position_weight_SC (+=): float32.
    Work     2*B*T*C flop, 2*B*T*C*itemsize bytes read, 8 bytes for each element of a row used: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_encoder.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   the transpose of the table look-up; compare llm.c llmc/encoder.cuh @ f1e2ace, which sorts as well.
    Book     Chapter 04.
    """
    arrays, sizes = take(
        real={"grad_out_BTC": grad_out_BTC},
        float32={
            "grad_token_weight_VC": grad_token_weight_VC,
            "grad_position_weight_SC": grad_position_weight_SC,
        },
        int32={"tokens_BT": tokens_BT, "places_N": places_N, "bounds_M": bounds_M},
    )
    B, T, C = sizes.B, sizes.T, sizes.C
    N = B * T
    if sizes.N != N or sizes.M != N + 1 or T > sizes.S:
        raise ValueError(
            f"B*T = {N} places need places_N of {N}, bounds_M of {N + 1} elements and at least {T} positions, "
            f"not {sizes.N}, {sizes.M} and {sizes.S}"
        )
    grad_out_NC = arrays.grad_out_BTC.reshape(N, C)
    positions = (arrays.grad_position_weight_SC, grad_out_NC, T)
    tokens = (arrays.grad_token_weight_VC, grad_out_NC, arrays.tokens_BT.reshape(N), arrays.places_N, arrays.bounds_M)
    both_aligned = n_packs(C, arrays.grad_position_weight_SC, grad_out_NC)
    out_aligned = n_packs(C, grad_out_NC)
    return [
        Launch(position_gradient_kernel, T, _block_of_row(C), (*positions, both_aligned), stream),
        Launch(token_gradient_kernel, N * ceil_div(C, TILE), BLOCK, (*tokens, out_aligned), stream),
    ]
