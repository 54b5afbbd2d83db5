"""Attention as bench cases.

Letters: B batch, T time, H heads, D head size, C = H*D, E = 3C.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2edu.bench_ops.case import Buffers, Call, Case, Draw, Expected, Sizes, ladder, launchers
from kernels import attention

LONGEST_PAIR = 4096  # of this length the squares of two sequences fit the memory, several times in float64


def attention_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """Forward and backward at GPT-2's length with the ladder, and of as many tokens in longer texts; one query.

    At four times the length only the last step for every GPU is measured beside the production kernels, at eight times
    nothing else: the longest is there for its memory, which is that of the others if it grows with the tokens alone.
    """
    B, T, C, H = sizes.B, sizes.T, sizes.C, sizes.H
    texts = [
        (B, T, attention.LADDER),
        (max(B // 4, 1), 4 * T, [attention.step5_swizzled]),
        (max(B // 8, 1), 8 * T, []),
    ]
    cases = [make(device, *text, C, H) for make in (_attention_forward, _attention_backward) for text in texts]
    return cases + [_attention_decode(device, b, T, C, H) for b in (B, 1)]


def _backends(device: torch.device) -> dict[str, SDPBackend]:
    if device.type == "cuda":
        return {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return {"torch": SDPBackend.MATH}


def _split(qkv: Tensor, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """B T (three H D) -> three times B H T D, views."""
    B, T, E = qkv.shape
    return qkv.view(B, T, 3, H, E // (3 * H)).permute(2, 0, 3, 1, 4).unbind(0)


def _merge(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """N times B H T D -> B T (N H D)."""
    return torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _scratch(step: ModuleType, b: Buffers, B: int, T: int, H: int) -> Tensor:
    return b.qkv.new_empty(step.attention_scratch_size(B, T, H), dtype=torch.float32)


def _steps(steps: list[ModuleType], name: str) -> dict[str, tuple[Callable, ModuleType]]:
    """Return each variant's launcher and the module that knows its scratch memory."""
    modules = {step.__name__.rpartition(".")[2]: step for step in steps} | {"production": attention}
    return {
        variant: (launcher, modules[variant])
        for variant, launcher in ladder(steps, name, getattr(attention, name)).items()
    }


def _checked(device: torch.device, B: int, T: int) -> Tensor:
    """Return the numbers of the sequences that are checked: the first and the last, or one whose square is large."""
    return torch.tensor([0, B - 1] if T <= LONGEST_PAIR else [B - 1], device=device)


