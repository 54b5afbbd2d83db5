"""NumPy references of the operations that have no folder: each reads like its formula.

They compute in the dtype of their arguments: float64 gives the reference, float32 the plain version whose error is
the yardstick of a kernel's. Letters: N rows, F features, B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import numpy as np


def gelu_forward(inp: np.ndarray) -> np.ndarray:
    """GELU in the tanh form of GPT-2 (Hendrycks and Gimpel 2016, section 2)."""
    return 0.5 * inp * (1 + np.tanh(np.sqrt(2 / np.pi).astype(inp.dtype) * (inp + 0.044715 * inp**3)))


def gelu_backward(grad_out: np.ndarray, inp: np.ndarray) -> np.ndarray:
    """The gradient of `gelu_forward` with respect to its input."""
    scale = np.sqrt(2 / np.pi).astype(inp.dtype)
    tanh = np.tanh(scale * (inp + 0.044715 * inp**3))
    slope = scale * (1 + 3 * 0.044715 * inp**2)
    return grad_out * (0.5 * (1 + tanh) + 0.5 * inp * (1 - tanh**2) * slope)


def bias_gelu_forward(inp_NF: np.ndarray, bias_F: np.ndarray) -> np.ndarray:
    """Add the bias, then GELU."""
    return gelu_forward(inp_NF + bias_F)


def bias_gelu_backward(grad_out_NF: np.ndarray, inp_NF: np.ndarray, bias_F: np.ndarray) -> np.ndarray:
    """The gradient of `bias_gelu_forward` with respect to its input."""
    return gelu_backward(grad_out_NF, inp_NF + bias_F)


def residual_forward(inp: np.ndarray, added: np.ndarray) -> np.ndarray:
    """The sum of the stream and what a block adds."""
    return inp + added


def encoder_forward(tokens_BT: np.ndarray, token_weight_VC: np.ndarray, position_weight_TC: np.ndarray) -> np.ndarray:
    """The embedding of the token plus that of its position."""
    return token_weight_VC[tokens_BT] + position_weight_TC[: tokens_BT.shape[1]]


def encoder_backward(grad_out_BTC: np.ndarray, tokens_BT: np.ndarray, V: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the two embedding tables: each row sums the gradients of the places where it was used."""
    grad_token_weight_VC = np.zeros((V, grad_out_BTC.shape[2]), grad_out_BTC.dtype)
    np.add.at(grad_token_weight_VC, tokens_BT, grad_out_BTC)
    return grad_token_weight_VC, grad_out_BTC.sum(axis=0)


def squared_norm(inp: np.ndarray) -> np.ndarray:
    """The sum of the squares of all elements."""
    return np.square(inp).sum()
