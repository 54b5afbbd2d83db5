"""Attention on Hopper: how tiles reach the warp groups, for the forward and the backward kernels alike.

A warp group is four warps that multiply together with `wgmma`. The first of a block, the producer, only copies tiles
into shared memory: one of its threads starts the copies, the TMA unit makes them. The others, the consumers, multiply.
They meet at barriers in shared memory:

    producer                      a ring of stages               consumers
    waits until a stage is empty  [ 0 ][ 1 ][ 2 ][ 3 ]           wait until a stage is full
    starts the copy; what it      ---------------------->        multiply
    brings makes the stage full   <----------------------        one thread of each makes the stage empty

A block has two rings: its *own* tiles, one a consumer, which stay for a piece of work (queries, or keys and values),
and the *stream* of what these meet. Each stage of the stream holds two things that become full one after the other.

A tile is 64 rows (time) of one head, of 64 bfloat16: 64 lines of 128 bytes, swizzled as TMA writes and `wgmma` reads
them. Tiles are aligned to 64 rows; rows after the last one of a sequence are loaded as zeros and not stored.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import cuda, int32, uint8, uint32

from kernels.architecture import architecture, n_multiprocessors
from kernels.attention.fragments import are_aligned_bf16
from kernels.ptx import shared_address
from kernels.ptx_hopper import (
    barrier_sync,
    bulk_wait_read,
    fence_async_shared,
    mbarrier_arrive_if,
    mbarrier_expect,
    mbarrier_init,
    mbarrier_init_fence,
    mbarrier_wait,
    tma_load_3d,
    warp_uniform,
)
from kernels.tensor_map import TensorMap

HEAD_SIZE = 64
GROUP = 128  # threads of a warp group
ROWS = 64  # of a tile: what a warp group multiplies at once
TILE_BYTES = ROWS * HEAD_SIZE * 2
SWIZZLE_BYTES = 1024  # after which the pattern repeats: where a tile may begin
BARRIER_BYTES = 8
OWN_STAGES = 2  # the next piece of work is fetched during this one


# ---- on the host ---------------------------------------------------------------------------------------------------


def takes(D: int, *arrays) -> bool:
    """Tell whether the Hopper kernels do it: on such a GPU, with heads of 64 in bfloat16 that TMA can reach."""
    return architecture() == "sm_90a" and D == HEAD_SIZE and are_aligned_bf16(*arrays)


def tile_map(array_NE, B: int, T: int, n_tiles: int = 1) -> TensorMap:
    """Describe rows of heads to TMA, which then copies some tiles at a time and knows where a sequence ends."""
    E = array_NE.shape[1]
    itemsize = array_NE.dtype.itemsize
    strides = (T * E * itemsize, E * itemsize, itemsize)
    return TensorMap(array_NE, (1, n_tiles * ROWS, HEAD_SIZE), shape=(B, T, E), strides=strides)


def barrier_bytes(n_stages: int) -> int:
    """Return the bytes of the barriers of both rings."""
    return BARRIER_BYTES * (2 * OWN_STAGES + 3 * n_stages)


def persistent_grid(n_pieces: int) -> int:
    """Return how many blocks to launch: one a multiprocessor, each of which works on one piece after the other."""
    return min(n_pieces, n_multiprocessors())


# ---- rings ---------------------------------------------------------------------------------------------------------


class Rings(NamedTuple):
    """The shared addresses of the first barrier of each kind."""

    own_full: int
    own_empty: int
    first_full: int
    second_full: int
    empty: int


class Place(NamedTuple):
    """Where a thread is in a ring: the stage, and the parity of the times it went around."""

    stage: int
    parity: int


@cuda.jit(device=True)
def shared_base_device():
    """Return where the block's shared memory begins, rounded up so that a tile may lie there."""
    memory = cuda.shared.array(0, uint8)
    return uint32((shared_address(memory, 0) + SWIZZLE_BYTES - 1) & 0xFFFFFC00)


@cuda.jit(device=True)
def rings_device(address, n_stages):
    """Return where the barriers are."""
    own_empty = address + BARRIER_BYTES * OWN_STAGES
    first_full = own_empty + BARRIER_BYTES * OWN_STAGES
    second_full = first_full + BARRIER_BYTES * n_stages
    empty = second_full + BARRIER_BYTES * n_stages
    return Rings(uint32(address), uint32(own_empty), uint32(first_full), uint32(second_full), uint32(empty))


