"""Attention, step 7: the tensor cores multiply while other units take exponentials.

On Hopper the exponentials of a tile take about as long as its two products, so step 6 leaves the tensor cores idle half
of the time. Here a consumer starts the scores of the next keys before it adds the values of these, and goes on with its
exponentials as soon as the scores are there:

    tensor cores   Q K1 | + P0 V0 |                   Q K2 | + P1 V1 |
    other units                     P1 from scores 1                   P2 from scores 2

The three consumers take turns at starting products (named barriers hand the turn on), so that one multiplies while the
others take exponentials:

    consumer 0     products | exponentials . . . | products | exponentials . . .
    consumer 1                products | exponentials . . . | products | ...
    consumer 2                           products | exponentials . . . | ...

Two more savings. The sums are rescaled only when a weight could exceed 2**8 (the softmax is the same whatever is
subtracted, as long as nothing overflows). And every second tile of queries sees only the left half of the last keys, so
only that half is multiplied. All else is as in step 6.
"""

from __future__ import annotations

import numpy as np
from numba import cuda, float32, int32, uint32

from kernels.accumulators import pack_accumulators, zero_words
from kernels.attention import step5_swizzled as fallback
from kernels.attention.common import LOWEST, take_forward
from kernels.attention.fragments import quad_sum
from kernels.attention.hopper import (
    GROUP,
    QUERIES,
    ROWS,
    TILE_BYTES,
    advance_device,
    at_device,
    first_query_device,
    index_of_turn_device,
    init_rings_device,
    n_query_pieces_device,
    own_place_device,
    release_device,
    rings_device,
    shared_base_device,
    stages_seen_device,
    start_device,
    takes,
    wait_full_device,
    wait_until_stored_device,
)
from kernels.attention.hopper_forward import (
    BARRIERS_AT,
    BLOCK,
    CONSUMER_REGISTERS,
    CONSUMERS,
    KEY_BYTES,
    KEYS,
    KEYS_AT,
    OUT_AT,
    PRODUCER_REGISTERS,
    QUERY_BYTES,
    SCORES,
    SIGNATURE,
    STAGES,
    VALUES_AT,
    add_weighted_values,
    forward_launch,
    multiply_by_keys,
    pack_weights,
    piece_device,
    produce_device,
    scores_are_there,
    store_rows_device,
)
from kernels.attention.hopper_rows import (
    FACTOR,
    Rows,
    hide_later_keys,
    row_maxima,
    row_sums,
    scaled_rows,
    sums_are_there,
    weights_of_rows,
    zero_sums,
)
from kernels.attention.step7_backward import attention_backward as attention_backward
from kernels.attention.step7_backward import attention_scratch_size
from kernels.launch import launcher
from kernels.ptx import exp2
from kernels.ptx_hopper import barrier_arrive, barrier_sync, bulk_wait, decrease_registers, increase_registers
from kernels.reduce import FULL_MASK
from kernels.registry import kernel
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn, wgmma_ss_new, wgmma_wait_for

LARGEST_GROWTH = np.float32(8)
"""How far, as a power of two, weights may exceed 1 before sums are rescaled."""

FIRST_TURN = 1 + CONSUMERS
"""The named barrier of consumer 0's turn, after those of the warp groups themselves."""

