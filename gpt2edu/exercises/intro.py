"""Checks of the introduction's exercises: napkin sums about the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from gpt2edu.config import ModelConfig
from gpt2edu.exercises import check_cases
from gpt2edu.flops import flop_per_token
from gpt2edu.show import Verdict

_close = partial(math.isclose, rel_tol=1e-6)


def check_steps(answer: Callable[[int, int], int]) -> Verdict:
    """Check `answer(tokens, tokens_per_step)`: whole optimizer steps that a text gives."""
    cases = [((9_890_693_120, 524_288), 18_865), ((1_000_000, 524_288), 1), ((524_287, 524_288), 0)]
    return check_cases("whole steps", answer, cases)


def check_flop(answer: Callable[..., float]) -> Verdict:
    """Check `answer(n_parameters, n_layers, channels, seq_len)`: FLOP of one token, forward and backward."""
    gpt2 = flop_per_token(ModelConfig(), 1024)
    cases = [((124_475_904, 12, 768, 1024), gpt2), ((1_000_000, 0, 768, 1024), 6_000_000), ((0, 2, 3, 5), 180)]
    return check_cases("FLOP of a token", answer, cases, _close)


def check_mfu(answer: Callable[..., float]) -> Verdict:
    """Check `answer(total_flop, seconds, n_gpus, peak_flop_per_s)`: the share of the peak that a run reached."""
    cases = [((7.947e18, 5400.0, 8, 312e12), 7.947e18 / 5400 / 8 / 312e12), ((1e15, 10.0, 1, 1e15), 0.1)]
    return check_cases("share of the peak", answer, cases, _close)


def check_dollars(answer: Callable[..., float]) -> Verdict:
    """Check `answer(total_flop, n_gpus, peak_flop_per_s, mfu, dollars_per_gpu_hour)`: the cost of a run."""
    cases = [
        ((7.947e18, 8, 312e12, 0.563, 1.75), 7.947e18 / (312e12 * 0.563) / 3600 * 1.75),
        ((3.6e15, 1, 1e12, 1.0, 2.0), 2.0),
        ((3.6e15, 4, 1e12, 0.5, 2.0), 4.0),
    ]
    return check_cases("dollars", answer, cases, _close)
