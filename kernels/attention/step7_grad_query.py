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

from numba import cuda, float32, int32, uint32

from kernels.accumulators import pack_accumulators, store_bf16_box, zero_accumulators
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
    piece_of_index_device,
    release_device,
    rings_device,
    shared_base_device,
    stages_seen_device,
    start_device,
    wait_full_device,
    wait_until_stored_device,
)
from kernels.attention.hopper_rows import SCALE, grad_scores_of_rows, hide_later_keys, scaled_rows, weights_of_rows
from kernels.ptx import load_128, unpack_bf16x2
from kernels.ptx_hopper import (
    bulk_commit,
    bulk_wait,
    decrease_registers,
    increase_registers,
    tma_store_3d,
    warp_uniform,
)
from kernels.reduce import FULL_MASK
from kernels.registry import kernel
from kernels.wgmma import wgmma_descriptor, wgmma_descriptor_mn, wgmma_rs, wgmma_ss_new, wgmma_wait_for

CONSUMERS = QUERY_CONSUMERS
STAGES = 5  # of 64 keys and values
BLOCK = (1 + CONSUMERS) * GROUP
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 32, 160  # 128 a thread at the start
HEADS_TOGETHER = 66

# where everything is in shared memory
QUERY_BYTES = CONSUMERS * TILE_BYTES
GRADS_AT = OWN_STAGES * QUERY_BYTES  # of the output
KEYS_AT = GRADS_AT + OWN_STAGES * QUERY_BYTES
VALUES_AT = KEYS_AT + STAGES * TILE_BYTES
OUT_AT = VALUES_AT + STAGES * TILE_BYTES
BARRIERS_AT = OUT_AT + CONSUMERS * TILE_BYTES
SHARED_BYTES = BARRIERS_AT + barrier_bytes(STAGES) + SWIZZLE_BYTES

