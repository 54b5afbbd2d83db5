"""Chapter 10's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2edu import show_ranks
from gpt2edu.communication import step_traffic
from gpt2edu.config import ModelConfig
from gpt2edu.exercises import many_gpus as exercises
from gpt2edu.mpi_lessons import ring
from gpt2edu.parameters import n_parameters

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def order_of_additions(chunk, n):
    return [(chunk + 1 + place) % n for place in range(n)]


def order_of_ranks(chunk, n):
    return list(range(n))


def order_from_its_owner(chunk, n):
    return [(chunk + place) % n for place in range(n)]


def sent_bytes(n_parameters, n, zero_stage):
    return n_parameters * (n - 1) / n * (4 + (2 if zero_stage else 4))


def sent_by_all_reduce(n_parameters, n, zero_stage):
    return 2 * n_parameters * (n - 1) / n * 4


def sent_to_everybody(n_parameters, n, zero_stage):
    return n_parameters * (n - 1) * (4 + (2 if zero_stage else 4))


def rank_bytes(n_parameters, n, stage):
    weights = 2 / n if stage == 3 else 2
    gradients = 4 / n if stage >= 2 else 4
    return n_parameters * (weights + gradients + (12 / n if stage >= 1 else 12))


def rank_bytes_all_shared(n_parameters, n, stage):
    return n_parameters * 18 / (n if stage else 1)


def exposed_ms(ready_ms, send_ms):
    free = 0
    for ready, send in zip(ready_ms, send_ms, strict=True):
        free = max(free, ready) + send
    return free - ready_ms[-1]


def last_bucket_only(ready_ms, send_ms):
    return send_ms[-1]


def all_buckets(ready_ms, send_ms):
    return sum(send_ms)


RIGHT = [
    ("order_of_additions", order_of_additions),
    ("sent_bytes", sent_bytes),
    ("rank_bytes", rank_bytes),
    ("exposed_ms", exposed_ms),
]
WRONG = [
    ("order_of_additions", order_of_ranks),
    ("order_of_additions", order_from_its_owner),
    ("sent_bytes", sent_by_all_reduce),
    ("sent_bytes", sent_to_everybody),
    ("rank_bytes", rank_bytes_all_shared),
    ("exposed_ms", last_bucket_only),
    ("exposed_ms", all_buckets),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_bytes_sent_are_those_of_the_model_of_communication(zero_stage):
    config = ModelConfig.from_descriptor("d12")
    traffic = step_traffic(config, 8, zero_stage)
    assert np.isclose(traffic.reduce_bytes + traffic.gather_bytes, sent_bytes(n_parameters(config), 8, zero_stage))


def test_the_ring_adds_in_this_order():
    histories = [reduced for reduced, _ in show_ranks.run_mpi(3, ring)]
    for chunk in range(3):
        seen = []
        for round_number, rank in enumerate(order_of_additions(chunk, 3)):
            digits = histories[rank][round_number][chunk]
            seen.append({other for other in range(3) if digits // 10**other % 10})
        order = order_of_additions(chunk, 3)
        assert seen == [set(order[: count + 1]) for count in range(3)]
