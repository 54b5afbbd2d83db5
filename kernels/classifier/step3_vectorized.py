"""Softmax and cross-entropy, step 3: 128-bit accesses, and one rescaling a pack instead of one a greater maximum.

Letters: N rows, V vocabulary, P columns (V and padding).
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.classifier.common import LOG2_E, LOWEST, MAX_BLOCK, classifier_launch
from kernels.elements import load, load_pack, n_packs_of, store_pack
from kernels.launch import launcher
from kernels.ptx import exp2
from kernels.reduce import block_max, block_sum
from kernels.registry import kernel


@cuda.jit(device=True)
def own_softmax_device(x_8, logits_P, V, packs):
    """Return the maximum of this thread's columns and the sum of their exponentials relative to it."""
    greatest = LOWEST
    total = float32(0)
    pack = cuda.threadIdx.x
    while pack * 8 < V:
        load_pack(x_8, logits_P, pack, packs)
        before = greatest
        for j in range(8):
            if pack * 8 + j < V:
                greatest = max(greatest, x_8[j])
        total *= exp2((before - greatest) * LOG2_E)
        for j in range(8):
            if pack * 8 + j < V:
                total += exp2((x_8[j] - greatest) * LOG2_E)
        pack += cuda.blockDim.x
    return greatest, total


@kernel("void(float32[::1], real[:, ::1], int32[::1], int64, float32, int64, int64, int64)", launch_bounds=MAX_BLOCK)
def fused_classifier_kernel(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate, packs):
    """A block owns rows; a thread owns every so manieth pack of 8 columns."""
    x_8 = cuda.local.array(8, float32)
    n = cuda.blockIdx.x
    while n < logits_NP.shape[0]:
        logits_P = logits_NP[n]
        target = targets_N[n]
        target_logit = load(logits_P, target)  # before it is overwritten: the sums below wait for all threads
        own_greatest, own_total = own_softmax_device(x_8, logits_P, V, packs)
        greatest = block_max(own_greatest)
        total = block_sum(own_total * exp2((own_greatest - greatest) * LOG2_E))
        if cuda.threadIdx.x == 0:
            loss = math.log(total) - (target_logit - greatest)
            losses_N[n] = losses_N[n] + loss if accumulate else loss
        scale = grad_loss / total
        pack = cuda.threadIdx.x
        while write_gradient and pack < n_packs_of(logits_P):
            load_pack(x_8, logits_P, pack, packs)
            for j in range(8):
                c = pack * 8 + j
                grad = exp2((x_8[j] - greatest) * LOG2_E) * scale if c < V else float32(0)
                x_8[j] = grad - grad_loss if c == target else grad
            store_pack(logits_P, pack, packs, x_8)
            pack += cuda.blockDim.x
        n += cuda.gridDim.x


@launcher
def fused_classifier(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient=True, accumulate=False, stream=0):
    """Take the cross-entropy of each row, and turn its logits into the gradient of the loss, in place.

    Reads    logits_NP float32 or bfloat16, of whose P columns the first V count; targets_N int32, from 0 to V-1 (not
             checked); `grad_loss`, the gradient of each loss: 1 / (B*T) for their mean.
    Writes   losses_N float32 (=), or (+=) if `accumulate`, in nats; logits_NP (=) becomes the gradient, 0 in the
             padding, unless `write_gradient` is False.
    Work     about 10*N*P flop, 3*N*P*itemsize bytes, a third from the cache: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_classifier.py).
    Raises   ValueError if a shape or dtype disagrees or V is not from 1 to P; nothing is launched then.
    Source   Milakov and Gimelshein 2018 (arXiv:1805.02867); compare llm.c llmc/fused_classifier.cuh @ f1e2ace.
    Book     Chapter 08, step 3.
    """
    return classifier_launch(
        fused_classifier_kernel, losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate, stream
    )
