from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import SIMULATED, host, launch
from kernels.launch import Launch, Prepared, ceil_div, launcher, n_packs, take
from kernels.residual import residual_forward

from numba import cuda, float32  # isort: skip

DEVICE = "cpu" if SIMULATED else "cuda"


def device_array(shape, dtype="float32"):
    return host.to_device(np.zeros(shape, dtype))


def test_ceil_div():
    assert [ceil_div(n, 8) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_sizes_come_from_the_suffixes():
    arrays, sizes = take(
        real={"out_NC": device_array((2, 3, 5)), "weight_C": device_array(5)},
        float32={"mean_N": device_array((2, 3)), "missing_N": None},
        int32={"state_2": device_array(2, "int32")},
    )
    assert (sizes.N, sizes.C) == (6, 5)
    assert tuple(arrays.out_NC.shape) == (6, 5) and tuple(arrays.mean_N.shape) == (6,)
    assert arrays.missing_N is None


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"real": {"a_NC": ((2, 3), "float32"), "b_C": (4, "float32")}},
            r"b_C has shape \(4,\): axis C is 4 but 3 in a_NC",
        ),
        ({"real": {"a_N": (3, "float32"), "b_N": (3, "uint16")}}, "b_N is uint16 but a_N is float32"),
        ({"real": {"a_N": (3, "float64")}}, "a_N is float64; float32 or bfloat16"),
        ({"int32": {"a_N": (3, "int64")}}, "a_N is int64; int32 is needed"),
        ({"real": {"a_NC": (3, "float32")}}, r"a_NC has shape \(3,\); the axes N, C are needed"),
        ({"float32": {"a_2": (3, "float32")}}, r"a_2 has shape \(3,\): axis 2 is 3 but 2"),
    ],
)
def test_what_does_not_fit_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        take(**{dtype: {n: device_array(*spec) for n, spec in group.items()} for dtype, group in groups.items()})


def test_other_refusals():
    with pytest.raises(ValueError, match="x_NC is not C-contiguous"):
        take(real={"x_NC": torch.zeros(4, 6, device=DEVICE)[:, :3]})
    with pytest.raises(ValueError, match="x_N: "):
        take(real={"x_N": [1.0, 2.0]})


def test_nothing_is_launched_when_a_check_fails():
    out = device_array(4)
    with pytest.raises(ValueError):
        residual_forward(out, host.to_device(np.ones(4, np.float32)), host.to_device(np.ones(5, np.float32)))
    assert not host.to_host(out).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_tensors_are_taken_without_a_copy(dtype):
    x = torch.arange(12, device=DEVICE).reshape(3, 4).to(dtype).requires_grad_()
    out = torch.empty_like(x, requires_grad=False)
    residual_forward(out, x, x)
    torch.testing.assert_close(out, 2 * x.detach(), rtol=0, atol=0)


@pytest.mark.skipif(not SIMULATED, reason="arrays of two libraries in the memory of the CPU")
def test_numpy_and_torch_together():
    out = np.zeros(4, np.float32)
    residual_forward(out, torch.ones(4), cuda.to_device(np.ones(4, np.float32)))
    np.testing.assert_array_equal(out, 2)


def test_packs_need_alignment_of_every_row():
    assert n_packs(19, device_array(19)) == 2
    assert n_packs(19, device_array(19)[1:]) == 0
    assert n_packs(16, device_array((3, 16), "uint16"), device_array(16, "uint16")) == 2
    assert n_packs(12, device_array((3, 12), "uint16")) == 0  # rows of 24 bytes
    assert n_packs(12, device_array((3, 12))) == 1  # rows of 48 bytes
    assert n_packs(12, device_array(12), pack=4) == 3


@cuda.jit
def add_kernel(out_N, value):
    i = cuda.grid(1)
    if i < out_N.size:
        out_N[i] += value


@launcher
def add_twice(out_N, value, stream=0):
    """Add a value twice, to see the order and the repetition."""
    arrays, sizes = take(float32={"out_N": out_N})
    return [Launch(add_kernel, ceil_div(sizes.N, 32), 32, (arrays.out_N, value), stream)] * 2


def test_prepared_launches_can_be_repeated():
    out = device_array(40)
    prepared = add_twice.prepare(out, 0.5)
    assert isinstance(prepared, Prepared) and not host.to_host(out).any()
    prepared()
    prepared()
    np.testing.assert_array_equal(host.to_host(out), 2.0)
    add_twice(out, 1.0)
    np.testing.assert_array_equal(host.to_host(out), 4.0)


def test_floats_are_launched_as_float32_and_empty_grids_not_at_all():
    assert type(Launch(add_kernel, 1, 1, (0.5, 3)).arguments[0]) is np.float32
    Launch(add_kernel, 0, 32, (None, None))()
    Launch(add_kernel, (1, 0), 32, (None, None))()


@cuda.jit
def last_float_kernel(out, n):
    shared = cuda.shared.array(0, float32)
    if cuda.threadIdx.x == 0:
        shared[n - 1] = float32(7)
    cuda.syncthreads()
    out[cuda.threadIdx.x] = shared[n - 1]


@pytest.mark.parametrize("n_bytes", [4096, 60 * 1024, 120 * 1024, 60 * 1024])
def test_more_shared_memory_than_every_kernel_may_use(n_bytes):
    out = device_array(32)
    Launch(last_float_kernel, 1, 32, (out, n_bytes // 4), 0, n_bytes)()
    np.testing.assert_array_equal(host.to_host(out), 7)


def test_more_shared_memory_than_there_is():
    with pytest.raises(ValueError, match="232449 bytes of shared memory are more than the 232448"):
        Launch(last_float_kernel, 1, 32, (), 0, 232449)


@pytest.mark.skipif(SIMULATED, reason="streams of a GPU")
@pytest.mark.gpu
def test_stream_of_torch():
    stream = torch.cuda.Stream()
    out = torch.zeros(40, device="cuda")
    with torch.cuda.stream(stream):
        add_twice(out, 0.5, stream=stream.cuda_stream)
    stream.synchronize()
    assert (out == 1).all()
    assert launch.as_stream(stream.cuda_stream) is launch.as_stream(stream.cuda_stream)


def test_float32_of_numba_is_the_same_in_both_worlds():
    assert float32(0.1) == np.float32(0.1)
