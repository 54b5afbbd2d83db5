"""Attention on Hopper: what a thread computes on its part of a product of a warp group.

A product has 64 rows, and a thread holds of it a tuple (see `kernels.wgmma`): parts of two rows, an upper one and one 8
further down, "lower", in pairs of neighbouring columns 8 apart. Elements i with i & 2 == 0 are of the upper row. Four
lanes share a row. In the forward pass and for the queries' gradient rows are queries and columns keys; for the
gradients of keys and values it is the other way round.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda, float32, int32

from kernels.accumulators import store_bf16_box, zero_accumulators
from kernels.attention.common import LOG2_E, LOWEST
from kernels.attention.fragments import quad_max
from kernels.attention.hopper import HEAD_SIZE
from kernels.ptx import exp2, unpack_bf16x2
from kernels.tuples import each, each_four, fold, lower_row, upper_row
from kernels.wgmma import wgmma_wait_for

SCALE = np.float32(1 / math.sqrt(HEAD_SIZE))
FACTOR = np.float32(SCALE * LOG2_E)
"""exp(score * SCALE) = exp2(score * FACTOR)."""

SUMS = HEAD_SIZE // 2
"""Floats of a thread in 64 x 64 sums."""

zero_sums = zero_accumulators(SUMS)
sums_are_there = wgmma_wait_for(SUMS)
write_tile = store_bf16_box(SUMS)


class Rows(NamedTuple):
    """What a thread knows of the softmax of its upper and, with _8, of its lower row."""

    greatest: float
    greatest_8: float
    total: float
    total_8: float


@cuda.jit(device=True)
def own_row_device():
    """Return the thread's upper row."""
    return (cuda.threadIdx.x >> 5 & 3) * 16 + (cuda.threadIdx.x >> 2 & 7)


@cuda.jit(device=True)
def own_column_device():
    """Return the thread's first column."""
    return 2 * (cuda.threadIdx.x & 3)


@cuda.jit(device=True)
def _offset(i):
    """Return how much further right of the diagonal element i is than element 0."""
    return (i >> 2) * 8 + (i & 1) - (i & 2) * 4


@cuda.jit(device=True)
def _hide_right(i, score, distance):
    return score if _offset(i) <= distance else LOWEST


@cuda.jit(device=True)
def _hide_left(i, score, distance):
    return score if _offset(i) >= distance else LOWEST


@cuda.jit(device=True)
def hide_later_keys(scores, first_query, first_key):
    """Hide the scores of keys that come after the row's query."""
    distance = int32(first_query + own_row_device() - first_key - own_column_device())
    return each(_hide_right, (scores, distance))


@cuda.jit(device=True)
def hide_earlier_queries(scores, first_key, first_query):
    """Hide the scores of queries that come before the row's key."""
    distance = int32(first_key + own_row_device() - first_query - own_column_device())
    return each(_hide_left, (scores, distance))


@cuda.jit(device=True)
def _weight(i, score, shift, shift_8):
    return exp2(score * FACTOR + (shift_8 if i & 2 else shift))


@cuda.jit(device=True)
def weights_of_rows(scores, shift, shift_8):
    """Return 2**(score * FACTOR + shift), with one shift for the upper and one for the lower row."""
    return each(_weight, (scores, shift, shift_8))


@cuda.jit(device=True)
def _scaled(i, x, factor, factor_8):
    return x * (factor_8 if i & 2 else factor)


@cuda.jit(device=True)
def scaled_rows(values, factor, factor_8):
    """Multiply the upper row by one factor and the lower by another."""
    return each(_scaled, (values, factor, factor_8))


@cuda.jit(device=True)
def _greater(a, b):
    return max(a, b)


@cuda.jit(device=True)
def _add(a, b):
    return a + b


@cuda.jit(device=True)
def row_maxima(scores, greatest, greatest_8):
    """Return the greatest of each row, of all its four lanes, and of what was the greatest before."""
    upper, lower = fold(_greater, upper_row(scores), greatest), fold(_greater, lower_row(scores), greatest_8)
    return quad_max(upper), quad_max(lower)


@cuda.jit(device=True)
def row_sums(weights, total, total_8):
    """Add the thread's part of each row to its sum; the four lanes of a row are added up in the end."""
    return fold(_add, upper_row(weights), total), fold(_add, lower_row(weights), total_8)


@cuda.jit(device=True)
def _product_of_words(i, word, other):
    a, b = unpack_bf16x2(word), unpack_bf16x2(other)
    return a[0] * b[0] + a[1] * b[1]


@cuda.jit(device=True)
def dot_of_words(words, others):
    """Sum the products of two tuples of words of two bfloat16."""
    return fold(_add, each(_product_of_words, (words, others)), float32(0))


@cuda.jit(device=True)
def _grad_of_row(i, weight, grad, delta, delta_8):
    return weight * (grad - (delta_8 if i & 2 else delta))


@cuda.jit(device=True)
def grad_scores_of_rows(weights, grads, delta, delta_8):
    """Turn gradients of the weights into those of the scores (without SCALE); `delta` belongs to a row."""
    return each(_grad_of_row, (weights, grads, delta, delta_8))


@cuda.jit(device=True)
def _weights_of_columns(i, scores, shifts):
    upper, upper_1 = scores[0] * FACTOR + shifts[0], scores[1] * FACTOR + shifts[1]
    lower, lower_1 = scores[2] * FACTOR + shifts[0], scores[3] * FACTOR + shifts[1]
    return exp2(upper), exp2(upper_1), exp2(lower), exp2(lower_1)


@cuda.jit(device=True)
def weights_of_columns(scores, shifts):
    """Return 2**(score * FACTOR + shift), with a shift for each of the thread's columns."""
    return each_four(_weights_of_columns, (scores, shifts))


@cuda.jit(device=True)
def _grads_of_columns(i, weights, grads, deltas):
    upper, upper_1 = weights[0] * (grads[0] - deltas[0]), weights[1] * (grads[1] - deltas[1])
    lower, lower_1 = weights[2] * (grads[2] - deltas[0]), weights[3] * (grads[3] - deltas[1])
    return upper, upper_1, lower, lower_1


@cuda.jit(device=True)
def grad_scores_of_columns(weights, grads, deltas):
    """Turn gradients of the weights into those of the scores (without SCALE); each `delta` belongs to a column."""
    return each_four(_grads_of_columns, (weights, grads, deltas))
