"""AdamW in NumPy (Loshchilov and Hutter 2019, algorithm 2, arXiv:1711.05101). N all elements.

Computes in the dtype of its arrays: float64 gives the reference, float32 the plain version.
"""

from __future__ import annotations

import numpy as np


def adamw_update(
    master_N: np.ndarray,
    m_N: np.ndarray,
    v_N: np.ndarray,
    grad_N: np.ndarray,
    decay_N: np.ndarray,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    grad_scale: float,
    step: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the new weights and moments; `decay_N` is each element's weight decay, `step` counts from 1."""
    real = master_N.dtype.type
    grad_N = grad_N * real(grad_scale)
    m_N = real(beta1) * m_N + real(1 - beta1) * grad_N
    v_N = real(beta2) * v_N + real(1 - beta2) * grad_N * grad_N
    m_hat_N = m_N / real(1 - beta1**step)
    v_hat_N = v_N / real(1 - beta2**step)
    change_N = m_hat_N / (np.sqrt(v_hat_N) + real(eps)) + decay_N * master_N
    return master_N - real(learning_rate) * change_N, m_N, v_N
