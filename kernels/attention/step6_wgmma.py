"""Attention, step 6: Hopper's warp groups. One copies with TMA, three multiply with `wgmma`.

The tensor cores of Hopper read their operands from shared memory themselves, 64 rows at a time for a whole warp group:
no thread loads what it multiplies, and no thread copies. `hopper.py` has the picture of who waits for whom. The weights
go from the registers where the first product left them straight into the second. The producer gives most of its
registers to the consumers. Within a consumer everything still happens one after the other:

    wait for keys | Q K | maxima, exponentials, sums | wait for values | + P V | next keys ...

Forward only; other GPUs, dtypes and head sizes, and the backward pass, are those of step 5.
"""

from __future__ import annotations

from numba import cuda, float32, int32, uint32

from kernels.attention import step5_swizzled as fallback
from kernels.attention.common import LOWEST, take_forward
from kernels.attention.common import attention_scratch_size as attention_scratch_size
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
    pass_over_device,
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
from kernels.attention.step5_backward import attention_backward as attention_backward
from kernels.launch import launcher
from kernels.ptx import exp2
from kernels.ptx_hopper import bulk_wait, decrease_registers, increase_registers
from kernels.registry import kernel
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn


@cuda.jit(device=True)
def attend_device(queries, first, n, base, rings, place, is_leader):
    """Attend to the first `n` stages of keys; return the sums, and the place in the ring."""
    greatest, greatest_8 = LOWEST, LOWEST  # of the thread's upper row, and of its lower
    total, total_8 = float32(0), float32(0)
    sums = zero_sums()
    while n > 0:
        n = int32(n - 1)
        wait_full_device(rings.first_full, place)
        keys = wgmma_descriptor(at_device(base + KEYS_AT, place, KEY_BYTES))
        scores = scores_are_there(multiply_by_keys(queries, keys))
        if (n + 1) * KEYS > first:  # some of these keys come after some of these queries
            scores = hide_later_keys(scores, first, n * KEYS)
        higher, higher_8 = row_maxima(scores, greatest, greatest_8)
        shrink, shrink_8 = exp2((greatest - higher) * FACTOR), exp2((greatest_8 - higher_8) * FACTOR)
        greatest, greatest_8 = higher, higher_8
        weights = weights_of_rows(scores, -greatest * FACTOR, -greatest_8 * FACTOR)
        total, total_8 = row_sums(weights, total * shrink, total_8 * shrink_8)
        sums = scaled_rows(sums, shrink, shrink_8)
        wait_full_device(rings.second_full, place)
        values = wgmma_descriptor_mn(at_device(base + VALUES_AT, place, KEY_BYTES), TILE_BYTES)
        sums = sums_are_there(add_weighted_values(sums, pack_weights(weights), values))
        release_device(rings.empty, place, is_leader)
        place = advance_device(place, STAGES)
    return sums, Rows(greatest, greatest_8, quad_sum(total), quad_sum(total_8)), place


@cuda.jit(device=True)
def consume_device(out_map, logsumexp_I, base, rings, group, T, H, n_heads):
    """Attend, as one of the consumers, from its 64 queries of each piece of work."""
    is_leader = uint32(cuda.threadIdx.x % GROUP == 0)
    box = base + OUT_AT + TILE_BYTES * group
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_device(index, T, H, n_heads)
        first = int32(first_query_device(piece, T) + ROWS * group)
        n = stages_seen_device(first, ROWS, T, KEYS)
        n_of_block = stages_seen_device(first_query_device(piece, T), QUERIES, T, KEYS)
        place = pass_over_device(n_of_block - n, rings, place, STAGES, is_leader)
        own = own_place_device(turn)
        wait_full_device(rings.own_full, own)
        if n == 0:
            release_device(rings.own_empty, own, is_leader)
        else:
            queries = wgmma_descriptor(at_device(base, own, QUERY_BYTES) + TILE_BYTES * group)
            sums, rows, place = attend_device(queries, first, n, base, rings, place, is_leader)
            release_device(rings.own_empty, own, is_leader)  # the queries have been multiplied by all keys
            wait_until_stored_device(is_leader)
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
    Source   Dao 2023, algorithm 1 (arXiv:2307.08691); Shah et al. 2024, section 3.1 (arXiv:2407.08608); PTX ISA 9.0,
             Asynchronous Warpgroup Level Matrix Instructions.
    Book     Chapter 07, step 6.
    """
    a, sizes = take_forward(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE)
    if not takes(sizes.C // sizes.H, a.qkv_NE, a.out_NC):
        return fallback.attention_forward.prepare(out_BTC, logsumexp_BHT, scratch_S, qkv_BTE, stream)
    return [forward_launch(attention_forward_kernel, a, sizes, stream)]
