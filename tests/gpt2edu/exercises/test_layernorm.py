"""Chapter 6's checks pass the right answer and refuse the likely mistakes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2edu.exercises import layernorm as exercises
from kernels import SIMULATED

from numba import cuda, float32  # isort: skip

sys.path.insert(0, str(Path(__file__).parent))
from checks import cases_of_checks

simulated = pytest.mark.skipif(not SIMULATED, reason="on a GPU this reads past the end of a row")


def normalize(row_C, weight_C, bias_C):
    return (row_C - row_C.mean()) / np.sqrt(row_C.var() + 1e-5) * weight_C + bias_C


def normalize_without_epsilon(row_C, weight_C, bias_C):
    with np.errstate(invalid="ignore"):
        return (row_C - row_C.mean()) / row_C.std() * weight_C + bias_C


def normalize_unbiased(row_C, weight_C, bias_C):
    return (row_C - row_C.mean()) / np.sqrt(row_C.var(ddof=1) + 1e-5) * weight_C + bias_C


def held(lane, n_exchanges):
    return {lane ^ x for x in range(0, 32, 32 >> n_exchanges)}


def held_by_adding(lane, n_exchanges):
    return {lane + x for x in range(0, 32, 32 >> n_exchanges)}


@cuda.jit
def greatest(out_N, inp_NC):
    n = cuda.grid(1) // 32
    while n < inp_NC.shape[0]:
        x = float32(0)
        c = cuda.threadIdx.x % 32
        while c < inp_NC.shape[1]:
            x = max(x, abs(inp_NC[n, c]))
            c += 32
        for distance in (16, 8, 4, 2, 1):
            x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, distance))
        if cuda.threadIdx.x % 32 == 0:
            out_N[n] = x
        n += cuda.gridsize(1) // 32


@cuda.jit
def greatest_of_the_first_channels(out_N, inp_NC):
    n = cuda.grid(1) // 32
    lane = cuda.threadIdx.x % 32
    if n < inp_NC.shape[0]:
        x = abs(inp_NC[n, lane]) if lane < inp_NC.shape[1] else float32(0)
        for distance in (16, 8, 4, 2, 1):
            x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, distance))
        if lane == 0:
            out_N[n] = x


@cuda.jit
def greatest_without_magnitude(out_N, inp_NC):
    n = cuda.grid(1) // 32
    while n < inp_NC.shape[0]:
        x = inp_NC[n, 0]
        for c in range(inp_NC.shape[1]):
            x = max(x, inp_NC[n, c])
        out_N[n] = x
        n += cuda.gridsize(1) // 32


def rms_backward(grad_out_C, inp_C, weight_C):
    rstd = 1 / np.sqrt(np.mean(inp_C**2) + 1e-5)
    normalized_C = inp_C * rstd
    grad_C = grad_out_C * weight_C
    return rstd * (grad_C - normalized_C * np.mean(grad_C * normalized_C))


def rms_backward_of_layernorm(grad_out_C, inp_C, weight_C):
    grad_C = grad_out_C * weight_C
    return rms_backward(grad_out_C, inp_C, weight_C) - grad_C.mean()


RIGHT = [("normalize", normalize), ("held", held), ("greatest", greatest), ("rms_backward", rms_backward)]
WRONG = [
    ("normalize", normalize_without_epsilon),
    ("normalize", normalize_unbiased),
    ("held", held_by_adding),
    pytest.param(
        "greatest",
        greatest_of_the_first_channels,
        marks=simulated,
    ),
    ("greatest", greatest_without_magnitude),
    ("rms_backward", rms_backward_of_layernorm),
]


TestChecks = cases_of_checks(exercises, RIGHT, WRONG, given=("greatest",))
