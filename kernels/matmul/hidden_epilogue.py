"""The epilogues of step 11: how a rounded tile is finished and stored, 64 columns at a time, under the next tile.

A consumer holds its last tile as words of two bfloat16 and calls `advance` now and then, while the tensor cores work.
Each kind of epilogue is one such function:

    plain           store (or add) the box
    gelu            store the box, and GELU of it as the output
    residual        load a box of the residual first, and add it
    gelu_backward   load a box of what GELU was applied to first, and multiply by the derivative there

Kinds that load are one call ahead with it: call n starts the load of box n and finishes box n - 1.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import cuda

from kernels.accumulators import load_words_box, store_words_box
from kernels.matmul.hopper import BOX, BOX_BYTES, WARP_GROUP
from kernels.matmul.pipeline import STAGED_AT, STAGING, STAGING_AT, TILE_J
from kernels.matmul.words import add_word_device, gelu_grad_word_device, gelu_word_device
from kernels.ptx_hopper import (
    EVICT_FIRST,
    barrier_sync,
    bulk_commit,
    bulk_wait_read,
    fence_async_shared,
    mbarrier_expect,
    mbarrier_wait,
    tma_load_2d,
    tma_reduce_add_2d,
    tma_store_2d_hinted,
)
from kernels.tuples import each

BOXES = TILE_J // BOX
WORDS = BOX // 4  # of a thread in a box: 16, which has to be written out where tuples are cut

store_box = store_words_box(WORDS)


@cuda.jit(device=True)
def next_box_device(words):
    """Return the words with those of the next box in front, where every call finds its own: no copies are needed."""
    return words[16:64] + words[0:16]


@cuda.jit(device=True)
def staging_device(base, consumer, box):
    """Return the address of the staging box that a box goes through."""
    return base + STAGING_AT + (consumer * STAGING + (box & 1)) * BOX_BYTES


@cuda.jit(device=True)
def written_device(consumer):
    """Make what all threads of a consumer wrote to staging boxes ready for TMA."""
    fence_async_shared()
    barrier_sync(1 + consumer, WARP_GROUP)  # all have written their part


@cuda.jit(device=True)
def advance_plain_device(call, words, base, consumer, thread, map_out, map_more, i, j, accumulate):
    """Store or add box number `call`."""
    place = staging_device(base, consumer, call)
    if thread == 0:
        bulk_wait_read(1)
    barrier_sync(1 + consumer, WARP_GROUP)  # the box before the last has been read: its place is free
    store_box(words[0:16], place, thread)
    written_device(consumer)
    if thread == 0:
        if accumulate:
            tma_reduce_add_2d(map_out, j + call * BOX, i, place)
        else:
            tma_store_2d_hinted(map_out, j + call * BOX, i, place, EVICT_FIRST)
        bulk_commit()
    return next_box_device(words)


@cuda.jit(device=True)
def advance_gelu_device(call, words, base, consumer, thread, map_out, map_more, i, j, accumulate):
    """Store box number `call`, which `map_more` takes, and GELU of it, which `map_out` takes."""
    place, other_place = staging_device(base, consumer, call), staging_device(base, consumer, call + 1)
    if thread == 0:
        bulk_wait_read(0)
    barrier_sync(1 + consumer, WARP_GROUP)  # both staging boxes have been read
    store_box(words[0:16], place, thread)
    store_box(each(gelu_word_device, (words[0:16],)), other_place, thread)
    written_device(consumer)
    if thread == 0:
        tma_store_2d_hinted(map_more, j + call * BOX, i, place, EVICT_FIRST)
        tma_store_2d_hinted(map_out, j + call * BOX, i, other_place, EVICT_FIRST)
        bulk_commit()
    return next_box_device(words)


def _loading(combine_device: Callable) -> Callable:
    """Make the epilogue that combines each word with one of a second input, which `map_more` describes."""

    @cuda.jit(device=True)
    def advance_loading_device(call, words, base, consumer, thread, map_out, map_more, i, j, accumulate):
        """Start the load of box number `call`, and finish the one before."""
        staged = base + STAGED_AT + consumer * STAGING * 8
        if call < BOXES and thread == 0:
            bulk_wait_read(0)  # the box before the one that is finished now has been read: its place is free
            mbarrier_expect(staged + (call & 1) * 8, BOX_BYTES)
            tma_load_2d(staging_device(base, consumer, call), map_more, j + call * BOX, i, staged + (call & 1) * 8)
        if call > 0:
            box = call - 1
            place = staging_device(base, consumer, box)
            mbarrier_wait(staged + (box & 1) * 8, box >> 1 & 1)  # each tile uses each place twice
            loaded = load_words_box(place, thread)
            store_box(each(combine_device, (words[0:16], loaded)), place, thread)
            written_device(consumer)
            if thread == 0:
                tma_store_2d_hinted(map_out, j + box * BOX, i, place, EVICT_FIRST)
                bulk_commit()
            words = next_box_device(words)
        return words

    return advance_loading_device


EPILOGUES = {
    "plain": (advance_plain_device, BOXES),
    "gelu": (advance_gelu_device, BOXES),
    "residual": (_loading(add_word_device), BOXES + 1),
    "gelu_backward": (_loading(gelu_grad_word_device), BOXES + 1),
}
"""By kind: the function, and how often it is called for a tile."""
