"""The queries' gradient of step 7: a consumer owns 64 queries and walks over the keys and values that they see.

With S = Q K^T scores, P the weights, and dP = dO V^T the gradients of the weights, the gradient of the scores is
dS = P * (dP - delta), where delta is, for each query, the sum of dO * O; then dQ = dS K. Three products a step, and the
exponentials of the next step are taken while two of them run:

    tensor cores   dP 1 |         S 2 | + dS 1 K 1 | dP 2 |               S 3 | + dS 2 K 2 | dP 3 |
    other units     P 1 | dS 1 from P 1, dP 1 |      P 2 from S 2 | dS 2 from P 2, dP 2 |

Every consumer also computes delta of its queries and stores it, with the log-sum-exp times -log2(e), for the kernel of
the keys' and values' gradients. Blocks own 192 queries and are counted from the end of the sequence, as in the forward
pass. Walking from the last keys to the first, in one order, makes the sums the same at every run.
"""

from __future__ import annotations

from types import SimpleNamespace

from numba import cuda, float32, int32, uint32

from kernels.accumulators import pack_accumulators, zero_words
from kernels.attention.common import LOG2_E
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
    init_rings_device,
    load_tiles_device,
    n_query_pieces_device,
    own_place_device,
    padded_device,
    pass_over_device,
    persistent_grid,
    piece_of_index_device,
    release_device,
    rings_device,
    shared_base_device,
    stages_seen_device,
    start_device,
    tile_map,
    wait_full_device,
    wait_until_stored_device,
)
from kernels.attention.hopper_rows import (
    SCALE,
    SUMS,
    dot_of_words,
    grad_scores_of_rows,
    hide_later_keys,
    scaled_rows,
    sums_are_there,
    weights_of_rows,
    write_tile,
    zero_sums,
)
from kernels.launch import Launch, ceil_div
from kernels.ptx import load_128, load_shared_128
from kernels.ptx_hopper import (
    bulk_commit,
    bulk_wait,
    decrease_registers,
    increase_registers,
    tma_prefetch_3d,
    tma_store_3d,
    warp_uniform,
)
from kernels.reduce import FULL_MASK
from kernels.registry import kernel
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn, wgmma_rs, wgmma_ss_new, wgmma_wait_for

CONSUMERS = QUERY_CONSUMERS
STAGES = 6  # of 64 keys and values
BLOCK = (1 + CONSUMERS) * GROUP
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 32, 160  # 128 a thread at the start
HEADS_TOGETHER = 12

# where everything is in shared memory
QUERY_BYTES = CONSUMERS * TILE_BYTES
GRADS_AT = OWN_STAGES * QUERY_BYTES  # of the output
KEYS_AT = GRADS_AT + OWN_STAGES * QUERY_BYTES
VALUES_AT = KEYS_AT + STAGES * TILE_BYTES
OUT_AT = VALUES_AT + STAGES * TILE_BYTES
BARRIERS_AT = OUT_AT + CONSUMERS * TILE_BYTES
SHARED_BYTES = BARRIERS_AT + barrier_bytes(STAGES) + SWIZZLE_BYTES

