"""Chapter 4's checks pass the right answer and refuse the likely mistakes."""

import pytest

from gpt2edu.exercises import first_kernels as exercises
from kernels import SIMULATED

from numba import cuda, float32  # isort: skip


@cuda.jit
def scale(out_N, inp_N, factor):
    i = cuda.grid(1)
    while i < out_N.size:
        out_N[i] = factor * inp_N[i]
        i += cuda.gridsize(1)


@cuda.jit
def scale_range(out_N, inp_N, factor):
    for i in range(cuda.grid(1), out_N.size, cuda.gridsize(1)):
        out_N[i] = inp_N[i] * factor


@cuda.jit
def scale_without_loop(out_N, inp_N, factor):
    i = cuda.grid(1)
    if i < out_N.size:
        out_N[i] = factor * inp_N[i]


@cuda.jit
def scale_every_block_the_same(out_N, inp_N, factor):
    i = cuda.threadIdx.x
    while i < out_N.size:
        out_N[i] = factor * inp_N[i]
        i += 2 * cuda.blockDim.x


@cuda.jit
def scale_unguarded(out_N, inp_N, factor):
    i = cuda.grid(1)
    out_N[i] = factor * inp_N[i]


@cuda.jit
def neighbours(out_N, inp_N):
    tile_b = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    tile_b[t] = inp_N[cuda.grid(1)]
    cuda.syncthreads()
    out_N[cuda.grid(1)] = max(tile_b[max(t - 1, 0)], tile_b[t], tile_b[min(t + 1, 63)])


@cuda.jit
def neighbours_without_barrier(out_N, inp_N):
    tile_b = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    tile_b[t] = inp_N[cuda.grid(1)]
    out_N[cuda.grid(1)] = max(tile_b[max(t - 1, 0)], tile_b[t], tile_b[min(t + 1, 63)])


@cuda.jit
def neighbours_off_the_edge(out_N, inp_N):
    tile_b = cuda.shared.array(64, float32)
    t = cuda.threadIdx.x
    tile_b[t] = inp_N[cuda.grid(1)]
    cuda.syncthreads()
    out_N[cuda.grid(1)] = max(tile_b[t - 1], tile_b[t], tile_b[t + 1])


@cuda.jit
def neighbours_across_blocks(out_N, inp_N):
    i = cuda.grid(1)
    out_N[i] = max(inp_N[max(i - 1, 0)], inp_N[i], inp_N[min(i + 1, inp_N.size - 1)])


def count_sectors(stride, itemsize):
    return len({b // 32 for lane in range(32) for b in range(lane * stride * itemsize, (lane * stride + 1) * itemsize)})


GOOD = {
    exercises.check_place: [lambda i, block: (i // block, i % block // 32, i % 32 if block % 32 == 0 else None)],
    exercises.check_scale: [scale, scale_range],
    exercises.check_sectors: [count_sectors],
    exercises.check_neighbours: [neighbours],
}
BAD = {
    exercises.check_place: [lambda i, block: (i // block, i // 32, i % 32), lambda i, block: (i // block, i % block)],
    exercises.check_scale: [scale_without_loop, scale_every_block_the_same],
    exercises.check_sectors: [lambda stride, itemsize: stride * itemsize, lambda stride, itemsize: 32],
    exercises.check_neighbours: [neighbours_across_blocks],
}
if SIMULATED:  # a GPU may or may not notice these
    BAD[exercises.check_scale] += [scale_unguarded]
    BAD[exercises.check_neighbours] += [neighbours_without_barrier, neighbours_off_the_edge]


def flat(table):
    return [
        pytest.param(check, answer, id=f"{check.__name__}-{i}")
        for check in table
        for i, answer in enumerate(table[check])
    ]


@pytest.mark.parametrize("check, answer", flat(GOOD))
def test_right_answers_pass(check, answer):
    assert check(answer)


@pytest.mark.parametrize("check, answer", flat(BAD))
def test_mistakes_are_refused(check, answer, capsys):
    assert not check(answer)
    printed = capsys.readouterr().out
    assert "✗" in printed and "not yet" not in printed


def test_a_kernel_that_does_nothing_is_not_yet_an_answer(capsys):
    @cuda.jit
    def starter(out_N, inp_N, factor): ...

    assert not exercises.check_scale(starter)
    assert "not yet" in capsys.readouterr().out
