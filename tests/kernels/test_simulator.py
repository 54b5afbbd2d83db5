from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kernels import SIMULATED  # must come before numba

if not SIMULATED:
    pytest.skip("the simulator is tested without a GPU", allow_module_level=True)

from numba import cuda, float32, int32, uint16

from kernels import ptx
from kernels.simulator import (
    DivergenceError,
    LaunchError,
    MisalignedError,
    OutOfBoundsError,
    SimulatorError,
    reversed_order,
)

FULL = 0xFFFFFFFF


def line_of(kernel, text: str) -> int:
    """The line of the kernel's source that contains a text."""
    import inspect

    lines, first = inspect.getsourcelines(kernel.py_func)
    return first + next(i for i, line in enumerate(lines) if text in line)


def launch(kernel, n_threads: int, *arguments) -> None:
    kernel[1, n_threads](*arguments)


# ---- what it computes ----------------------------------------------------------------------------------------------


def test_grid_block_and_thread_indices():
    @cuda.jit
    def kernel(out):
        x, y = cuda.grid(2)
        out[y, x] = (
            cuda.blockIdx.x + 10 * cuda.threadIdx.x + 100 * cuda.blockDim.x + 1000 * cuda.gridDim.y + cuda.laneid
        )

    out = np.zeros((4, 6), np.int64)
    kernel[(2, 2), (3, 2)](out)
    y, x = np.mgrid[:4, :6]
    expected = x // 3 + 10 * (x % 3) + 300 + 2000 + (x % 3 + 3 * (y % 2))
    np.testing.assert_array_equal(out, expected)


def test_shuffles_follow_their_definition():
    @cuda.jit
    def kernel(out, inp):
        lane = cuda.threadIdx.x
        out[0, lane] = cuda.shfl_sync(0xFFFFFFFF, inp[lane], 5)
        out[1, lane] = cuda.shfl_xor_sync(0xFFFFFFFF, inp[lane], 3)
        out[2, lane] = cuda.shfl_up_sync(0xFFFFFFFF, inp[lane], 2)
        out[3, lane] = cuda.shfl_down_sync(0xFFFFFFFF, inp[lane], 7)

    inp = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    out = np.zeros((4, 32), np.float32)
    launch(kernel, 32, out, inp)
    lane = np.arange(32)
    expected = [
        inp[np.full(32, 5)],
        inp[lane ^ 3],
        inp[np.where(lane >= 2, lane - 2, lane)],
        inp[np.where(lane + 7 < 32, lane + 7, lane)],
    ]
    np.testing.assert_array_equal(out, expected)


def test_votes_with_a_partial_mask():
    @cuda.jit
    def kernel(out, votes):
        lane = cuda.threadIdx.x
        if lane < 16:
            out[0, lane] = cuda.ballot_sync(0xFFFF, votes[lane])
            out[1, lane] = cuda.any_sync(0xFFFF, votes[lane])
            out[2, lane] = cuda.all_sync(0xFFFF, votes[lane])
            out[3, lane] = cuda.eq_sync(0xFFFF, votes[lane])
        cuda.syncwarp()

    votes = np.zeros(32, np.int32)
    votes[[1, 4, 20]] = 1
    out = np.zeros((4, 32), np.int64)
    launch(kernel, 32, out, votes)
    np.testing.assert_array_equal(out[:, :16], np.array([[0b10010], [1], [0], [0]]) * np.ones(16, np.int64))
    assert not out[:, 16:].any()


def test_block_votes():
    @cuda.jit
    def kernel(out):
        t = cuda.threadIdx.x
        out[0, t] = cuda.syncthreads_count(t % 3 == 0)
        out[1, t] = cuda.syncthreads_and(t >= 0)
        out[2, t] = cuda.syncthreads_or(t < 0)

    out = np.full((3, 50), -1, np.int32)
    launch(kernel, 50, out)
    np.testing.assert_array_equal(out, np.array([[17], [1], [0]]) * np.ones(50, np.int32))


def test_two_shared_arrays_on_one_line_do_not_alias():
    @cuda.jit
    def kernel(out):
        a, b = cuda.shared.array(32, float32), cuda.shared.array(32, float32)
        t = cuda.threadIdx.x
        a[t], b[t] = t, 100 + t
        cuda.syncthreads()
        out[t] = a[31 - t] + 1000 * b[31 - t]

    out = np.zeros(32, np.float32)
    launch(kernel, 32, out)
    np.testing.assert_array_equal(out, 31 - np.arange(32) + 1000 * (131 - np.arange(32)))


