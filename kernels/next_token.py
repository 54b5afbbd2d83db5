"""The first and the last kernel of a step of sampling: the newest token's embedding, and the choice of the next one.

The text and the place of its newest token are on the device. So the same launches, captured once, make a text of any
length: each step finds its token where the step before left it, and the host need not wait in between.

Letters: C channels, V vocabulary, P padded vocabulary, T positions.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.attention.common import LOWEST
from kernels.elements import load, load_packs, store
from kernels.launch import PACK, Launch, ceil_div, launcher, n_packs, take
from kernels.reduce import block_max
from kernels.registry import kernel

BLOCK = 256
CHOOSING = 1024  # threads; only one block can choose
PACKS = 4  # of a thread at once
OWNED = PACKS * PACK
STRIDE = CHOOSING * PACK
MAX_VOCABULARY = 2**24  # up to here every token is a float32


@kernel("void(real[::1], int32[::1], int32[::1], real[:, ::1], real[:, ::1])", launch_bounds=BLOCK)
def embed_token_kernel(out_C, tokens_T, position_1, token_weight_VC, position_weight_TC):
    """A thread owns a channel."""
    t = position_1[0]
    token = tokens_T[t]
    c = cuda.grid(1)
    while c < out_C.size:
        store(out_C, c, load(token_weight_VC[token], c) + load(position_weight_TC[t], c))
        c += cuda.gridsize(1)


@kernel("void(int32[::1], int32[::1], real[::1], int64)", launch_bounds=CHOOSING)
def choose_token_kernel(tokens_T, position_1, logits_P, V):
    """One block finds the greatest score, then the first token that has it."""
    x_32 = cuda.local.array(OWNED, float32)
    thread = cuda.threadIdx.x
    t = position_1[0] + 1
    if cuda.blockIdx.x > 0 or t >= tokens_T.size:
        return
    greatest, best = LOWEST, 0
    first = thread * PACK
    while first < V:
        load_packs(x_32, logits_P, first, STRIDE, logits_P.size, PACKS)
        for j in range(OWNED):
            token = first + (j >> 3) * STRIDE + (j & 7)
            if token < V and x_32[j] > greatest:
                greatest, best = x_32[j], token
        first += PACKS * STRIDE
    greatest_of_all = block_max(greatest)
    token = -block_max(-float32(best) if greatest == greatest_of_all else LOWEST)
    if thread == 0:
        tokens_T[t] = int(token)
        position_1[0] = t


@launcher
def embed_token(out_C, tokens_T, position_1, token_weight_VC, position_weight_TC, stream=0):
    """Add the embedding of the newest token to that of its position.

    Reads    tokens_T int32, from 0 to V-1, and position_1 int32, from 0 to T-1 (not checked); token_weight_VC,
             position_weight_TC: float32 or bfloat16; all C-contiguous, on the device.
    Writes   out_C (=), of the dtype of the tables.
    Work     C flop, 3*C*itemsize bytes: the time of a launch.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_next_token.py).
    Raises   ValueError if a shape or dtype disagrees; nothing is launched then.
    Source   Radford et al. 2019, section 2.3.
    Book     Chapter 07, sampling.
    """
    real = {"out_C": out_C, "token_weight_VC": token_weight_VC, "position_weight_TC": position_weight_TC}
    a, sizes = take(real=real, int32={"tokens_T": tokens_T, "position_1": position_1})
    arguments = (a.out_C, a.tokens_T, a.position_1, a.token_weight_VC, a.position_weight_TC)
    return [Launch(embed_token_kernel, ceil_div(sizes.C, BLOCK), BLOCK, arguments, stream)]


@launcher
def choose_token(tokens_T, position_1, logits_P, V, stream=0):
    """Make the token of the greatest score, the first of several, the newest one; where the text is full, do nothing.

    Reads    logits_P: float32 or bfloat16, of which those from V on are padding; position_1 int32, from 0 to T-1 (not
             checked); all C-contiguous, on the device.
    Writes   tokens_T int32 (=) at the position after position_1, and position_1 int32 (+=), by one.
    Work     V comparisons, V*itemsize bytes: one block's time for reading the scores.
    Error    none: the choice is that of NumPy's argmax (test_next_token.py).
    Raises   ValueError if a shape or dtype disagrees, V is not from 1 to P or more than 2**24, or logits_P is not made
             of whole aligned packs of 8; nothing is launched then.
    Source   own.
    Book     Chapter 07, sampling.
    """
    int32 = {"tokens_T": tokens_T, "position_1": position_1}
    a, sizes = take(real={"logits_P": logits_P}, int32=int32)
    if not 1 <= V <= min(sizes.P, MAX_VOCABULARY):
        raise ValueError(f"a vocabulary of {V} tokens does not belong to {sizes.P} scores; at most 2**24 are possible")
    if n_packs(sizes.P, a.logits_P) * PACK != sizes.P:
        raise ValueError(f"{sizes.P} scores are not whole packs of {PACK} at a multiple of 16 bytes; pad them")
    return [Launch(choose_token_kernel, 1, CHOOSING, (a.tokens_T, a.position_1, a.logits_P, V), stream)]
