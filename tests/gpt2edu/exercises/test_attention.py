"""Chapter 7's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import numpy as np

from gpt2edu.exercises import attention as exercises

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def tiles_visited(T, tile):
    n = -(-T // tile)
    return n * (n + 1) // 2


def all_tiles(T, tile):
    return (-(-T // tile)) ** 2


def half_of_the_tiles(T, tile):
    return (-(-T // tile)) ** 2 // 2


def merge(one, other):
    greatest = max(one[0], other[0])
    factors = [np.exp(m - greatest) for m, _, _ in (one, other)]
    total = sum(f * part[1] for f, part in zip(factors, (one, other), strict=True))
    return greatest, total, sum(f * part[2] for f, part in zip(factors, (one, other), strict=True))


def merge_sums_only(one, other):
    greatest, total, _ = merge(one, other)
    return greatest, total, one[2] + other[2]


def grad_scores(scores_S, grad_S):
    powers_S = np.exp(scores_S - scores_S.max())
    probabilities_S = powers_S / powers_S.sum()
    return probabilities_S * (grad_S - probabilities_S @ grad_S)


def grad_scores_without_delta(scores_S, grad_S):
    powers_S = np.exp(scores_S - scores_S.max())
    return powers_S / powers_S.sum() * grad_S


def attend(query_D, key_SD, value_SD):
    greatest, total, sum_D = -np.inf, 0.0, 0.0
    for key_D, value_D in zip(key_SD, value_SD, strict=True):
        score = query_D @ key_D / np.sqrt(len(query_D))
        higher = max(greatest, score)
        shrink, weight = np.exp(greatest - higher), np.exp(score - higher)
        greatest, total, sum_D = higher, total * shrink + weight, sum_D * shrink + weight * value_D
    return sum_D / total


def attend_unscaled(query_D, key_SD, value_SD):
    weights = [np.exp(query_D @ key_D) for key_D in key_SD]
    return sum(w * v for w, v in zip(weights, value_SD, strict=True)) / sum(weights)


def attend_at_once(query_D, key_SD, value_SD):
    return exercises._softmax(key_SD @ query_D / np.sqrt(len(query_D))) @ value_SD


RIGHT = [("tiles_visited", tiles_visited), ("merge", merge), ("grad_scores", grad_scores), ("attend", attend)]
WRONG = [
    ("tiles_visited", all_tiles),
    ("tiles_visited", half_of_the_tiles),
    ("merge", merge_sums_only),
    ("grad_scores", grad_scores_without_delta),
    ("attend", attend_unscaled),
    ("attend", attend_at_once),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG)
