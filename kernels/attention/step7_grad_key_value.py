"""The gradients of keys and values of step 7: a consumer owns 64 of each and walks over the queries that see them.

Rows are keys here and columns queries, so weights and gradients of scores already are the left operands that the sums
need: with S^T = K Q^T scores, P^T the weights and dP^T = V dO^T, the gradients are dV = P^T dO and dK = dS^T Q, where
dS = P * (dP - delta). Four products a step; all are started as early as their operands allow:

    tensor cores   | + P 1 dO 1 | S 2 |   | + dS 1 Q 1 | dP 2 |            | + P 2 dO 2 | S 3 | ...
    other units      dS 1 from P 1, dP 1       P 2 from S 2                   dS 2 from P 2, dP 2

The kernel of the queries' gradient has left, for each query, -log2(e) * log-sum-exp ("shift") and delta in the scratch
memory; they come with the queries and with the gradients of the output. A block owns 128 keys and values, the first
ones, which most queries see, come first. Each sum is made by one warp group in one order: the same bits at every run.
"""

from __future__ import annotations

from types import SimpleNamespace

from numba import cuda, int32, uint32

from kernels.accumulators import load_columns, pack_accumulators
from kernels.attention.hopper import (
    GROUP,
    HEAD_SIZE,
    OWN_STAGES,
    ROWS,
    SWIZZLE_BYTES,
    TILE_BYTES,
    advance_device,
    announce_device,
    at_device,
    barrier_bytes,
    before_store_device,
    index_of_turn_device,
    init_rings_device,
    load_tiles_device,
    own_place_device,
    padded_device,
    pass_over_device,
    persistent_grid,
    piece_of_index_device,
    release_device,
    rings_device,
    shared_base_device,
    start_device,
    tile_map,
    wait_full_device,
    wait_until_stored_device,
)
from kernels.attention.hopper_rows import (
    SCALE,
    SUMS,
    grad_scores_of_columns,
    hide_earlier_queries,
    own_column_device,
    scaled_rows,
    sums_are_there,
    weights_of_columns,
    write_tile,
    zero_sums,
)
from kernels.launch import Launch, ceil_div
from kernels.ptx_hopper import bulk_commit, bulk_load, bulk_wait, decrease_registers, increase_registers, tma_store_3d
from kernels.registry import kernel
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn, wgmma_rs, wgmma_ss_new, wgmma_wait_for

CONSUMERS = 2
KEYS = CONSUMERS * ROWS  # of a block
STAGES = 4  # of 64 queries and gradients
BLOCK = (1 + CONSUMERS) * GROUP
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # 168 a thread at the start
HEADS_TOGETHER = 11

# where everything is in shared memory
KEY_BYTES = CONSUMERS * TILE_BYTES
NUMBER_BYTES = ROWS * 4  # of one float32 a query
VALUES_AT = OWN_STAGES * KEY_BYTES
QUERIES_AT = VALUES_AT + OWN_STAGES * KEY_BYTES
GRADS_AT = QUERIES_AT + STAGES * TILE_BYTES  # of the output
OUT_AT = GRADS_AT + STAGES * TILE_BYTES
SHIFTS_AT = OUT_AT + CONSUMERS * 2 * TILE_BYTES
DELTAS_AT = SHIFTS_AT + STAGES * NUMBER_BYTES
BARRIERS_AT = DELTAS_AT + STAGES * NUMBER_BYTES
SHARED_BYTES = BARRIERS_AT + barrier_bytes(STAGES) + SWIZZLE_BYTES

