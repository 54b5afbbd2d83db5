"""Chapter 11's checks pass the right answer and refuse the likely mistakes."""

import math
import sys
from pathlib import Path

import pytest

from gpt2edu.exercises import reproduction as exercises
from gpt2edu.logger import read_log

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def learning_rate(step, peak, warmup_steps, n_steps):
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (n_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate_from_zero(step, peak, warmup_steps, n_steps):
    return peak * step / warmup_steps if step < warmup_steps else learning_rate(step, peak, warmup_steps, n_steps)


def learning_rate_over_all_steps(step, peak, warmup_steps, n_steps):
    cosine = peak * 0.5 * (1 + math.cos(math.pi * step / n_steps))
    return peak * (step + 1) / warmup_steps if step < warmup_steps else cosine


def best_ending(losses):
    means = [sum(some) / len(some) for some in losses]
    return means.index(min(means))


def best_ending_by_sum(losses):
    sums = [sum(some) for some in losses]
    return sums.index(min(sums))


def last_best_ending(losses):
    means = [sum(some) / len(some) for some in losses]
    return max(i for i, mean in enumerate(means) if mean == min(means))


def steps_done_twice(kills, every):
    return sum(kill - (kill - 1) // every * every for kill in kills)


def steps_done_twice_without_care_at_a_checkpoint(kills, every):
    return sum(kill % every for kill in kills)


def steps_from_the_start(kills, every):
    return sum(kills)


def validation_curve(text):
    curve = {}
    for line in text.splitlines():
        step, rest = line.removeprefix("s:").split(" ", 1)
        if rest.startswith("tel:"):
            curve[int(step)] = float(rest.removeprefix("tel:"))
    return curve


def validation_curve_with_the_earlier(text):
    curve = {}
    for step, loss in ((s, x) for line in text.splitlines() for s, x in validation_curve(line).items()):
        curve.setdefault(step, loss)
    return curve


RIGHT = [
    ("learning_rate", learning_rate),
    ("best_ending", best_ending),
    ("steps_done_twice", steps_done_twice),
    ("validation_curve", validation_curve),
]
WRONG = [
    ("learning_rate", learning_rate_from_zero),
    ("learning_rate", learning_rate_over_all_steps),
    ("best_ending", best_ending_by_sum),
    ("best_ending", last_best_ending),
    ("steps_done_twice", steps_done_twice_without_care_at_a_checkpoint),
    ("steps_done_twice", steps_from_the_start),
    ("validation_curve", validation_curve_with_the_earlier),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG)


@pytest.mark.parametrize("text", [exercises.LOG, exercises.RESTARTED])
def test_the_curve_is_that_of_the_package(text, tmp_path):
    path = tmp_path / "main.log"
    path.write_text(text)
    assert validation_curve(text) == read_log(path).validation_loss
