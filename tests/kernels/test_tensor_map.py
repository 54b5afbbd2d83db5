from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import SIMULATED, host
from kernels.tensor_map import TensorMap

if not SIMULATED:
    from numba import cuda

    if cuda.get_current_device().compute_capability[0] < 9:
        pytest.skip("tensor maps are of Hopper GPUs", allow_module_level=True)

DEVICE = "cpu" if SIMULATED else "cuda"


def matrix(*shape: int, dtype: str = "uint16"):
    return host.to_device(np.zeros(shape, dtype))


def test_a_map_is_128_bytes():
    tensor_map = TensorMap(matrix(100, 64), (64, 64))
    assert tensor_map.array.shape == (16,) and tensor_map.array.dtype == np.uint64
    assert tensor_map.box_bytes == 64 * 128


def test_torch_tensors_of_bfloat16_and_views_of_them():
    tensor = torch.zeros(4, 32, 192, device=DEVICE, dtype=torch.bfloat16)
    assert TensorMap(tensor, (1, 32, 64)).shape == (4, 32, 192)
    view = TensorMap(tensor[:, :, 64:128], (1, 32, 64))
    assert view.shape == (4, 32, 64) and view.strides == (12288, 384, 2)


def test_shape_and_strides_of_another_array():
    tensor_map = TensorMap(matrix(64 * 1024), (32, 64), shape=(500, 64), strides=(256, 2))
    assert tensor_map.shape == (500, 64)


@pytest.mark.parametrize(
    ("array", "arguments", "message"),
    [
        ((64, 60), {"box": (64, 64)}, "multiples of 16 bytes; the strides are"),
        ((64, 64), {"box": (64, 32)}, "its rows must have the 128 bytes of the swizzle"),
        ((64, 64), {"box": (64, 64), "swizzle": 64}, "its rows must have the 64 bytes"),
        ((64, 128), {"box": (64, 128)}, "its rows must have the 128 bytes"),
        ((64, 64), {"box": (64, 64), "swizzle": 16}, "swizzle"),
        ((64, 64), {"box": (300, 64)}, "1 to 256 a side"),
        ((64, 64), {"box": (64, 12), "swizzle": 0}, "a multiple of 16 bytes"),
        ((64, 64), {"box": (64,)}, "1 to 5 axes, in all the same"),
        ((64, 64), {"box": (64, 64), "shape": (65, 64)}, "passes the end of the array"),
        ((64, 64), {"box": (64, 64), "strides": (128, 4)}, "the last axis is not contiguous"),
    ],
)
def test_what_tma_refuses(array, arguments, message):
    with pytest.raises(ValueError, match=message):
        TensorMap(matrix(*array), **arguments)


def test_other_refusals():
    with pytest.raises(ValueError, match="a tensor map of float64 is not possible"):
        TensorMap(matrix(64, 64, dtype="float64"), (64, 16))
    with pytest.raises(ValueError, match="a start and strides of multiples of 16 bytes"):
        TensorMap(matrix(4097)[1:], (64, 64), shape=(64, 64), strides=(128, 2))
    with pytest.raises(ValueError, match="empty"):
        TensorMap(matrix(64, 64), (64, 64), shape=(0, 64))