multiply = wgmma_ss_new(ROWS)
add_product = wgmma_rs(HEAD_SIZE, ROWS // 16, b_mn_major=True)
wait_for_all_but_1 = wgmma_wait_for(SUMS, 1)
wait_for_all_but_2 = wgmma_wait_for(SUMS, 2)
pack = pack_accumulators(SUMS)
HALF_ROW = HEAD_SIZE // 2
zero_half_row = zero_words(HALF_ROW // 2)


@cuda.jit(device=True)
def produce_device(qkv_map, grad_out_map, out_map, base, rings, T, H, n_heads):
    """Copy, as one thread, queries and gradients of the output, and the keys and values that the queries see."""
    C = H * HEAD_SIZE
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_query_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        b, column, first = piece.b, piece.column, first_query_device(piece, T)
        for i in range(CONSUMERS):
            tma_prefetch_3d(out_map, column, first + ROWS * i, b)
        own = own_place_device(turn)
        barrier = announce_device(rings.own_empty, rings.own_full, own, 2 * QUERY_BYTES)
        address = at_device(base, own, QUERY_BYTES)
        load_tiles_device(address, CONSUMERS, qkv_map, column, first, b, barrier)
        load_tiles_device(address + GRADS_AT, CONSUMERS, grad_out_map, column, first, b, barrier)
        n = stages_seen_device(first, QUERIES, T, ROWS)
        while n > 0:
            n = int32(n - 1)
            barrier = announce_device(rings.empty, rings.first_full, place, TILE_BYTES)
            address = at_device(base + KEYS_AT, place, TILE_BYTES)
            load_tiles_device(address, 1, qkv_map, column + C, n * ROWS, b, barrier)
            barrier = announce_device(rings.empty, rings.second_full, place, TILE_BYTES)
            address = at_device(base + VALUES_AT, place, TILE_BYTES)
            load_tiles_device(address, 1, qkv_map, column + 2 * C, n * ROWS, b, barrier)
            place = advance_device(place, STAGES)
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)


@cuda.jit(device=True)
def fetch_row_device(out, logsumexp_I, piece, first, T, H):
    """Load half a row of the output, and the row's log-sum-exp: lanes 2 r and 2 r + 1 share row r of the warp's 16.

    Rows after the last one of the sequence are zeros: then their weights are 1 and their gradients 0.
    """
    words, logsumexp = zero_half_row(), float32(0)
    query = first + (cuda.threadIdx.x % GROUP >> 1)
    if 0 <= query < T:
        logsumexp = logsumexp_I[piece.head * T + query]
        start = (piece.b * T + query) * (H * HEAD_SIZE) + piece.column + uint32((cuda.threadIdx.x & 1) * HALF_ROW)
        words = load_128(out, start) + load_128(out, start + 8) + load_128(out, start + 16) + load_128(out, start + 24)
    return words, logsumexp


@cuda.jit(device=True)
def half_row_device(tile):
    """Load the same half of a row of a tile in shared memory."""
    row = cuda.threadIdx.x % GROUP >> 1
    line = uint32(tile + row * (TILE_BYTES // ROWS))
    piece = uint32(((cuda.threadIdx.x & 1) * 4 ^ row & 7) * 16)  # the swizzle
    left, right = load_shared_128(line + piece), load_shared_128(line + (piece ^ 16))
    return left + right + load_shared_128(line + (piece ^ 32)) + load_shared_128(line + (piece ^ 48))


@cuda.jit(device=True)
def row_numbers_device(scratch_S, fetched, grads_tile, piece, first, T, n_heads):
    """Compute shift = -log2(e) * log-sum-exp and delta, store them, and return both for each of the thread's rows."""
    thread, lane = cuda.threadIdx.x % GROUP, cuda.threadIdx.x & 31
    query = first + (thread >> 1)
    out_words, logsumexp = fetched
    shift = logsumexp * -LOG2_E
    delta = dot_of_words(out_words, half_row_device(grads_tile))
    delta += cuda.shfl_xor_sync(FULL_MASK, delta, 1)
    if thread & 1 == 0:
        scratch_S[piece.head * padded_device(T) + query] = shift
        scratch_S[(n_heads + piece.head) * padded_device(T) + query] = delta
    upper, lower = lane >> 2 << 1, (lane >> 2 << 1) + 16
    shifts = cuda.shfl_sync(FULL_MASK, shift, upper), cuda.shfl_sync(FULL_MASK, shift, lower)
    return shifts, (cuda.shfl_sync(FULL_MASK, delta, upper), cuda.shfl_sync(FULL_MASK, delta, lower))


@cuda.jit(device=True)
def start_scores_device(queries, base, rings, place):
    """Start S = Q K^T for the keys of a stage."""
    wait_full_device(rings.first_full, place)
    return multiply(queries, wgmma_descriptor(at_device(base + KEYS_AT, place, TILE_BYTES)))


@cuda.jit(device=True)
def start_grad_weights_device(grads, base, rings, place):
    """Start dP = dO V^T for the values of a stage."""
    wait_full_device(rings.second_full, place)
    return multiply(grads, wgmma_descriptor(at_device(base + VALUES_AT, place, TILE_BYTES)))


@cuda.jit(device=True)
def add_grad_device(sums, weights, grad_weights, deltas, base, place):
    """Start to add dS K for the keys of a stage to the sums."""
    keys = wgmma_descriptor_mn(at_device(base + KEYS_AT, place, TILE_BYTES), TILE_BYTES)
    return add_product(sums, pack(grad_scores_of_rows(weights, grad_weights, deltas[0], deltas[1])), keys)


@cuda.jit(device=True)
def sum_grads_device(sums, weights, grad_weights, numbers, operands, n, base, rings, place, is_leader):
    """Add dS K over `n` stages of keys, the last one first; return the sums, and the place in the ring.

    On entering each round the weights of one stage are known, and the gradients of them are under way.
    """
    (shift, shift_8), deltas = numbers
    queries, grads = operands
    before, releases = place, uint32(0)
    while n > 1:
        n = int32(n - 1)
        following = advance_device(place, STAGES)
        grad_weights = sums_are_there(grad_weights)
        release_device(rings.empty, before, releases)
        scores = start_scores_device(queries, base, rings, following)
        sums = add_grad_device(sums, weights, grad_weights, deltas, base, place)
        grad_weights = start_grad_weights_device(grads, base, rings, following)
        weights = weights_of_rows(wait_for_all_but_2(scores), shift, shift_8)
        before, place, releases = place, following, is_leader
    grad_weights = sums_are_there(grad_weights)
    release_device(rings.empty, before, releases)
    return add_grad_device(sums, weights, grad_weights, deltas, base, place), place


@cuda.jit(device=True)
def consume_device(grad_map, scratch_S, out, logsumexp_I, base, rings, group, T, H, n_heads):
    """Take, as one of the consumers, the gradient of its 64 queries of each piece of work."""
    thread = cuda.threadIdx.x % GROUP
    is_leader = uint32(thread == 0)
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_query_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        first = int32(first_query_device(piece, T) + ROWS * group)
        fetched = fetch_row_device(out, logsumexp_I, piece, first, T, H)
        n = stages_seen_device(first, ROWS, T, ROWS)
        n_of_block = stages_seen_device(first_query_device(piece, T), QUERIES, T, ROWS)
        place = pass_over_device(n_of_block - n, rings, place, STAGES, is_leader)
        own = own_place_device(turn)
        wait_full_device(rings.own_full, own)
        if n == 0:
            release_device(rings.own_empty, own, is_leader)
        else:
            queries = at_device(base, own, QUERY_BYTES) + TILE_BYTES * group
            operands = wgmma_descriptor(queries), wgmma_descriptor(queries + GRADS_AT)
            sums = zero_sums()
            scores = start_scores_device(operands[0], base, rings, place)
            grad_weights = start_grad_weights_device(operands[1], base, rings, place)
            numbers = row_numbers_device(scratch_S, fetched, queries + GRADS_AT, piece, first, T, n_heads)
            scores = hide_later_keys(wait_for_all_but_1(scores), first, first)
            weights = weights_of_rows(scores, numbers[0][0], numbers[0][1])
            sums, place = sum_grads_device(
                sums, weights, grad_weights, numbers, operands, n, base, rings, place, is_leader
            )
            wait_until_stored_device(is_leader)
            sums = sums_are_there(sums)
            release_device(rings.own_empty, own, is_leader)
            release_device(rings.empty, place, is_leader)
            place = advance_device(place, STAGES)
            box = warp_uniform(base + OUT_AT + TILE_BYTES * group)  # not before: registers are short in the loop
            write_tile(scaled_rows(sums, SCALE, SCALE), box, uint32(thread))
            before_store_device()
            if is_leader:
                tma_store_3d(grad_map, piece.column, first, piece.b, box)
                bulk_commit()
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)
    if is_leader:
        bulk_wait(0)  # shared memory must live until the last tile is stored


@kernel(
    "void(uint64[::1], float32[::1], uint64[::1], uint64[::1], uint64[::1], uint16[::1], float32[::1], int64, int64)",
    architectures=("sm_90a",),
    launch_bounds=(BLOCK, 1),
)
def grad_query_kernel(grad_map, scratch_S, qkv_map, grad_out_map, out_map, out, logsumexp_I, T, H):
    """Warp group 0 is the producer, the others are the consumers; a block works on one piece after the other."""
    base = shared_base_device()
    rings = rings_device(base + BARRIERS_AT, STAGES)
    group = init_rings_device(rings, STAGES, CONSUMERS)
    n_heads = uint32(logsumexp_I.size // T)
    if group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(qkv_map, grad_out_map, out_map, base, rings, T, H, n_heads)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consume_device(grad_map, scratch_S, out, logsumexp_I, base, rings, group - 1, T, H, n_heads)


def grad_query_launch(a: SimpleNamespace, sizes: SimpleNamespace, stream: object) -> Launch:
    """Return the launch on what `common.take_backward` gave."""
    B, T, H = sizes.B, sizes.T, sizes.H
    grad_map, qkv_map, grad_out_map, out_map = (
        tile_map(array, B, T).array for array in (a.grad_qkv_NE, a.qkv_NE, a.grad_out_NC, a.out_NC)
    )
    out = a.out_NC.reshape(a.out_NC.size)
    arguments = (grad_map, a.scratch_S, qkv_map, grad_out_map, out_map, out, a.logsumexp_I, T, H)
    grid = persistent_grid(B * H * ceil_div(T, QUERIES))
    return Launch(grad_query_kernel, grid, BLOCK, arguments, stream, SHARED_BYTES)
