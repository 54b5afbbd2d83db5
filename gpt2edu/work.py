"""The work of each operation of a training step: floating-point operations, and the bytes it must move at least.

Counted from the arrays that an operation is given, so the figures hold for any shape. A product and attention are
limited by arithmetic, everything else by memory. Attention's square is counted half, since the mask hides the rest, and
backward as five products, however many a kernel makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What one call must do.

    Attributes:
        flop: of products; 0 where memory is the limit.
        n_bytes: read and written, each array once.
    """

    flop: int = 0
    n_bytes: int = 0


def work_of(operation: str, arguments: tuple, keywords: dict) -> Work:
    """Return the work of one call of a launcher.

    Args:
        operation: the name of the launcher, for example `matmul_forward`.
        arguments: what it is called with, tensors among them.
        keywords: the same, by name.
    """
    tensors = [x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor)]
    n_bytes = sum(x.nbytes for x in tensors)
    if operation in PRODUCTS:
        return Work(2 * PRODUCTS[operation](*arguments[:3]), n_bytes)
    if operation in ATTENTION_PRODUCTS:
        out_BTC = arguments[0] if operation == "attention_forward" else arguments[2]
        B, T, C = out_BTC.shape
        return Work(ATTENTION_PRODUCTS[operation] * B * T * T * C, n_bytes)
    return Work(0, MOVED.get(operation, lambda tensors, _keywords: n_bytes)(tensors, keywords))


PRODUCTS: dict[str, Callable[..., int]] = {
    "matmul_forward": lambda out, inp, weight: inp.numel() * weight.shape[0],
    "matmul_grad_input": lambda grad_inp, grad_out, weight: grad_out.numel() * weight.shape[1],
    "matmul_grad_weight": lambda grad_weight, grad_out, inp: grad_out.numel() * inp.shape[-1],
}
"""Multiplications of a product."""

ATTENTION_PRODUCTS = {"attention_forward": 2, "attention_backward": 5}
"""Of T x T x C, of whose FLOP (2 a multiplication) half is hidden by the mask."""


def _layernorm_backward(tensors: list[Tensor], keywords: dict) -> int:
    grad_inp, _grad_weight, _grad_bias, _scratch, grad_out, inp, *_rest = tensors
    times = 2 if keywords.get("accumulate", True) else 1
    return times * grad_inp.nbytes + grad_out.nbytes + inp.nbytes


def _classifier(tensors: list[Tensor], keywords: dict) -> int:
    return (2 if keywords.get("write_gradient", True) else 1) * tensors[1].nbytes


def _encoder_forward(tensors: list[Tensor], _keywords: dict) -> int:
    out, _tokens, token_weight, position_weight = tensors
    return out.nbytes + min(out.nbytes, token_weight.nbytes) + min(out.nbytes, position_weight.nbytes)


def _encoder_backward(tensors: list[Tensor], _keywords: dict) -> int:
    grad_token_weight, grad_position_weight, _scratch, grad_out, _plan = tensors
    return (
        2 * grad_out.nbytes + 2 * grad_position_weight.nbytes + 2 * min(grad_token_weight.nbytes, 2 * grad_out.nbytes)
    )


MOVED: dict[str, Callable[[list[Tensor], dict], int]] = {
    "layernorm_backward": _layernorm_backward,
    "fused_classifier": _classifier,
    "encoder_forward": _encoder_forward,
    "encoder_backward": _encoder_backward,
}
"""Bytes of the operations that do not just read or write each of their arrays once."""
