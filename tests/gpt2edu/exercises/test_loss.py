"""Chapter 8's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import numpy as np

from gpt2edu.exercises import loss as exercises
from kernels import SIMULATED  # noqa: F401 (chooses the simulator before Numba is imported)

from numba import cuda  # isort: skip

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks


def loss_and_gradient(logits_V, target):
    powers_V = np.exp(logits_V - logits_V.max())
    loss = np.log(powers_V.sum()) - (logits_V[target] - logits_V.max())
    return loss, powers_V / powers_V.sum() - np.eye(len(logits_V))[target]


def loss_that_overflows(logits_V, target):
    with np.errstate(all="ignore"):
        powers_V = np.exp(logits_V)
        shares_V = powers_V / powers_V.sum()
        return -np.log(shares_V[target]), shares_V - np.eye(len(logits_V))[target]


def loss_without_target(logits_V, target):
    loss, gradient_V = loss_and_gradient(logits_V, target)
    return loss, gradient_V + np.eye(len(logits_V))[target]


def merge(one, other):
    greatest = max(one[0], other[0])
    return greatest, sum(total * np.exp(x - greatest) for x, total in (one, other))


def merge_without_scaling(one, other):
    return max(one[0], other[0]), one[1] + other[1]


def chance_up(x):
    return (np.float32(x).view(np.uint32) & 0xFFFF) / 65_536


def nearest(x):
    return float((np.float32(x).view(np.uint32) & 0xFFFF) > 0x8000)


@cuda.jit
def momentum(weight_N, velocity_N, grad_N, learning_rate, beta):
    i = cuda.grid(1)
    while i < weight_N.size:
        velocity_N[i] = beta * velocity_N[i] + grad_N[i]
        weight_N[i] -= learning_rate * velocity_N[i]
        i += cuda.gridsize(1)


@cuda.jit
def momentum_of_yesterday(weight_N, velocity_N, grad_N, learning_rate, beta):
    i = cuda.grid(1)
    while i < weight_N.size:
        weight_N[i] -= learning_rate * velocity_N[i]
        velocity_N[i] = beta * velocity_N[i] + grad_N[i]
        i += cuda.gridsize(1)


@cuda.jit
def momentum_of_one_block(weight_N, velocity_N, grad_N, learning_rate, beta):
    i = cuda.grid(1)
    if i < weight_N.size:
        velocity_N[i] = beta * velocity_N[i] + grad_N[i]
        weight_N[i] -= learning_rate * velocity_N[i]


RIGHT = [
    ("loss_and_gradient", loss_and_gradient),
    ("merge", merge),
    ("chance_up", chance_up),
    ("momentum", momentum),
]
WRONG = [
    ("loss_and_gradient", loss_that_overflows),
    ("loss_and_gradient", loss_without_target),
    ("merge", merge_without_scaling),
    ("chance_up", nearest),
    ("momentum", momentum_of_yesterday),
    ("momentum", momentum_of_one_block),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG, given=("momentum",))
