"""Layer normalisation in NumPy (Ba et al. 2016, equations 3 and 4, arXiv:1607.06450). N rows, C channels.

Computes in the dtype of its arguments: float64 gives the reference, float32 the plain version.
"""

from __future__ import annotations

import numpy as np


def layernorm_forward(
    inp_NC: np.ndarray, weight_C: np.ndarray, bias_C: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the output (N, C) and, of each row, the mean and the reciprocal of the standard deviation (N,)."""
    mean_N = inp_NC.mean(axis=1)
    variance_N = np.square(inp_NC - mean_N[:, None]).mean(axis=1)
    rstd_N = 1 / np.sqrt(variance_N + inp_NC.dtype.type(eps))
    normalized_NC = (inp_NC - mean_N[:, None]) * rstd_N[:, None]
    return normalized_NC * weight_C + bias_C, mean_N, rstd_N


def layernorm_backward(
    grad_out_NC: np.ndarray, inp_NC: np.ndarray, weight_C: np.ndarray, mean_N: np.ndarray, rstd_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients of the input (N, C), the weight (C,) and the bias (C,)."""
    normalized_NC = (inp_NC - mean_N[:, None]) * rstd_N[:, None]
    grad_normalized_NC = grad_out_NC * weight_C
    mean_grad_N1 = grad_normalized_NC.mean(axis=1, keepdims=True)
    mean_product_N1 = (grad_normalized_NC * normalized_NC).mean(axis=1, keepdims=True)
    grad_inp_NC = rstd_N[:, None] * (grad_normalized_NC - mean_grad_N1 - normalized_NC * mean_product_N1)
    return grad_inp_NC, (grad_out_NC * normalized_NC).sum(axis=0), grad_out_NC.sum(axis=0)


def residual_layernorm_forward(
    inp_NC: np.ndarray, added_NC: np.ndarray, weight_C: np.ndarray, bias_C: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the sum of the two inputs, and of that sum what `layernorm_forward` returns."""
    residual_NC = inp_NC + added_NC
    return residual_NC, *layernorm_forward(residual_NC, weight_C, bias_C, eps)
