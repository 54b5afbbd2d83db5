"""Softmax and cross-entropy, step 4: a row waits in shared memory between the passes, so that it is loaded once.

It is copied there asynchronously, all of it under way at once. Each thread later reads only what it copied itself, so
it needs no barrier for that, and as soon as it has written a pack of the gradient, it starts to fetch the same pack of
the block's next row: a block loads while it stores. Two blocks fit on a multiprocessor, and one computes while the
other waits for memory. Columns of the padding become -infinity in shared memory; their exponentials, and with them
their gradients, are then 0 by themselves. Letters: N rows, V vocabulary, P columns (V and padding).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import cuda, float32, uint16

from kernels.classifier import step3_vectorized
from kernels.classifier.common import LOG2_E, LOWEST, block_of_row, classifier_arguments
from kernels.elements import load, load8_shared, store, store8
from kernels.launch import PACK, Launch, launcher
from kernels.ptx import cp_async_16, cp_async_commit, cp_async_wait, exp2, shared_address
from kernels.reduce import block_max, block_sum
from kernels.registry import kernel

MAX_BLOCK = 512
GRID = 264  # blocks; 2 on each of the 132 multiprocessors of an H100
SHARED_BYTES = 99 * 1024  # the least that a block may have on any GPU of capability 8.0 and above
MINUS_INFINITY = np.float32(-math.inf)


def _make_kernel(held: type, held_name: str, pack_copies: int) -> Callable:
    """Make the kernel for logits held as `held`, a pack of which is copied in so many parts of 16 bytes."""
    per_copy = PACK // pack_copies

    @cuda.jit(device=True)
    def start_copy_device(row_P, logits_P, pack):
        """Start to copy a pack to shared memory."""
        for part in range(pack_copies):
            c = pack * PACK + part * per_copy
            cp_async_16(shared_address(row_P, c), logits_P, c, 16)

    @cuda.jit(device=True)
    def own_softmax_device(x_8, row_P, V):
        """Return the maximum of this thread's columns and the sum of their exponentials relative to it."""
        greatest = LOWEST
        c = cuda.threadIdx.x * PACK
        while c < row_P.size:
            if c + PACK > V:
                for j in range(PACK):
                    if c + j >= V:
                        store(row_P, c + j, MINUS_INFINITY)
            load8_shared(x_8, row_P, c)
            for j in range(PACK):
                greatest = max(greatest, x_8[j])
            c += cuda.blockDim.x * PACK
        total = float32(0)
        c = cuda.threadIdx.x * PACK
        while c < row_P.size:
            load8_shared(x_8, row_P, c)
            for j in range(PACK):
                total += exp2((x_8[j] - greatest) * LOG2_E)
            c += cuda.blockDim.x * PACK
        return greatest, total

    @kernel(
        f"void(float32[::1], {held_name}[:, ::1], int32[::1], int64, float32, int64, int64)",
        name=f"fused_classifier_{held_name}_kernel",
        launch_bounds=(MAX_BLOCK, 2),
    )
    def fused_classifier_kernel(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate):
        """A block owns rows; a thread owns every so manieth pack of 8 columns."""
        N, P = logits_NP.shape
        row_P = cuda.shared.array(0, held, 16)[:P]
        x_8 = cuda.local.array(PACK, float32)
        n = cuda.blockIdx.x
        pack = cuda.threadIdx.x
        while n < N and pack * PACK < P:
            start_copy_device(row_P, logits_NP[n], pack)
            pack += cuda.blockDim.x
        while n < N:
            next_n = n + cuda.gridDim.x
            target = targets_N[n]
            target_logit = load(logits_NP[n], target)  # before it is overwritten: the sums wait for all threads
            cp_async_commit()
            cp_async_wait(0)
            own_greatest, own_total = own_softmax_device(x_8, row_P, V)
            greatest = block_max(own_greatest)
            total = block_sum(own_total * exp2((own_greatest - greatest) * LOG2_E))
            if cuda.threadIdx.x == 0:
                loss = math.log(total) - (target_logit - greatest)
                losses_N[n] = losses_N[n] + loss if accumulate else loss
            scale = grad_loss / total
            pack = cuda.threadIdx.x
            while pack * PACK < P:
                if write_gradient:
                    load8_shared(x_8, row_P, pack * PACK)
                    for j in range(PACK):
                        x_8[j] = exp2((x_8[j] - greatest) * LOG2_E) * scale
                    if pack == target >> 3:
                        for j in range(PACK):
                            x_8[j] -= grad_loss if j == target & 7 else float32(0)
                    store8(logits_NP[n], pack * PACK, x_8)
                if next_n < N:
                    start_copy_device(row_P, logits_NP[next_n], pack)
                pack += cuda.blockDim.x
            n = next_n

    return fused_classifier_kernel


KERNELS = {"float32": _make_kernel(float32, "float32", 2), "uint16": _make_kernel(uint16, "uint16", 1)}


@launcher
def fused_classifier(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient=True, accumulate=False, stream=0):
    """Take the cross-entropy of each row, and turn its logits into the gradient of the loss, in place.

    Rows that are not aligned, or too long for shared memory, are left to step 3.

    Reads    logits_NP float32 or bfloat16, of whose P columns the first V count; targets_N int32, from 0 to V-1 (not
             checked); `grad_loss`, the gradient of each loss: 1 / (B*T) for their mean.
    Writes   losses_N float32 (=), or (+=) if `accumulate`, in nats; logits_NP (=) becomes the gradient, 0 in the
             padding, unless `write_gradient` is False.
    Work     about 10*N*P flop, 2*N*P*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_classifier.py).
    Raises   ValueError if a shape or dtype disagrees or V is not from 1 to P; nothing is launched then.
    Source   Bridle 1990 (softmax and its gradient); compare llm.c llmc/fused_classifier.cuh @ f1e2ace.
    Book     Chapter 08, step 4.
    """
    given = (losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate)
    (*arguments, packs), sizes = classifier_arguments(*given)
    logits = arguments[1]
    shared_bytes = sizes.P * logits.dtype.itemsize
    if packs * PACK != sizes.P or shared_bytes > SHARED_BYTES:
        return step3_vectorized.fused_classifier.prepare(*given, stream)
    block = min(MAX_BLOCK, block_of_row(sizes.P))
    kernel_of_dtype = KERNELS[str(logits.dtype)]
    return [Launch(kernel_of_dtype, min(GRID, sizes.N), block, tuple(arguments), stream, shared_bytes)]
