"""The stochastic rounding of AdamW by itself, for a rank that holds only pieces of the weights.

An element's random bits come from its place in the whole model and the seed. So a rank that updates a shard rounds each
weight as a rank that updates everything, and the weights of a checkpoint are rounded again as they were.

Letters: N elements of all pieces, S pieces, M = S + 1 bounds.
"""

from __future__ import annotations

from numba import cuda

from kernels.adamw.common import mix, random_pair_device, round_stochastically_device, tensor_of_device
from kernels.elements import store
from kernels.launch import Launch, ceil_div, launcher, take
from kernels.registry import kernel

BLOCK = 256


@kernel("void(uint16[::1], float32[::1], int64[::1], int64[::1], int64)", launch_bounds=BLOCK)
def round_pieces_kernel(param_N, master_N, bounds_M, place_S, key):
    """A thread owns elements; its next element is of the same piece or of a later one."""
    i = cuda.grid(1)
    piece = 0
    while i < param_N.size:
        piece = tensor_of_device(bounds_M, i, piece)
        place = place_S[piece] + i - bounds_M[piece]
        random = random_pair_device(place >> 1, key)
        random_16 = (random >> 16 * (place & 1)) & 0xFFFF
        store(param_N, i, round_stochastically_device(master_N[i], random_16))
        i += cuda.gridsize(1)


@launcher
def round_weights(param_N, master_N, bounds_M, place_S, seed=0, stream=0):
    """Round weights stochastically to bfloat16, as `adamw_update` does for the whole model.

    Reads    master_N float32: the pieces one after another; bounds_M int64, where each piece starts in master_N, from
             0, and N; place_S int64, where each piece starts in the whole model; all C-contiguous, on the device.
    Writes   param_N bfloat16 (=).
    Work     6*N bytes: memory-bound.
    Error    one of the two bfloat16 neighbours, in the mean without error (test_adamw.py).
    Raises   ValueError if a size or dtype disagrees; nothing is launched then.
    Source   Connolly, Higham and Mary 2021, Stochastic rounding and its probabilistic backward error analysis,
             definition 1.1 (doi:10.1137/20M1334796).
    Book     Chapter 10.
    """
    arrays, sizes = take(
        uint16={"param_N": param_N}, float32={"master_N": master_N}, int64={"bounds_M": bounds_M, "place_S": place_S}
    )
    if sizes.M != sizes.S + 1:
        raise ValueError(f"{sizes.S} pieces in place_S need {sizes.S + 1} bounds_M, not {sizes.M}")
    arguments = (arrays.param_N, arrays.master_N, arrays.bounds_M, arrays.place_S, mix(seed))
    return [Launch(round_pieces_kernel, ceil_div(sizes.N, BLOCK), BLOCK, arguments, stream)]
