"""The trace says which bytes a thread touches, and puts the lanes of a warp together."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SIMULATED  # must come before numba

if not SIMULATED:
    pytest.skip("the simulator is tested without a GPU", allow_module_level=True)

from numba import cuda, float32

from kernels.elements import load8, store8
from kernels.launch import PACK
from kernels.memory import cast_kernel
from kernels.simulator import tracing, warp_steps


@cuda.jit
def loop_kernel(out_NC, inp_N, stride, n):
    i = cuda.grid(1)
    row_C = out_NC[i // 4]
    while i < n:
        if i % 2 == 0:
            row_C[i % 4] = inp_N[stride * i]
        i += cuda.gridsize(1)


def traced(kernel, grid, block, *arguments):
    with tracing() as accesses:
        kernel[grid, block](*arguments)
    return accesses


def test_bytes_of_each_lane_in_each_round_of_a_loop():
    out_NC, inp_N = np.zeros((20, 4), np.float32), np.arange(90, dtype=np.float32)
    accesses = traced(loop_kernel, 2, 40, out_NC, inp_N, 1, 90)
    load, store, load_2, store_2 = warp_steps(accesses)
    assert (load.array, store.array, load.is_store, store.is_store) == ("inp_N", "out_NC", False, True)
    assert load.lanes == {lane: (4 * lane, 4) for lane in range(0, 32, 2)}
    assert store.lanes == load.lanes  # row i // 4, column i % 4
    assert load.source == store.source == "row_C[i % 4] = inp_N[stride * i]"
    assert load_2.lanes == {lane: (4 * (80 + lane), 4) for lane in range(0, 10, 2)}
    assert store_2.lanes == {lane: (16 * (lane // 4) + 4 * (lane % 4), 4) for lane in range(0, 10, 2)}
    (second_warp, _) = warp_steps(accesses, block=(1, 0, 0), warp=1)
    assert second_warp.lanes == {lane: (4 * (40 + 32 + lane), 4) for lane in range(0, 8, 2)}


@pytest.mark.parametrize("stride, n_sectors", [(1, 4), (3, 12), (8, 16), (9, 16)])
def test_sectors(stride, n_sectors):
    inp_N = np.zeros(512, np.float32)
    load, _ = warp_steps(traced(loop_kernel, 1, 32, np.zeros((8, 4), np.float32), inp_N, stride, 32))[:2]
    expected = {4 * stride * i // 32 for i in range(0, 32, 2)}
    assert load.n_sectors == len(expected) == n_sectors
    assert load.n_bytes == 64


def test_vectors_and_the_tail_of_an_odd_size():
    inp_N = np.zeros(20, np.uint16)
    steps = warp_steps(traced(cast_kernel, 1, 32, np.zeros(20, np.uint16), inp_N, inp_N.size // PACK * PACK))
    packs = {0: (0, 16), 1: (16, 16)}
    tail = {lane: (32 + 2 * lane, 2) for lane in range(4)}
    assert [(step.is_store, step.lanes) for step in steps] == [
        (False, packs),
        (True, packs),
        (False, tail),
        (True, tail),
    ]


def test_overlapping_bytes_count_once_and_float32_takes_two_vectors():
    @cuda.jit
    def kernel(out_N, inp_N):
        x_8 = cuda.local.array(8, float32)
        load8(x_8, inp_N, 0)
        store8(out_N, 8 * cuda.threadIdx.x, x_8)

    first, second, *stores = warp_steps(traced(kernel, 1, 32, np.zeros(256, np.float32), np.ones(8, np.float32)))
    assert (first.n_bytes, second.n_bytes, first.n_sectors) == (16, 16, 1)
    assert [(store.n_bytes, store.n_sectors) for store in stores] == [(512, 32), (512, 32)]


def test_results_are_those_without_a_trace_and_it_ends_with_its_context():
    outs = [np.zeros((20, 4), np.float32) for _ in range(2)]
    inp_N = np.arange(90, dtype=np.float32)
    accesses = traced(loop_kernel, 2, 40, outs[0], inp_N, 1, 90)
    n_accesses = len(accesses)
    loop_kernel[2, 40](outs[1], inp_N, 1, 90)
    np.testing.assert_array_equal(*outs)
    assert len(accesses) == n_accesses == 2 * 45