def test_dynamic_shared_memory_is_one_buffer():
    @cuda.jit
    def kernel(out):
        floats, words = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
        floats[cuda.threadIdx.x] = float32(1.0)
        cuda.syncthreads()
        out[cuda.threadIdx.x] = words[cuda.threadIdx.x]

    out = np.zeros(8, np.int32)
    kernel[1, 8, 0, 32](out)
    np.testing.assert_array_equal(out, 0x3F800000)
    with pytest.raises(OutOfBoundsError, match="dynamic shared memory"):
        kernel[1, 8, 0, 28](out)


def test_early_return_does_not_block_a_barrier():
    @cuda.jit
    def kernel(out):
        t = cuda.threadIdx.x
        if t >= 40:
            return
        cuda.syncthreads()
        out[t] = cuda.shfl_xor_sync(FULL, t, 1) if t < 32 else 1

    out = np.zeros(64, np.int32)
    launch(kernel, 64, out)
    assert out[:40].all() or out[1] == 0
    assert not out[40:].any()


def test_numbers_behave_as_on_a_gpu():
    @cuda.jit
    def kernel(out, halves, zero):
        out[0] = halves[0] << 16  # 64-bit arithmetic whatever the array holds
        out[1] = -1  # low bits are kept
        with_infinity = float32(1) / zero[0]
        out[2] = with_infinity > 1e30

    out = np.zeros(3, np.uint32)
    launch(kernel, 1, out, np.array([0xFFFF], np.uint16), np.zeros(1, np.float32))
    np.testing.assert_array_equal(out, [0xFFFF0000, 0xFFFFFFFF, 1])


def test_device_functions_and_jit_options():
    @cuda.jit(device=True, forceinline=True)
    def twice(x):
        return 2 * x

    @cuda.jit("void(int32[::1])", launch_bounds=(32, 2), max_registers=64, lineinfo=True, lto=True, fastmath=True)
    def kernel(out):
        out[cuda.threadIdx.x] = twice(cuda.threadIdx.x)

    out = np.zeros(32, np.int32)
    launch(kernel, 32, out)
    np.testing.assert_array_equal(out, 2 * np.arange(32))
    with pytest.raises(TypeError, match="max_regs"):
        cuda.jit(max_regs=3)


def test_atomics_and_grid_stride():
    @cuda.jit
    def kernel(total, inp):
        i = cuda.grid(1)
        while i < inp.size:
            cuda.atomic.add(total, 0, inp[i])
            i += cuda.gridsize(1)

    total = np.zeros(1, np.int64)
    kernel[3, 40](total, np.arange(1000))
    assert total[0] == 499500


# ---- what it reports -----------------------------------------------------------------------------------------------


def test_divergent_barrier_names_both_places():
    @cuda.jit
    def kernel():
        if cuda.threadIdx.x < 40:
            cuda.syncthreads()  # first
        else:
            cuda.syncthreads()  # second

    with pytest.raises(DivergenceError) as error:
        launch(kernel, 64)
    message = str(error.value)
    assert "kernel, block (0, 0, 0)" in message
    assert f"40 threads (0-39) at syncthreads, {__file__}:{line_of(kernel, '# first')}" in message
    assert f"24 threads (40-63) at syncthreads, {__file__}:{line_of(kernel, '# second')}" in message


def test_divergence_inside_a_device_function_is_seen():
    @cuda.jit(device=True)
    def meet():
        cuda.syncthreads()

    @cuda.jit
    def kernel():
        if cuda.threadIdx.x == 0:
            meet()
        else:
            meet()

    with pytest.raises(DivergenceError):
        launch(kernel, 2)


def test_warp_operation_that_not_all_lanes_reach():
    @cuda.jit
    def kernel(out):
        if cuda.threadIdx.x % 2:
            out[0] = cuda.shfl_sync(FULL, 1, 0)
        else:
            cuda.syncthreads()

    with pytest.raises(DivergenceError, match=r"16 threads .* at shfl_sync with mask 0xffffffff"):
        launch(kernel, 32, np.zeros(1))


def test_lane_outside_its_own_mask():
    @cuda.jit
    def kernel():
        cuda.syncwarp(1)

    with pytest.raises(DivergenceError, match="lane 1 is not in its own mask 0x00000001"):
        launch(kernel, 2)


def test_shuffle_from_a_lane_that_does_not_exist():
    @cuda.jit
    def kernel(out):
        out[0] = cuda.shfl_down_sync(FULL, 1, 8)

    with pytest.raises(SimulatorError, match="lane 8 reads lane 16, which takes no part"):
        launch(kernel, 16, np.zeros(1))


@pytest.mark.parametrize("index", [-1, 10])
def test_out_of_bounds(index):
    @cuda.jit
    def kernel(array, index):
        if cuda.threadIdx.x == 3:
            array[1, index] = 0  # here

    with pytest.raises(OutOfBoundsError) as error:
        launch(kernel, 4, np.zeros((2, 10)), index)
    place = f"kernel, thread (3, 0, 0) of block (0, 0, 0), at {__file__}:{line_of(kernel, '# here')} (kernel)"
    assert str(error.value) == f"{place}: index {index} is outside axis 1 of array, whose shape is (2, 10)"


