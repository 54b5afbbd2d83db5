"""Chapter 9's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2edu.activations import activation_buffers
from gpt2edu.config import ModelConfig
from gpt2edu.exercises import training_step as exercises

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def kept_bytes(B, T, C, L, recompute):
    gelu_layers, norm_layers = (1 if recompute >= 1 else L), (1 if recompute >= 2 else L)
    return 2 * B * T * C * (10 * L + 4 * gelu_layers + 2 * norm_layers)


def kept_bytes_in_fp32(*sizes):
    return 2 * kept_bytes(*sizes)


def kept_bytes_without_the_layer_at_work(B, T, C, L, recompute):
    return 2 * B * T * C * L * (16 - 4 * (recompute >= 1) - 2 * (recompute >= 2))


def accumulated(means, n_tokens):
    return sum(n * mean for n, mean in zip(n_tokens, means, strict=True)) / sum(n_tokens)


def mean_of_means(means, n_tokens):
    return sum(means) / len(means)


def sum_of_means(means, n_tokens):
    return sum(means)


def peak_bytes(buffers):
    return max(sum(size for size, first, last in buffers if first <= t <= last) for t in range(100))


def all_bytes(buffers):
    return sum(size for size, _, _ in buffers)


def peak_bytes_overwriting_inputs(buffers):
    return max(sum(size for size, first, last in buffers if first <= t < max(last, first + 1)) for t in range(100))


def floor_ms(M, K, N, tflop_per_s, gb_per_s):
    return max(2 * M * K * N / tflop_per_s / 1e9, 2 * (M * K + K * N + M * N) / gb_per_s / 1e6)


def floor_of_both_in_turn(M, K, N, tflop_per_s, gb_per_s):
    return 2 * M * K * N / tflop_per_s / 1e9 + 2 * (M * K + K * N + M * N) / gb_per_s / 1e6


def floor_of_arithmetic(M, K, N, tflop_per_s, gb_per_s):
    return 2 * M * K * N / tflop_per_s / 1e9


RIGHT = [
    ("kept_bytes", kept_bytes),
    ("accumulated", accumulated),
    ("peak_bytes", peak_bytes),
    ("floor_ms", floor_ms),
]
WRONG = [
    ("kept_bytes", kept_bytes_in_fp32),
    ("kept_bytes", kept_bytes_without_the_layer_at_work),
    ("accumulated", mean_of_means),
    ("accumulated", sum_of_means),
    ("peak_bytes", all_bytes),
    ("peak_bytes", peak_bytes_overwriting_inputs),
    ("floor_ms", floor_of_both_in_turn),
    ("floor_ms", floor_of_arithmetic),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG)


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_bytes_kept_are_those_of_the_engine(recompute):
    config = ModelConfig.from_descriptor("d3,h2,c128,t8,v61")
    names = ("residual", "ln1", "qkv", "mixed", "middle", "ln2", "expanded", "activated")
    buffers = activation_buffers(config, 2, 8, torch.bfloat16, recompute)
    n_bytes = sum(buffer.n_bytes for buffer in buffers if buffer.name.rpartition("_")[0] in names)
    last_of_the_stream = 2 * 2 * 8 * config.channels
    assert np.isclose(n_bytes - last_of_the_stream, kept_bytes(2, 8, config.channels, 3, recompute))
