"""The plan by which the gradients of the token embedding are added up: made on the host, the same bits every time.

The places of a batch are sorted by their token, and those of one token are cut into segments of bounded length, so that
a frequent token does not keep one warp busy while the others wait. `encoder_backward` follows the plan.

Letters: N places.
"""

from __future__ import annotations

import numpy as np

from kernels.launch import ceil_div

SEGMENT = 32  # places of a segment at most


def plan_parts(N: int) -> list[int]:
    """Return the lengths of the parts of a plan: counts, places, bounds, targets, merge bounds, merge tokens."""
    most_split = ceil_div(N, SEGMENT)
    return [2, N, N + 1, N, most_split + 1, most_split]


def token_plan_size(N: int) -> int:
    """Return the integers of a plan for N places. It does not depend on the tokens, as a captured launch needs."""
    return sum(plan_parts(N))


def plan_token_gradient(tokens: np.ndarray) -> np.ndarray:
    """Plan on the host how the gradients of a batch's places are added up by token.

    Args:
        tokens: int32 or int64, any shape, N elements from 0 to 65535.

    Returns:
        int32 (`token_plan_size(N)`,), the parts one after the other:
        counts (2): of the segments, and of the tokens with several;
        places (N): the flat places, those of equal tokens together and in their order;
        bounds (N + 1): where in it each segment begins, and after the last the end;
        targets (N): of each segment its token, or -1 - k if its sum is the k-th partial sum;
        merge bounds and merge tokens: of each token with several segments, where its partial sums begin, and itself.
        Unused entries are 0.
    """
    flat = tokens.reshape(-1).astype(np.uint16)  # 16 bits are sorted in linear time
    places = np.argsort(flat, kind="stable")
    in_order = flat[places]
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]]))
    n_segments_of = -(-np.diff(np.append(starts, flat.size)) // SEGMENT)
    owner = np.repeat(np.arange(starts.size), n_segments_of)  # of each segment, as a place in `starts`
    within = np.arange(owner.size) - (np.cumsum(n_segments_of) - n_segments_of)[owner]
    split = n_segments_of > 1
    bounds = np.append(starts[owner] + SEGMENT * within, flat.size)
    targets = np.where(split[owner], -np.cumsum(split[owner]), in_order[starts[owner]].astype(np.int64))
    merge_bounds = np.concatenate([[0], np.cumsum(n_segments_of[split])])
    parts = [[owner.size, split.sum()], places, bounds, targets, merge_bounds, in_order[starts[split]]]
    plan = np.zeros(token_plan_size(flat.size), np.int32)
    begin = 0
    for part, length in zip(parts, plan_parts(flat.size), strict=True):
        plan[begin : begin + len(part)] = part
        begin += length
    return plan