def _attention_forward(device: torch.device, B: int, T: int, steps: list[ModuleType], C: int, H: int) -> Case:
    batch = _checked(device, B, T)

    def make(draw: Draw) -> Buffers:
        logsumexp = draw.unwritten(B, H, T, dtype=torch.float32)
        return Buffers(qkv=draw.normal(B, T, 3 * C), out=draw.unwritten(B, T, C), logsumexp=logsumexp)

    def ours(launcher: Callable, step: ModuleType) -> Callable[[Buffers, Any], Call]:
        return lambda b, stream: launcher.prepare(b.out, b.logsumexp, _scratch(step, b, B, T, H), b.qkv, stream=stream)

    def theirs(backend: SDPBackend) -> Callable[[Buffers], Call]:
        def call(b: Buffers) -> Tensor:
            with sdpa_kernel(backend):
                return _sdpa(*_split(b.qkv, H))

        return lambda b: lambda: call(b)

    def reference(b: Buffers) -> tuple[Expected, ...]:
        q, k, v = _split(b.qkv[batch].double(), H)
        scores = (q @ k.mT) / q.shape[-1] ** 0.5
        scores.masked_fill_(torch.ones(T, T, dtype=torch.bool, device=device).triu_(1), -torch.inf)
        return Expected(_merge([_sdpa(q, k, v)]), batch), Expected(scores.logsumexp(-1), batch)

    return Case(
        op="attention_forward",
        shape={"B": B, "T": T, "H": H, "D": C // H},
        make=make,
        outputs=("out", "logsumexp"),
        ours={name: ours(*parts) for name, parts in _steps(steps, "attention_forward").items()},
        theirs={name: theirs(backend) for name, backend in _backends(device).items()},
        reference=reference,
        arrange=lambda _b, out: (_merge([out]), None),
        flop=2 * B * T * T * C,
        sustained=True,
        memory=True,
    )


def _attention_backward(device: torch.device, B: int, T: int, steps: list[ModuleType], C: int, H: int) -> Case:
    batch = _checked(device, B, T)

    def make(draw: Draw) -> Buffers:
        b = Buffers(qkv=draw.normal(B, T, 3 * C), out=draw.unwritten(B, T, C), grad_out=draw.normal(B, T, C))
        b.logsumexp, b.grad_qkv = draw.unwritten(B, H, T, dtype=torch.float32), draw.unwritten(B, T, 3 * C)
        stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 0
        attention.attention_forward(b.out, b.logsumexp, _scratch(attention, b, B, T, H), b.qkv, stream=stream)
        return b

    def ours(launcher: Callable, step: ModuleType) -> Callable[[Buffers, Any], Call]:
        return lambda b, stream: launcher.prepare(
            b.grad_qkv, _scratch(step, b, B, T, H), b.grad_out, b.out, b.qkv, b.logsumexp, stream=stream
        )

    def gradients(qkv: Tensor, grad_out: Tensor) -> Call:
        parts = [part.detach().requires_grad_() for part in _split(qkv, H)]
        out = _sdpa(*parts)
        grad = grad_out.view(*grad_out.shape[:2], H, C // H).transpose(1, 2)
        return lambda: torch.autograd.grad(out, parts, grad, retain_graph=True)

    def theirs(backend: SDPBackend) -> Callable[[Buffers], Call]:
        def prepare(b: Buffers) -> Call:
            with sdpa_kernel(backend):
                return gradients(b.qkv, b.grad_out)

        return prepare

    def reference(b: Buffers) -> tuple[Expected, ...]:
        with sdpa_kernel(SDPBackend.MATH):
            return (Expected(_merge(gradients(b.qkv[batch].double(), b.grad_out[batch].double())()), batch),)

    return Case(
        op="attention_backward",
        shape={"B": B, "T": T, "H": H, "D": C // H},
        make=make,
        outputs=("grad_qkv",),
        ours={name: ours(*parts) for name, parts in _steps(steps, "attention_backward").items()},
        theirs={name: theirs(backend) for name, backend in _backends(device).items()},
        reference=reference,
        arrange=lambda _b, grads: (_merge(grads),),
        flop=5 * B * T * T * C,
        sustained=True,
        memory=True,
    )


def _attention_decode(device: torch.device, B: int, T: int, C: int, H: int) -> Case:
    """One query a head, at the end of T keys: what must be moved is those keys and values."""
    D = C // H

    def make(draw: Draw) -> Buffers:
        position = torch.tensor([T - 1], dtype=torch.int32, device=device)
        scratch = draw.unwritten(attention.attention_decode_scratch_size(B, T, H, D), dtype=torch.float32)
        return Buffers(qkv=draw.normal(B, T, 3 * C), out=draw.unwritten(B, C), scratch=scratch, position=position)

    def attend(b: Buffers) -> Tensor:
        q, k, v = _split(b.qkv, H)
        return functional.scaled_dot_product_attention(q[:, :, -1:], k, v).view(B, C)

    def theirs(backend: SDPBackend) -> Callable[[Buffers], Call]:
        def call(b: Buffers) -> Tensor:
            with sdpa_kernel(backend):
                return attend(b)

        return lambda b: lambda: call(b)

    def reference(b: Buffers) -> tuple[Expected, ...]:
        return (Expected(attend(Buffers(qkv=b.qkv.double()))),)

    backends = {name: backend for name, backend in _backends(device).items() if name != "cudnn"}  # refuses one query
    return Case(
        op="attention_decode",
        shape={"B": B, "T": T, "H": H, "D": D},
        make=make,
        outputs=("out",),
        ours=launchers({"production": attention.attention_decode}, lambda b: (b.out, b.scratch, b.qkv, H, b.position)),
        theirs={name: theirs(backend) for name, backend in backends.items()},
        reference=reference,
        n_bytes=2 * B * T * C * torch.bfloat16.itemsize,
    )