multiply_by_left_keys = wgmma_ss_new(KEYS // 2)
left_scores_are_there = wgmma_wait_for(SCORES // 2)
pack_left_weights = pack_accumulators(SCORES // 2)
zero_right_weights = zero_words(SCORES // 4)
newer_is_under_way = wgmma_wait_for(SCORES, 1)


@cuda.jit(device=True)
def take_turn_device(group):
    """Wait until it is this consumer's turn to start products."""
    barrier_sync(FIRST_TURN + group, 2 * GROUP)


@cuda.jit(device=True)
def pass_turn_device(group):
    """Let the next consumer start its products."""
    barrier_arrive(FIRST_TURN + (0 if group == CONSUMERS - 1 else group + 1), 2 * GROUP)


@cuda.jit(device=True)
def softmax_device(scores):
    """Return the weights of the first keys that a thread's rows meet, and what is known of these rows."""
    greatest, greatest_8 = row_maxima(scores, LOWEST, LOWEST)
    weights = weights_of_rows(scores, -greatest * FACTOR, -greatest_8 * FACTOR)
    total, total_8 = row_sums(weights, float32(0), float32(0))
    return weights, Rows(greatest, greatest_8, total, total_8)


@cuda.jit(device=True)
def last_keys_device(queries, keys, first, first_key):
    """Attend to the keys on the diagonal; of queries that begin where the keys do, only the left half counts."""
    if first == first_key:
        scores = left_scores_are_there(multiply_by_left_keys(queries, keys))
        left, rows = softmax_device(hide_later_keys(scores, first, first_key))
        words = pack_left_weights(left) + zero_right_weights()
    else:
        scores = scores_are_there(multiply_by_keys(queries, keys))
        weights, rows = softmax_device(hide_later_keys(scores, first, first_key))
        words = pack_weights(weights)
    return words, rows


@cuda.jit(device=True)
def attend_device(queries, first, n, base, rings, place, group, is_leader):
    """Attend to the first `n` stages of keys; return the sums, and the place in the ring."""
    wait_full_device(rings.first_full, place)
    keys = wgmma_descriptor(at_device(base + KEYS_AT, place, KEY_BYTES))
    n = int32(n - 1)
    words, (greatest, greatest_8, total, total_8) = last_keys_device(queries, keys, first, int32(n * KEYS))
    sums = zero_sums()
    while n > 0:
        n = int32(n - 1)
        before, place = place, advance_device(place, STAGES)
        wait_full_device(rings.first_full, place)
        keys = wgmma_descriptor(at_device(base + KEYS_AT, place, KEY_BYTES))
        values = wgmma_descriptor_mn(at_device(base + VALUES_AT, before, KEY_BYTES), TILE_BYTES)
        take_turn_device(group)
        scores = multiply_by_keys(queries, keys)
        wait_full_device(rings.second_full, before)
        sums = add_weighted_values(sums, words, values)
        pass_turn_device(group)
        scores = newer_is_under_way(scores)
        higher, higher_8 = row_maxima(scores, greatest, greatest_8)
        growth = max(higher - greatest, higher_8 - greatest_8) * FACTOR
        rescale = cuda.any_sync(FULL_MASK, growth > LARGEST_GROWTH)
        shrink, shrink_8 = float32(1), float32(1)
        if rescale:
            shrink, shrink_8 = exp2((greatest - higher) * FACTOR), exp2((greatest_8 - higher_8) * FACTOR)
            greatest, greatest_8 = higher, higher_8
        weights = weights_of_rows(scores, -greatest * FACTOR, -greatest_8 * FACTOR)
        total, total_8 = row_sums(weights, total * shrink, total_8 * shrink_8)
        sums = sums_are_there(sums)
        release_device(rings.empty, before, is_leader)
        words = pack_weights(weights)
        if rescale:
            sums = scaled_rows(sums, shrink, shrink_8)
    take_turn_device(group)
    wait_full_device(rings.second_full, place)
    values = wgmma_descriptor_mn(at_device(base + VALUES_AT, place, KEY_BYTES), TILE_BYTES)
    sums = add_weighted_values(sums, words, values)
    pass_turn_device(group)
    return sums, Rows(greatest, greatest_8, quad_sum(total), quad_sum(total_8)), place


@cuda.jit(device=True)
def consume_device(out_map, logsumexp_I, base, rings, group, T, H, n_heads):
    """Attend, as one of the consumers, from its 64 queries of each piece of work."""
    is_leader = uint32(cuda.threadIdx.x % GROUP == 0)
    box = base + OUT_AT + TILE_BYTES * group
    place = start_device()
    turn = uint32(0)
    if group == CONSUMERS - 1:
        pass_turn_device(group)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_device(index, T, H, n_heads)
        first = int32(first_query_device(piece, T) + ROWS * group)
        n = stages_seen_device(first, ROWS, T, KEYS)
        passed_over = int32(stages_seen_device(first_query_device(piece, T), QUERIES, T, KEYS) - n)
        while passed_over > 0:
            take_turn_device(group)
            pass_turn_device(group)
            wait_full_device(rings.first_full, place)
            release_device(rings.empty, place, is_leader)
            place = advance_device(place, STAGES)
            passed_over = int32(passed_over - 1)
        own = own_place_device(turn)
        wait_full_device(rings.own_full, own)
        if n == 0:
            release_device(rings.own_empty, own, is_leader)
        else:
            queries = wgmma_descriptor(at_device(base, own, QUERY_BYTES) + TILE_BYTES * group)
            sums, rows, place = attend_device(queries, first, n, base, rings, place, group, is_leader)
            release_device(rings.own_empty, own, is_leader)  # the queries have been multiplied by all keys
            wait_until_stored_device(is_leader)
            sums = sums_are_there(sums)
            release_device(rings.empty, place, is_leader)
            place = advance_device(place, STAGES)
            store_rows_device(sums, rows, out_map, logsumexp_I, box, piece, first, T)
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)
    if is_leader:
        bulk_wait(0)  # shared memory must live until the last tile is stored


@kernel(SIGNATURE, architectures=("sm_90a",), launch_bounds=(BLOCK, 1))
def attention_forward_kernel(out_map, logsumexp_I, query_map, key_map, T, H):
    """Warp group 0 is the producer, the others are the consumers; a block works on one piece after the other."""
    base = shared_base_device()
    rings = rings_device(base + BARRIERS_AT, STAGES)
    group = init_rings_device(rings, STAGES, CONSUMERS)
    n_heads = uint32(logsumexp_I.size // T)
    if group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(query_map, key_map, base, rings, T, H, n_heads)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consume_device(out_map, logsumexp_I, base, rings, group - 1, T, H, n_heads)


@launcher
def attention_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream=0):
    """Attend causally: of each query the mean of the values up to its time, weighted by the softmax of its scores.

    Reads    qkv_BTE: float32 or bfloat16, `B T (three H D)`, C-contiguous, on the device.
    Writes   out_BTC (=), `B T (H D)`, of the same dtype; logsumexp_BHT float32 (=), for backward, whose
             shape gives H; scratch_S float32 is not used.
    Work     2*B*T*T*C flop (half of the square), a key and value read once for 192 queries: bound by the arithmetic.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_attention.py).
    Raises   ValueError if a shape or dtype disagrees or D > 128; nothing is launched then.
    Source   Shah et al. 2024, sections 3.1 and 3.2 (arXiv:2407.08608); Dao 2023, algorithm 1 (arXiv:2307.08691).
    Book     Chapter 07, step 7.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, attention_scratch_size)
    if not takes(sizes.C // sizes.H, a.qkv_NE, a.out_NC):
        return fallback.attention_forward.prepare(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream)
    return [forward_launch(attention_forward_kernel, a, sizes, stream)]
