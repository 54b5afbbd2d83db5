"""What the steps of the classifier share: its constants and the launcher's checks."""

from __future__ import annotations

import math

import numpy as np

from kernels.launch import PACK, WARP_SIZE, Launch, ceil_div, n_packs, take

MAX_BLOCK = 1024
LOG2_E = np.float32(math.log2(math.e))
LOWEST = np.float32(np.finfo(np.float32).min)
"""Where a running maximum starts: below any logit, but finite, so that no difference is inf - inf."""


def block_of_row(P: int) -> int:
    """Return how many threads share a row of P columns; it fixes the order of the sums, and so the bits."""
    return min(MAX_BLOCK, WARP_SIZE * ceil_div(P, WARP_SIZE * PACK))


def classifier_arguments(losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate) -> tuple:
    """Check the arguments of a step; return those of its kernel, the last the packs of a row, and the sizes.

    Raises:
        ValueError: a shape or dtype disagrees, or V is no size of the vocabulary.
    """
    arrays, sizes = take(float32={"losses_N": losses_N}, real={"logits_NP": logits_NP}, int32={"targets_N": targets_N})
    if not 1 <= V <= sizes.P:
        raise ValueError(f"V is {V}; logits_NP has {sizes.P} columns, of which 1 to {sizes.P} can be the vocabulary")
    packs = n_packs(sizes.P, arrays.logits_NP)
    numbers = (int(V), float(grad_loss), int(write_gradient), int(accumulate), packs)
    return (arrays.losses_N, arrays.logits_NP, arrays.targets_N, *numbers), sizes


def classifier_launch(
    kernel, losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate, stream
) -> list[Launch]:
    """Check the arguments of a step and prepare its launch.

    Raises:
        ValueError: a shape or dtype disagrees, or V is no size of the vocabulary.
    """
    given = (losses_N, logits_NP, targets_N, V, grad_loss, write_gradient, accumulate)
    arguments, sizes = classifier_arguments(*given)
    return [Launch(kernel, sizes.N, block_of_row(sizes.P), arguments, stream)]
