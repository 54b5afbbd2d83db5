"""Causal self-attention and its gradient in NumPy (Vaswani et al. 2017, equation 1, arXiv:1706.03762).

B batch, T time of the query, S time of the key, H heads, D head size, E = 3*H*D. `qkv_BTE` is `B T (three H D)`.
Computes in the dtype of its arguments: float64 gives the reference, float32 the plain version.
"""

from __future__ import annotations

import numpy as np


def _split(qkv_BTE: np.ndarray, H: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B T (three H D) -> three times B H T D."""
    B, T, E = qkv_BTE.shape
    return tuple(qkv_BTE.reshape(B, T, 3, H, E // (3 * H)).transpose(2, 0, 3, 1, 4))


def _merge(*parts_BHTD: np.ndarray) -> np.ndarray:
    """N times B H T D -> B T (N H D)."""
    stacked = np.stack(parts_BHTD).transpose(1, 3, 0, 2, 4)
    return stacked.reshape(*stacked.shape[:2], -1)


def _probabilities(q_BHTD: np.ndarray, k_BHSD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the attention of each query to each key up to its own, and the logarithm of its denominator."""
    T, D = q_BHTD.shape[2:]
    scores_BHTS = np.einsum("bhtd,bhsd->bhts", q_BHTD, k_BHSD) / np.sqrt(D).astype(q_BHTD.dtype)
    scores_BHTS = np.where(np.tri(T, dtype=bool), scores_BHTS, -np.inf)
    greatest_BHT1 = scores_BHTS.max(axis=-1, keepdims=True)
    exponentials_BHTS = np.exp(scores_BHTS - greatest_BHT1)
    sum_BHT1 = exponentials_BHTS.sum(axis=-1, keepdims=True)
    return exponentials_BHTS / sum_BHT1, (np.log(sum_BHT1) + greatest_BHT1)[..., 0]


def attention_forward(qkv_BTE: np.ndarray, H: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the output (B, T, H*D) and the log-sum-exp of each query's scores (B, H, T)."""
    q_BHTD, k_BHSD, v_BHSD = _split(qkv_BTE, H)
    probabilities_BHTS, logsumexp_BHT = _probabilities(q_BHTD, k_BHSD)
    return _merge(np.einsum("bhts,bhsd->bhtd", probabilities_BHTS, v_BHSD)), logsumexp_BHT


def attention_backward(grad_out_BTC: np.ndarray, qkv_BTE: np.ndarray, H: int) -> np.ndarray:
    """Return the gradient of `qkv_BTE`."""
    q_BHTD, k_BHSD, v_BHSD = _split(qkv_BTE, H)
    scale = 1 / np.sqrt(q_BHTD.shape[-1]).astype(qkv_BTE.dtype)
    probabilities_BHTS, _ = _probabilities(q_BHTD, k_BHSD)
    B, T, C = grad_out_BTC.shape
    grad_out_BHTD = grad_out_BTC.reshape(B, T, H, C // H).transpose(0, 2, 1, 3)
    grad_probabilities_BHTS = np.einsum("bhtd,bhsd->bhts", grad_out_BHTD, v_BHSD)
    delta_BHT1 = (grad_probabilities_BHTS * probabilities_BHTS).sum(axis=-1, keepdims=True)
    grad_scores_BHTS = probabilities_BHTS * (grad_probabilities_BHTS - delta_BHT1) * scale
    return _merge(
        np.einsum("bhts,bhsd->bhtd", grad_scores_BHTS, k_BHSD),
        np.einsum("bhts,bhtd->bhsd", grad_scores_BHTS, q_BHTD),
        np.einsum("bhts,bhtd->bhsd", probabilities_BHTS, grad_out_BHTD),
    )
