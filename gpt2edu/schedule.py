"""The learning rate of each step: a linear warm-up, then one of four shapes."""

from __future__ import annotations

import math

SCHEDULERS = ("cosine", "linear", "constant", "wsd")


def learning_rate_at(
    step: int, *, scheduler: str, peak: float, warmup_steps: int, n_steps: int, final_fraction: float
) -> float:
    """Return the learning rate of `step`, counted from 0.

    Args:
        step: below `n_steps`.
        scheduler: "cosine" or "linear" from the peak down to the final rate; "constant", which has no warm-up
            either; "wsd" (warm-up, stable, decay), which leaves the peak only in the last fifth of the run.
        peak: the highest rate.
        warmup_steps: the rate grows linearly and reaches the peak in the last of these steps.
        n_steps: optimizer steps of the whole run.
        final_fraction: the final rate as a fraction of the peak.

    Source: Hägele et al. 2024 (arXiv:2405.18392) for wsd; compare llm.c llmc/schedulers.h.
    """
    if scheduler == "constant":
        return peak
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_from = 4 * n_steps // 5 if scheduler == "wsd" else warmup_steps
    if step < decay_from:
        return peak
    progress = (step - decay_from) / (n_steps - decay_from)
    remaining = {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "linear": 1.0 - progress,
        "wsd": 1.0 - math.sqrt(progress),
    }[scheduler]
    final = peak * final_fraction
    return final + remaining * (peak - final)
