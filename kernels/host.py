"""Host arrays to and from where the kernels run, and the yardstick of their error.

Tests, benchmarks and chapters use this; kernels and launchers do not.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from kernels import SIMULATED

EPSILON = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
"""The greatest relative error of one rounding to nearest."""


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Round float32 to the bits (uint16) of bfloat16, to nearest even. NaN is not expected."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of the bits (uint16) of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_device(x: np.ndarray, dtype: str | None = None):
    """Copy an array to where the kernels run, as `dtype` ("float32" or "bfloat16") or, without it, as it is."""
    array = x if dtype is None else to_bf16(x) if dtype == "bfloat16" else x.astype(dtype)
    return np.array(array, order="C") if SIMULATED else cuda.to_device(np.ascontiguousarray(array))


def to_host(array) -> np.ndarray:
    """Copy an array back as it is held: bfloat16 as its bits."""
    return array.copy() if SIMULATED else array.copy_to_host()


def values(array) -> np.ndarray:
    """Copy a float32 or bfloat16 array back as float64 values."""
    host = to_host(array)
    return (from_bf16(host) if host.dtype == np.uint16 else host).astype(np.float64)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round an array to the values that "float32" or "bfloat16" can hold, as float64."""
    single = np.asarray(x, np.float32)
    return (from_bf16(to_bf16(single)) if dtype == "bfloat16" else single).astype(np.float64)


def max_error(x: np.ndarray, reference: np.ndarray) -> float:
    """Return the greatest absolute difference; NaN if any is in `x`."""
    return float(np.max(np.abs(x - reference), initial=0.0))


def error_bound(plain: np.ndarray, reference: np.ndarray, dtype: str) -> float:
    """Return the error that a kernel may have: twice that of the plain version in the same dtype.

    Args:
        plain: The same formula computed in float32, of which only the result is rounded to `dtype`.
        reference: The result in float64.
        dtype: "float32" or "bfloat16".

    Returns:
        The bound; at least two roundings of the greatest value to `dtype` and four to float32, as a plain version may
        be exact by luck.
    """
    scale = float(np.max(np.abs(reference), initial=0.0))
    least = max(2 * EPSILON[dtype], 4 * EPSILON["float32"]) * scale
    return max(2 * max_error(rounded(plain, dtype), reference), least)