SUMS = HEAD_SIZE // 2  # floats of a thread
multiply = wgmma_ss_new(ROWS)
add_product = wgmma_rs(HEAD_SIZE, ROWS // 16, b_mn_major=True)
wait_for_all = wgmma_wait_for(SUMS)
wait_for_all_but_1 = wgmma_wait_for(SUMS, 1)
wait_for_all_but_2 = wgmma_wait_for(SUMS, 2)
zero_sums = zero_accumulators(SUMS)
pack = pack_accumulators(SUMS)
write_tile = store_bf16_box(SUMS)


@cuda.jit(device=True)
def produce_device(qkv_map, grad_out_map, base, rings, T, H, n_heads):
    """Copy, as one thread, queries and gradients of the output, and the keys and values that the queries see."""
    C = H * HEAD_SIZE
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_query_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        b, column, first = piece.b, piece.column, first_query_device(piece, T)
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
def half_row_product_device(x, y, start):
    """Sum the products of 32 elements of two arrays."""
    even, odd = float32(0), float32(0)
    for piece in range(4):
        x_words, y_words = load_128(x, start + 8 * piece), load_128(y, start + 8 * piece)
        for w in range(4):
            a, b = unpack_bf16x2(x_words[w]), unpack_bf16x2(y_words[w])
            even += a[0] * b[0]
            odd += a[1] * b[1]
    return even + odd


@cuda.jit(device=True)
def row_numbers_device(scratch_S, out, grad_out, logsumexp_I, piece, first, T, H, n_heads):
    """Compute shift = -log2(e) * log-sum-exp and delta, store them, and return both for each of the thread's rows.

    Lanes 2 r and 2 r + 1 compute row r of the warp's 16. Rows after the last one of the sequence are zeros: then their
    weights are 1 and their gradients 0.
    """
    thread, lane = cuda.threadIdx.x % GROUP, cuda.threadIdx.x & 31
    query = first + (thread >> 1)
    shift, delta = float32(0), float32(0)
    if query < T:
        start = (piece.b * T + query) * (H * HEAD_SIZE) + piece.column + uint32((thread & 1) * (HEAD_SIZE // 2))
        delta = half_row_product_device(out, grad_out, start)
        shift = logsumexp_I[piece.head * T + query] * -LOG2_E
    delta += cuda.shfl_xor_sync(FULL_MASK, delta, 1)
    if thread & 1 == 0:
        scratch_S[piece.head * padded_device(T) + query] = shift
        scratch_S[(n_heads + piece.head) * padded_device(T) + query] = delta
    upper, lower = lane >> 2 << 1, (lane >> 2 << 1) + 16
    shifts = cuda.shfl_sync(FULL_MASK, shift, upper), cuda.shfl_sync(FULL_MASK, shift, lower)
    return shifts, (cuda.shfl_sync(FULL_MASK, delta, upper), cuda.shfl_sync(FULL_MASK, delta, lower))


@cuda.jit(device=True)
def keys_device(base, place):
    """Describe the keys of a stage as the right operand of Q K^T."""
    return wgmma_descriptor(at_device(base + KEYS_AT, place, TILE_BYTES))


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
def sum_grads_device(arrays, own_tiles, piece, first, n, base, rings, place, is_leader, T, H, n_heads):
    """Sum dS K over the first `n` stages of keys, the last one first; return the sum, and the place in the ring."""
    queries, grads = wgmma_descriptor(own_tiles), wgmma_descriptor(own_tiles + GRADS_AT)
    scratch_S, out, grad_out, logsumexp_I = arrays
    sums = zero_sums()
    wait_full_device(rings.first_full, place)
    scores = multiply(queries, keys_device(base, place))
    grad_weights = start_grad_weights_device(grads, base, rings, place)
    shifts, deltas = row_numbers_device(scratch_S, out, grad_out, logsumexp_I, piece, first, T, H, n_heads)
    scores = hide_later_keys(wait_for_all_but_1(scores), first, first)
    weights = weights_of_rows(scores, shifts[0], shifts[1])
    before, releases = place, uint32(0)
    while n > 1:
        n = int32(n - 1)
        following = advance_device(place, STAGES)
        wait_full_device(rings.first_full, following)
        grad_weights = wait_for_all(grad_weights)
        release_device(rings.empty, before, releases)
        scores = multiply(queries, keys_device(base, following))
        sums = add_grad_device(sums, weights, grad_weights, deltas, base, place)
        grad_weights = start_grad_weights_device(grads, base, rings, following)
        scores = wait_for_all_but_2(scores)
        weights = weights_of_rows(scores, shifts[0], shifts[1])
        before, place, releases = place, following, is_leader
    grad_weights = wait_for_all(grad_weights)
    release_device(rings.empty, before, releases)
    return add_grad_device(sums, weights, grad_weights, deltas, base, place), place


@cuda.jit(device=True)
def consume_device(grad_map, arrays, base, rings, group, T, H, n_heads):
    """Take, as one of the consumers, the gradient of its 64 queries of each piece of work."""
    thread = cuda.threadIdx.x % GROUP
    is_leader = uint32(thread == 0)
    place = start_device()
    turn = uint32(0)
    index = index_of_turn_device(turn)
    while index < n_query_pieces_device(T) * n_heads:
        piece = piece_of_index_device(index, n_query_pieces_device(T), n_heads, H, HEADS_TOGETHER)
        first = int32(first_query_device(piece, T) + ROWS * group)
        n = stages_seen_device(first, ROWS, T, ROWS)
        place = pass_over_device(
            stages_seen_device(first_query_device(piece, T), QUERIES, T, ROWS) - n, rings, place, STAGES, is_leader
        )
        own = own_place_device(turn)
        wait_full_device(rings.own_full, own)
        if n > 0:
            own_tiles = at_device(base, own, QUERY_BYTES) + TILE_BYTES * group
            sums, place = sum_grads_device(
                arrays, own_tiles, piece, first, n, base, rings, place, is_leader, T, H, n_heads
            )
            wait_until_stored_device(is_leader)
            sums = wait_for_all(sums)
            release_device(rings.empty, place, is_leader)
            place = advance_device(place, STAGES)
            box = warp_uniform(base + OUT_AT + TILE_BYTES * group)  # not before: registers are short in the loop
            write_tile(scaled_rows(sums, SCALE, SCALE), box, uint32(thread))
            before_store_device()
            if is_leader:
                tma_store_3d(grad_map, piece.column, first, piece.b, box)
                bulk_commit()
        release_device(rings.own_empty, own, is_leader)
        turn = uint32(turn + 1)
        index = index_of_turn_device(turn)
    if is_leader:
        bulk_wait(0)  # shared memory must live until the last tile is stored


@kernel(
    "void(uint64[::1], float32[::1], uint64[::1], uint64[::1], uint16[::1], uint16[::1], float32[::1], int64, int64)",
    architectures=("sm_90a",),
    launch_bounds=(BLOCK, 1),
)
def grad_query_kernel(grad_map, scratch_S, qkv_map, grad_out_map, out, grad_out, logsumexp_I, T, H):
    """Warp group 0 is the producer, the others are the consumers; a block works on one piece after the other."""
    base = shared_base_device()
    rings = rings_device(base + BARRIERS_AT, STAGES)
    group = init_rings_device(rings, STAGES, CONSUMERS)
    n_heads = uint32(logsumexp_I.size // T)
    if group == 0:
        decrease_registers(PRODUCER_REGISTERS)
        if cuda.threadIdx.x == 0:
            produce_device(qkv_map, grad_out_map, base, rings, T, H, n_heads)
    else:
        increase_registers(CONSUMER_REGISTERS)
        consume_device(grad_map, (scratch_S, out, grad_out, logsumexp_I), base, rings, group - 1, T, H, n_heads)
