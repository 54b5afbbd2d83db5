"""Chapter 12's checks pass the right answer and refuse the likely mistakes."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2edu.exercises import after_the_run as exercises

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def with_temperature(probabilities, temperature):
    powers = [p ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


def temperature_upside_down(probabilities, temperature):
    return with_temperature(probabilities, 1 / temperature)


def temperature_without_a_sum(probabilities, temperature):
    return [p ** (1 / temperature) for p in probabilities]


def bits_per_byte(nats_per_token, n_tokens, n_bytes):
    return nats_per_token * n_tokens / math.log(2) / n_bytes


def nats_per_byte(nats_per_token, n_tokens, n_bytes):
    return nats_per_token * n_tokens / n_bytes


def bits_per_token(nats_per_token, n_tokens, n_bytes):
    return nats_per_token / math.log(2)


def nucleus(probabilities, top_p):
    best_first = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept, together = [], 0.0
    for token in best_first:
        if together >= top_p:
            break
        kept.append(token)
        together += probabilities[token]
    return kept


def nucleus_that_stays_below(probabilities, top_p):
    kept = nucleus(probabilities, top_p)
    return kept[:-1] if sum(probabilities[i] for i in kept) > top_p else kept


def nucleus_in_the_order_of_ids(probabilities, top_p):
    return sorted(nucleus(probabilities, top_p))


def round_to_bits(x, n_bits):
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 2**n_bits), exponent - n_bits)


def cut_to_bits(x, n_bits):
    fraction, exponent = math.frexp(x)
    return math.ldexp(int(fraction * 2**n_bits), exponent - n_bits)


def round_to_bits_behind_the_point(x, n_bits):
    return round(x * 2**n_bits) / 2**n_bits


RIGHT = [
    ("with_temperature", with_temperature),
    ("bits_per_byte", bits_per_byte),
    ("nucleus", nucleus),
    ("round_to_bits", round_to_bits),
]
WRONG = [
    ("with_temperature", temperature_upside_down),
    ("with_temperature", temperature_without_a_sum),
    ("bits_per_byte", nats_per_byte),
    ("bits_per_byte", bits_per_token),
    ("nucleus", nucleus_that_stays_below),
    ("nucleus", nucleus_in_the_order_of_ids),
    ("round_to_bits", cut_to_bits),
    ("round_to_bits", round_to_bits_behind_the_point),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG)


@pytest.mark.parametrize(("n_bits", "dtype"), [(8, torch.bfloat16), (11, torch.float16), (4, torch.float8_e4m3fn)])
def test_rounding_is_that_of_the_formats(n_bits, dtype):
    numbers = np.random.default_rng(0).uniform(0.1, 200.0, 500)
    as_stored = torch.from_numpy(numbers).to(dtype).double()
    assert [round_to_bits(x, n_bits) for x in numbers] == as_stored.tolist()