multiply = wgmma_ss_new(ROWS)
add_product = wgmma_rs(HEAD_SIZE, ROWS // 16, b_mn_major=True)
wait_for_all_but_1 = wgmma_wait_for(SUMS, 1)
wait_for_all_but_2 = wgmma_wait_for(SUMS, 2)
pack = pack_accumulators(SUMS)
numbers_of_columns = load_columns(SUMS)


@cuda.jit(device=True)
def n_pieces_device(T):
    """Return how many blocks of keys a head has."""
    return uint32((T + KEYS - 1) // KEYS)


@cuda.jit(device=True)
def produce_device(qkv_map, grad_out_map, scratch_S, base, rings, T, H, n_heads):
    """Copy, as one thread, keys and values, and the queries that see them with all that belongs to these."""
    C, rows = H * HEAD_SIZE, padded_device(T)
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        b, column, first = piece.b, piece.column, int32(piece.number * KEYS)
        own = own_place_device(turn)
        barrier = announce_device(rings.own_empty, rings.own_full, own, 2 * KEY_BYTES)
        address = at_device(base, own, KEY_BYTES)
        load_tiles_device(address, CONSUMERS, qkv_map, column + C, first, b, barrier)
        load_tiles_device(address + VALUES_AT, CONSUMERS, qkv_map, column + 2 * C, first, b, barrier)
        query = first
        while query < T:
            number = piece.head * rows + query
            barrier = announce_device(rings.empty, rings.first_full, place, TILE_BYTES + NUMBER_BYTES)
            load_tiles_device(at_device(base + QUERIES_AT, place, TILE_BYTES), 1, qkv_map, column, query, b, barrier)
            bulk_load(at_device(base + SHIFTS_AT, place, NUMBER_BYTES), scratch_S, number, NUMBER_BYTES, barrier)
            number += n_heads * rows
            barrier = announce_device(rings.empty, rings.second_full, place, TILE_BYTES + NUMBER_BYTES)
            load_tiles_device(at_device(base + GRADS_AT, place, TILE_BYTES), 1, grad_out_map, column, query, b, barrier)
            bulk_load(at_device(base + DELTAS_AT, place, NUMBER_BYTES), scratch_S, number, NUMBER_BYTES, barrier)
            place = advance_device(place, STAGES)
            query = int32(query + ROWS)
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)


@cuda.jit(device=True)
def start_scores_device(keys, base, rings, place):
    """Start S^T = K Q^T for the queries of a stage."""
    wait_full_device(rings.first_full, place)
    return multiply(keys, wgmma_descriptor(at_device(base + QUERIES_AT, place, TILE_BYTES)))


@cuda.jit(device=True)
def start_grad_weights_device(values, base, rings, place):
    """Start dP^T = V dO^T for the gradients of a stage."""
    wait_full_device(rings.second_full, place)
    return multiply(values, wgmma_descriptor(at_device(base + GRADS_AT, place, TILE_BYTES)))


@cuda.jit(device=True)
def weights_device(scores, base, place):
    """Return P^T of a stage."""
    shifts = numbers_of_columns(at_device(base + SHIFTS_AT, place, NUMBER_BYTES) + 4 * own_column_device())
    return weights_of_columns(scores, shifts)


@cuda.jit(device=True)
def add_grad_value_device(grad_value, words, base, place):
    """Start to add P^T dO of a stage."""
    return add_product(
        grad_value, words, wgmma_descriptor_mn(at_device(base + GRADS_AT, place, TILE_BYTES), TILE_BYTES)
    )


@cuda.jit(device=True)
def add_grad_key_device(grad_key, weights, grad_weights, base, place):
    """Start to add dS^T Q of a stage."""
    deltas = numbers_of_columns(at_device(base + DELTAS_AT, place, NUMBER_BYTES) + 4 * own_column_device())
    queries = wgmma_descriptor_mn(at_device(base + QUERIES_AT, place, TILE_BYTES), TILE_BYTES)
    return add_product(grad_key, pack(grad_scores_of_columns(weights, grad_weights, deltas)), queries)


@cuda.jit(device=True)
def sum_grads_device(own_tiles, first, T, base, rings, place, is_leader):
    """Sum dS^T Q and P^T dO over the queries from `first` on; return the sums, and the place in the ring."""
    keys, values = wgmma_descriptor(own_tiles), wgmma_descriptor(own_tiles + VALUES_AT)
    grad_key, grad_value = zero_sums(), zero_sums()
    scores = start_scores_device(keys, base, rings, place)
    grad_weights = start_grad_weights_device(values, base, rings, place)
    scores = hide_earlier_queries(wait_for_all_but_1(scores), first, first)
    weights = weights_device(scores, base, place)
    before, releases = place, uint32(0)
    query = int32(first + ROWS)
    while query < T:
        following = advance_device(place, STAGES)
        words = pack(weights)
        grad_weights = sums_are_there(grad_weights)
        release_device(rings.empty, before, releases)
        grad_value = add_grad_value_device(grad_value, words, base, place)
        scores = start_scores_device(keys, base, rings, following)
        grad_key = add_grad_key_device(grad_key, weights, grad_weights, base, place)
        grad_weights = start_grad_weights_device(values, base, rings, following)
        weights = weights_device(wait_for_all_but_2(scores), base, following)
        before, place, releases = place, following, is_leader
        query = int32(query + ROWS)
    words = pack(weights)
    grad_weights = sums_are_there(grad_weights)
    release_device(rings.empty, before, releases)
    grad_value = add_grad_value_device(grad_value, words, base, place)
    return add_grad_key_device(grad_key, weights, grad_weights, base, place), grad_value, place


@cuda.jit(device=True)
def consume_device(grad_map, base, rings, group, T, H, n_heads):
    """Take, as one of the consumers, the gradients of its 64 keys and values of each piece of work."""
    thread = cuda.threadIdx.x % GROUP
    is_leader = uint32(thread == 0)
    box = base + OUT_AT + 2 * TILE_BYTES * group
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        first = int32(piece.number * KEYS + ROWS * group)
        not_seen = min(int32(group), (T - piece.number * KEYS + ROWS - 1) // ROWS)  # stages before the consumer's keys
        place = pass_over_device(not_seen, rings, place, STAGES, is_leader)
        own = own_place_device(turn)
        wait_full_device(rings.own_full, own)
        if first >= T:
            release_device(rings.own_empty, own, is_leader)
        else:
            own_tiles = at_device(base, own, KEY_BYTES) + TILE_BYTES * group
            grad_key, grad_value, place = sum_grads_device(own_tiles, first, T, base, rings, place, is_leader)
            release_device(rings.own_empty, own, is_leader)  # only queries and gradients are still being read
            wait_until_stored_device(is_leader)
            grad_key, grad_value = sums_are_there(grad_key), sums_are_there(grad_value)
            release_device(rings.empty, place, is_leader)
            place = advance_device(place, STAGES)
            write_tile(scaled_rows(grad_key, SCALE, SCALE), box, uint32(thread))
            write_tile(grad_value, box + TILE_BYTES, uint32(thread))
            before_store_device()
            if is_leader:
                column = piece.column + H * HEAD_SIZE
                tma_store_3d(grad_map, column, first, piece.b, box)
                tma_store_3d(grad_map, column + H * HEAD_SIZE, first, piece.b, box + TILE_BYTES)
                bulk_commit()
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)
    if is_leader:
        bulk_wait(0)  # shared memory must live until the last tiles are stored


@kernel(
    "void(uint64[::1], float32[::1], uint64[::1], uint64[::1], int64, int64, int64)",
    architectures=("sm_90a",),
    launch_bounds=(BLOCK, 1),
)
def grad_key_value_kernel(grad_map, scratch_S, qkv_map, grad_out_map, T, H, n_heads):
    """Warp group 0 is the producer, the others are the consumers; a block works on one piece after the other."""
    base = shared_base_device()
    rings = rings_device(base + BARRIERS_AT, STAGES)
    group = init_rings_device(rings, STAGES, CONSUMERS)
    n_heads = uint32(n_heads)
    if group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(qkv_map, grad_out_map, scratch_S, base, rings, T, H, n_heads)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consume_device(grad_map, base, rings, group - 1, T, H, n_heads)


def grad_key_value_launch(a: SimpleNamespace, sizes: SimpleNamespace, stream: object) -> Launch:
    """Return the launch on what `common.take_backward` gave, after the one of the queries' gradient."""
    B, T, H = sizes.B, sizes.T, sizes.H
    grad_map, qkv_map, grad_out_map = (
        tile_map(array, B, T).array for array in (a.grad_qkv_NE, a.qkv_NE, a.grad_out_NC)
    )
    arguments = (grad_map, a.scratch_S, qkv_map, grad_out_map, T, H, B * H)
    return Launch(
        grad_key_value_kernel, persistent_grid(B * H * ceil_div(T, KEYS)), BLOCK, arguments, stream, SHARED_BYTES
    )
