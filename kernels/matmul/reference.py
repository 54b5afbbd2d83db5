"""The linear layer and its gradients in NumPy. M rows, N output features, K input features.

Computes in the dtype of its arguments: float64 gives the reference, float32 the plain version.
"""

from __future__ import annotations

import numpy as np


def matmul_forward(inp_MK: np.ndarray, weight_NK: np.ndarray, bias_N: np.ndarray | None = None) -> np.ndarray:
    """Return the output (M, N) of a linear layer."""
    out_MN = np.einsum("mk,nk->mn", inp_MK, weight_NK)
    return out_MN if bias_N is None else out_MN + bias_N


def matmul_grad_input(grad_out_MN: np.ndarray, weight_NK: np.ndarray) -> np.ndarray:
    """Return the gradient of the input (M, K)."""
    return np.einsum("mn,nk->mk", grad_out_MN, weight_NK)


def matmul_grad_weight(grad_out_MN: np.ndarray, inp_MK: np.ndarray) -> np.ndarray:
    """Return the gradient of the weight (N, K)."""
    return np.einsum("mn,mk->nk", grad_out_MN, inp_MK)


def matmul_grad_bias(grad_out_MN: np.ndarray) -> np.ndarray:
    """Return the gradient of the bias (N,)."""
    return grad_out_MN.sum(axis=0)
