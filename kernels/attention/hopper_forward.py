"""Attention forward on Hopper: what steps 6 and 7 share, which is all but the work of the consumers.

A block owns 192 queries of a head, a consumer 64 of them, and meets 128 keys and values at a time, the last ones first.
Blocks are counted from the end of the sequence, where queries see the most keys; the last block may hang over its
beginning. Of the keys that the block meets, a consumer passes over those that all its queries come before.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from numba import cuda, int32, uint32

from kernels.accumulators import pack_accumulators
from kernels.attention.hopper import (
    GROUP,
    HEAD_SIZE,
    OWN_STAGES,
    QUERIES,
    QUERY_CONSUMERS,
    ROWS,
    SWIZZLE_BYTES,
    TILE_BYTES,
    advance_device,
    announce_device,
    at_device,
    barrier_bytes,
    before_store_device,
    first_query_device,
    index_of_turn_device,
    load_tiles_device,
    n_query_pieces_device,
    own_place_device,
    persistent_grid,
    piece_of_index_device,
    stages_seen_device,
    start_device,
    tile_map,
)
from kernels.attention.hopper_rows import FACTOR, own_row_device, scaled_rows, write_tile
from kernels.launch import Launch, ceil_div
from kernels.ptx import log2, reciprocal
from kernels.ptx_hopper import bulk_commit, tma_load_3d, tma_store_3d
from kernels.wgmma import wgmma_rs, wgmma_ss_new, wgmma_wait_for

LN_2 = np.float32(math.log(2))

SIGNATURE = "void(uint64[::1], float32[::1], uint64[::1], uint64[::1], int64, int64)"

CONSUMERS = QUERY_CONSUMERS
KEYS = 128  # of a stage
STAGES = 4
BLOCK = (1 + CONSUMERS) * GROUP
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 32, 160  # 128 a thread at the start, 65,536 in all
FEW_HEADS, MANY_HEADS = 12, 66  # that are worked on together
LONG = 1400  # queries from which on the keys and values of many heads do not stay in the L2 cache

# where everything is in shared memory
QUERY_BYTES = CONSUMERS * TILE_BYTES
KEY_BYTES = KEYS // ROWS * TILE_BYTES
KEYS_AT = OWN_STAGES * QUERY_BYTES
VALUES_AT = KEYS_AT + STAGES * KEY_BYTES
OUT_AT = VALUES_AT + STAGES * KEY_BYTES
BARRIERS_AT = OUT_AT + CONSUMERS * TILE_BYTES
SHARED_BYTES = BARRIERS_AT + barrier_bytes(STAGES) + SWIZZLE_BYTES

SCORES = KEYS // 2  # floats of a thread
multiply_by_keys = wgmma_ss_new(KEYS)
add_weighted_values = wgmma_rs(HEAD_SIZE, KEYS // 16, b_mn_major=True)
scores_are_there = wgmma_wait_for(SCORES)
pack_weights = pack_accumulators(SCORES)


@cuda.jit(device=True)
def piece_device(index, T, H, n_heads):
    """Return a piece of work: a block of queries of a head."""
    together = MANY_HEADS if T < LONG else FEW_HEADS
    return piece_of_index_device(index, n_query_pieces_device(T), n_heads, H, together)


@cuda.jit(device=True)
def produce_device(query_map, key_map, base, rings, T, H, n_heads):
    """Copy, as one thread, the queries of each piece of work and the keys and values that they see."""
    C = H * HEAD_SIZE
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_device(index, T, H, n_heads)
        b, column, first = piece.b, piece.column, first_query_device(piece, T)
        own = own_place_device(turn)
        barrier = announce_device(rings.own_empty, rings.own_full, own, QUERY_BYTES)
        load_tiles_device(at_device(base, own, QUERY_BYTES), CONSUMERS, query_map, column, first, b, barrier)
        n = stages_seen_device(first, QUERIES, T, KEYS)
        while n > 0:
            n = int32(n - 1)
            barrier = announce_device(rings.empty, rings.first_full, place, KEY_BYTES)
            tma_load_3d(at_device(base + KEYS_AT, place, KEY_BYTES), key_map, column + C, n * KEYS, b, barrier)
            barrier = announce_device(rings.empty, rings.second_full, place, KEY_BYTES)
            tma_load_3d(at_device(base + VALUES_AT, place, KEY_BYTES), key_map, column + 2 * C, n * KEYS, b, barrier)
            place = advance_device(place, STAGES)
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)


@cuda.jit(device=True)
def store_rows_device(sums, rows, out_map, logsumexp_I, box, piece, first, T):
    """Divide the sums by the totals, and store them and the log-sum-exp of each query."""
    thread = cuda.threadIdx.x % GROUP
    write_tile(scaled_rows(sums, reciprocal(rows.total), reciprocal(rows.total_8)), box, uint32(thread))
    before_store_device()
    if thread == 0:
        tma_store_3d(out_map, piece.column, first, piece.b, box)
        bulk_commit()
    query = first + own_row_device()
    if thread & 3 == 0 and query < T:
        logsumexp_I[piece.head * T + query] = (rows.greatest * FACTOR + log2(rows.total)) * LN_2
    if thread & 3 == 0 and query + 8 < T:
        logsumexp_I[piece.head * T + query + 8] = (rows.greatest_8 * FACTOR + log2(rows.total_8)) * LN_2


def forward_launch(kernel, a: SimpleNamespace, sizes: SimpleNamespace, stream: object) -> Launch:
    """Return the launch of a forward kernel on what `common.take_forward` gave."""
    B, T, H = sizes.B, sizes.T, sizes.H
    out_map, query_map = tile_map(a.out_NC, B, T), tile_map(a.qkv_NE, B, T)
    key_map = tile_map(a.qkv_NE, B, T, KEYS // ROWS)  # of values, too
    arguments = (out_map.array, a.logsumexp_I, query_map.array, key_map.array, T, H)
    return Launch(kernel, persistent_grid(B * H * ceil_div(T, QUERIES)), BLOCK, arguments, stream, SHARED_BYTES)
