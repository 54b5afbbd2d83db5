"""Softmax and cross-entropy, step 1: a block a row, and three passes over it: maximum, sum, gradient.

Letters: N rows, V vocabulary, P columns (V and padding).
"""

from __future__ import annotations

import math

from numba import cuda, float32

from kernels.classifier.common import LOG2_E, LOWEST, MAX_BLOCK, classifier_launch
from kernels.elements import load, store
from kernels.launch import launcher
from kernels.ptx import exp2
from kernels.reduce import block_max, block_sum
from kernels.registry import kernel


@kernel("void(float32[::1], real[:, ::1], int32[::1], int64, float32, int64, int64, int64)", launch_bounds=MAX_BLOCK)
def fused_classifier_kernel(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate, packs):
    """A block owns rows; a thread owns every so manieth column."""
    n = cuda.blockIdx.x
    while n < logits_NP.shape[0]:
        logits_P = logits_NP[n]
        target = targets_N[n]
        target_logit = load(logits_P, target)  # before it is overwritten: the sums below wait for all threads
        greatest = LOWEST
        c = cuda.threadIdx.x
        while c < V:
            greatest = max(greatest, load(logits_P, c))
            c += cuda.blockDim.x
        greatest = block_max(greatest)
        total = float32(0)
        c = cuda.threadIdx.x
        while c < V:
            total += exp2((load(logits_P, c) - greatest) * LOG2_E)
            c += cuda.blockDim.x
        total = block_sum(total)
        if cuda.threadIdx.x == 0:
            loss = math.log(total) - (target_logit - greatest)
            losses_N[n] = losses_N[n] + loss if accumulate else loss
        c = cuda.threadIdx.x
        while write_gradient and c < logits_P.size:
            grad = float32(0)
            if c < V:
                indicator = float32(1) if c == target else float32(0)
                grad = (exp2((load(logits_P, c) - greatest) * LOG2_E) / total - indicator) * grad_loss
            store(logits_P, c, grad)
            c += cuda.blockDim.x
        n += cuda.gridDim.x


@launcher
def fused_classifier(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient=True, accumulate=False, stream=0):
    """Take the cross-entropy of each row, and turn its logits into the gradient of the loss, in place.

    Reads    logits_NP float32 or bfloat16, of whose P columns the first V count; targets_N int32, from 0 to V-1 (not
             checked); `grad_loss`, the gradient of each loss: 1 / (B*T) for their mean.
    Writes   losses_N float32 (=), or (+=) if `accumulate`, in nats; logits_NP (=) becomes the gradient, 0 in the
             padding, unless `write_gradient` is False.
    Work     about 10*N*P flop, 4*N*P*itemsize bytes: memory-bound.
    Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_classifier.py).
    Raises   ValueError if a shape or dtype disagrees or V is not from 1 to P; nothing is launched then.
    Source   Bridle 1990 (softmax and its gradient); compare llm.c llmc/fused_classifier.cuh @ f1e2ace.
    Book     Chapter 08, step 1.
    """
    return classifier_launch(
        fused_classifier_kernel, losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate, stream
    )
