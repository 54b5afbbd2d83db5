"""Softmax, cross-entropy and their gradient in NumPy. N rows, V vocabulary, P columns (V and padding).

Computes in the dtype of the logits: float64 gives the reference, float32 the plain version.
"""

from __future__ import annotations

import numpy as np


def fused_classifier(
    logits_NP: np.ndarray, targets_N: np.ndarray, V: int, grad_loss: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's loss in nats (N,), and the gradient of `grad_loss` times their sum (N, P), 0 in the padding."""
    rows = np.arange(len(targets_N))
    shifted_NV = logits_NP[:, :V] - logits_NP[:, :V].max(axis=1, keepdims=True)
    exponentials_NV = np.exp(shifted_NV)
    sum_N1 = exponentials_NV.sum(axis=1, keepdims=True)
    losses_N = np.log(sum_N1[:, 0]) - shifted_NV[rows, targets_N]
    grad_logits_NP = np.zeros_like(logits_NP)
    grad_logits_NP[:, :V] = exponentials_NV / sum_N1
    grad_logits_NP[rows, targets_N] -= 1
    return losses_N, grad_logits_NP * logits_NP.dtype.type(grad_loss)