@cuda.jit(device=True)
def init_rings_device(rings, n_stages, n_consumers):
    """Prepare the barriers, for one arrival of the producer or one of each consumer; return the warp group."""
    if cuda.threadIdx.x == 0:
        for stage in range(OWN_STAGES):
            mbarrier_init(rings.own_full + BARRIER_BYTES * stage, 1)
            mbarrier_init(rings.own_empty + BARRIER_BYTES * stage, n_consumers)
        for stage in range(n_stages):
            mbarrier_init(rings.first_full + BARRIER_BYTES * stage, 1)
            mbarrier_init(rings.second_full + BARRIER_BYTES * stage, 1)
            mbarrier_init(rings.empty + BARRIER_BYTES * stage, n_consumers)
        mbarrier_init_fence()
    cuda.syncthreads()  # the barriers are ready
    return warp_uniform(cuda.threadIdx.x // GROUP)


@cuda.jit(device=True)
def start_device():
    """Return the first place of a ring."""
    return Place(uint32(0), uint32(0))


@cuda.jit(device=True)
def own_place_device(turn):
    """Return the place in the ring of own tiles, of which each piece of work uses one stage."""
    return Place(uint32(turn & 1), uint32(turn >> 1 & 1))


@cuda.jit(device=True)
def advance_device(place, n_stages):
    """Return the next place of a ring."""
    if place.stage == n_stages - 1:
        return Place(uint32(0), uint32(place.parity ^ 1))
    return Place(uint32(place.stage + 1), place.parity)


@cuda.jit(device=True)
def at_device(first, place, n_bytes):
    """Return the address of a stage that has `n_bytes`."""
    return uint32(first + n_bytes * place.stage)


@cuda.jit(device=True)
def wait_full_device(full, place):
    """Wait until what was announced for a stage is there."""
    mbarrier_wait(at_device(full, place, BARRIER_BYTES), place.parity)


@cuda.jit(device=True)
def release_device(empty, place, is_leader):
    """Tell the producer that this warp group no longer needs a stage."""
    mbarrier_arrive_if(at_device(empty, place, BARRIER_BYTES), is_leader)


@cuda.jit(device=True)
def pass_over_device(n, rings, place, n_stages, is_leader):
    """Let `n` stages of the stream go by unused; return the place after them."""
    while n > 0:
        wait_full_device(rings.first_full, place)
        release_device(rings.empty, place, is_leader)
        place = advance_device(place, n_stages)
        n -= 1
    return place


@cuda.jit(device=True)
def announce_device(empty, full, place, n_bytes):
    """Wait until a stage is empty, let its barrier expect `n_bytes`, and return that barrier."""
    mbarrier_wait(at_device(empty, place, BARRIER_BYTES), place.parity ^ 1)
    barrier = at_device(full, place, BARRIER_BYTES)
    mbarrier_expect(barrier, n_bytes)
    return barrier


@cuda.jit(device=True)
def load_tiles_device(address, n_tiles, tensor_map, column, row, b, barrier):
    """Start to copy tiles that follow one another in time."""
    for i in range(n_tiles):
        tma_load_3d(address + TILE_BYTES * i, tensor_map, column, row + ROWS * i, b, barrier)


# ---- a consumer's tile on its way back to global memory ------------------------------------------------------------


@cuda.jit(device=True)
def wait_until_stored_device(is_leader):
    """Wait until the warp group's last store has read its tile, so that the tile may be written again."""
    if is_leader:
        bulk_wait_read(0)
    barrier_sync(cuda.threadIdx.x // GROUP, GROUP)


@cuda.jit(device=True)
def before_store_device():
    """Let TMA see what all threads of the warp group have written; then the leader may store it."""
    fence_async_shared()
    barrier_sync(cuda.threadIdx.x // GROUP, GROUP)


# ---- which block does what -----------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A piece of work: sequence, head counted over all sequences, first column of the head, and which rows."""

    b: int
    head: int
    column: int
    number: int


@cuda.jit(device=True)
def index_of_turn_device(turn):
    """Return which piece a block takes at its n-th turn: first to last block, then last to first, and so on.

    Pieces come longest first; going back and forth, each block gets about as much as any other.
    """
    block = cuda.gridDim.x - 1 - cuda.blockIdx.x if turn & 1 else cuda.blockIdx.x
    return uint32(turn * cuda.gridDim.x + block)


@cuda.jit(device=True)
def piece_of_index_device(index, n_pieces, n_heads_in_all, H, together):
    """Return a piece of `n_pieces` a head: number 0 of `together` heads, then number 1, ...; then the next heads.

    The keys and values (or queries) of heads that are worked on together stay in the L2 cache.
    """
    first = uint32(uint32(index) // uint32(together * n_pieces) * together)
    n_heads = min(uint32(together), uint32(n_heads_in_all - first))
    within = uint32(index - first * n_pieces)
    number = uint32(within // n_heads)
    head = uint32(first + within - number * n_heads)
    b = uint32(head // uint32(H))
    return Piece(b, head, uint32((head - b * H) * HEAD_SIZE), number)


# ---- blocks of queries ---------------------------------------------------------------------------------------------

QUERY_CONSUMERS = 3
QUERIES = QUERY_CONSUMERS * ROWS
"""Queries of a block, in the forward pass and for their gradient."""


@cuda.jit(device=True)
def padded_device(T):
    """Return T rounded up to whole tiles."""
    return (T + ROWS - 1) // ROWS * ROWS


@cuda.jit(device=True)
def n_query_pieces_device(T):
    """Return how many blocks of queries a head has."""
    return uint32((T + QUERIES - 1) // QUERIES)


@cuda.jit(device=True)
def first_query_device(piece, T):
    """Return a block's first query, perhaps negative: number 0 holds the last queries, which see the most keys."""
    return int32(padded_device(T) - (piece.number + 1) * QUERIES)


@cuda.jit(device=True)
def stages_seen_device(first, n_queries, T, n_keys):
    """Return how many stages of `n_keys` are seen by the last of some queries."""
    return int32(max(min(first + n_queries, T) + n_keys - 1, 0) // n_keys)