def test_out_of_bounds_in_shared_and_local_memory():
    @cuda.jit
    def kernel(use_shared):
        if use_shared:
            cuda.shared.array(4, float32)[4] = 0
        else:
            cuda.local.array(4, float32)[4] = 0

    with pytest.raises(OutOfBoundsError, match="shared array of line"):
        launch(kernel, 1, 1)
    with pytest.raises(OutOfBoundsError, match="local array"):
        launch(kernel, 1, 0)


def test_misaligned_vector_access():
    @cuda.jit
    def kernel(array, index):
        ptx.load_128(array, index)  # here

    array = np.zeros(64, np.uint16)
    launch(kernel, 1, array, 8)
    with pytest.raises(MisalignedError, match=rf"{__file__}:{line_of(kernel, '# here')} .* element 4 of array"):
        launch(kernel, 1, array, 4)
    with pytest.raises(MisalignedError):
        launch(kernel, 1, array[1:], 0)
    with pytest.raises(OutOfBoundsError):
        launch(kernel, 1, array, 60)


def test_shared_array_without_alignment_is_misaligned_on_purpose():
    @cuda.jit
    def kernel(aligned):
        if aligned:
            tile = cuda.shared.array(64, uint16, 16)
        else:
            tile = cuda.shared.array(64, uint16)
        ptx.ldmatrix_x4(ptx.shared_address(tile, 0))

    launch(kernel, 32, 1)
    with pytest.raises(MisalignedError, match="ldmatrix_x4"):
        launch(kernel, 32, 0)


def test_reading_before_writing_gives_nan():
    @cuda.jit
    def kernel(out):
        out[0], out[1] = cuda.shared.array(1, float32)[0], cuda.local.array(1, float32)[0]

    out = np.zeros(2, np.float32)
    launch(kernel, 1, out)
    assert np.isnan(out).all()


def test_reversed_order_exposes_a_missing_barrier():
    @cuda.jit
    def kernel(out):
        tile = cuda.shared.array(64, int32)
        t = cuda.threadIdx.x
        tile[t] = t
        out[t] = tile[t - t % 2]  # reads what the thread before wrote

    out, backwards = np.zeros(64, np.int32), np.zeros(64, np.int32)
    launch(kernel, 64, out)
    with reversed_order():
        launch(kernel, 64, backwards)
    assert (out != backwards).any()


def test_cp_async_without_wait_shows():
    @cuda.jit
    def kernel(out, inp, wait):
        tile = cuda.shared.array(4, float32, 16)
        ptx.cp_async_16(ptx.shared_address(tile, 0), inp, 0, 16)
        ptx.cp_async_commit()
        if wait:
            ptx.cp_async_wait(0)
        for i in range(4):
            out[i] = tile[i]

    inp, out = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    launch(kernel, 1, out, inp, 1)
    np.testing.assert_array_equal(out, inp)
    launch(kernel, 1, out, inp, 0)
    assert np.isnan(out).all()


def test_launches_that_no_gpu_accepts():
    @cuda.jit(launch_bounds=64)
    def kernel():
        cuda.shared.array(20000, float32)

    with pytest.raises(LaunchError, match="65 threads a block"):
        kernel[1, 65]
    with pytest.raises(LaunchError, match="grid"):
        kernel[(1, 70000), 1]
    with pytest.raises(LaunchError, match="shared memory"):
        kernel[1, 1, 0, 300000]
    with pytest.raises(LaunchError, match="static shared memory"):
        kernel[1, 1]()
    with pytest.raises(TypeError, match="argument"):
        cuda.jit(lambda x: None)[1, 1]("text")


def test_other_errors_keep_their_type_and_name_the_place():
    @cuda.jit
    def kernel():
        1 // (cuda.threadIdx.x - 3)

    with pytest.raises(ZeroDivisionError) as error:
        launch(kernel, 8)
    assert "in kernel, thread (3, 0, 0)" in error.value.__notes__[0]


def test_outside_a_kernel():
    with pytest.raises(SimulatorError, match="no kernel is running"):
        cuda.syncthreads()


# ---- how it is chosen ----------------------------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    clean = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    return subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)


def test_chosen_without_a_gpu_and_overruled_by_the_environment():
    code = "import kernels; print(kernels.SIMULATED)"
    assert run_python(code).stdout == "True\n"
    assert run_python(code, NUMBA_ENABLE_CUDASIM="0").stdout == "False\n"


def test_numba_imported_first_is_one_clear_error():
    result = run_python("import numba, kernels")
    assert "ImportError: numba was imported before kernels" in result.stderr
    assert run_python("import numba, kernels", NUMBA_ENABLE_CUDASIM="1").returncode == 0
