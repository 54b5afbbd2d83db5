"""The embedding as bench cases.

Letters: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gpt2edu.bench_ops.case import (
    Buffers,
    Call,
    Case,
    Draw,
    Expected,
    Sizes,
    eager_and_compiled,
    launchers,
    sampled_rows,
)
from gpt2edu.config import ModelConfig
from kernels import encoder
from kernels.token_plan import plan_token_gradient


def encoder_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The embedding, and the gradients of both tables."""
    V = ModelConfig.from_descriptor(sizes.model).vocab_size
    return [make_case(device, sizes.B, sizes.T, sizes.C, V) for make_case in (_forward, _backward)]


def _rows_used(device: torch.device, *shape: int) -> int:
    """Return how many rows of the token table a batch uses; the others need not be touched."""
    return int(Draw(device).tokens(*shape).unique().numel())


def _forward(device: torch.device, B: int, T: int, C: int, V: int) -> Case:
    rows = sampled_rows(B, device)

    def make(draw: Draw) -> Buffers:
        tokens = draw.tokens(V, B, T)
        return Buffers(out=draw.unwritten(B, T, C), tokens=tokens, wte=draw.normal(V, C), wpe=draw.normal(T, C))

    return Case(
        op="encoder_forward",
        shape={"B": B, "T": T, "C": C},
        make=make,
        outputs=("out",),
        ours=launchers({"production": encoder.encoder_forward}, lambda b: (b.out, b.tokens, b.wte, b.wpe)),
        theirs=eager_and_compiled(_embed, lambda b: (b.tokens, b.wte, b.wpe), device),
        reference=lambda b: (Expected(_embed(b.tokens[rows], b.wte.double(), b.wpe.double()), rows),),
        n_bytes=2 * C * (B * T + _rows_used(device, V, B, T) + T) + 4 * B * T,
    )


def _backward(device: torch.device, B: int, T: int, C: int, V: int) -> Case:
    """The case of the gradients; what the host prepares for our kernels while the GPU is busy is not in the time."""

    def make(draw: Draw) -> Buffers:
        tokens = draw.tokens(V, B, T)
        plan = torch.from_numpy(plan_token_gradient(tokens.cpu().numpy())).to(device)
        scratch = draw.unwritten(encoder.encoder_scratch_size(B * T, C), dtype=torch.float32)
        grads = {"grad_wte": draw.normal(V, C, dtype=torch.float32), "grad_wpe": draw.normal(T, C, dtype=torch.float32)}
        return Buffers(grad_out=draw.normal(B, T, C), tokens=tokens, plan=plan, scratch=scratch, **grads)

    def reference(b: Buffers) -> tuple[Expected, ...]:
        grad_out = b.grad_out.double()
        grad_wte = b.grad_wte.double().index_add(0, b.tokens.flatten(), grad_out.view(-1, C))
        return Expected(grad_wte), Expected(b.grad_wpe.double() + grad_out.sum(0))

    def theirs(b: Buffers) -> Call:  # it writes gradients of its own and adds them to none: less to move
        embedding = torch.ops.aten.embedding_dense_backward
        return lambda: (embedding(b.grad_out, b.tokens, V, -1, False), b.grad_out.sum(0))

    return Case(
        op="encoder_backward",
        shape={"B": B, "T": T, "C": C},
        make=make,
        outputs=("grad_wte", "grad_wpe"),
        ours=launchers(
            {"production": encoder.encoder_backward}, lambda b: (b.grad_wte, b.grad_wpe, b.scratch, b.grad_out, b.plan)
        ),
        theirs={"torch": theirs},
        reference=reference,
        arrange=lambda b, grads: (b.grad_wte + grads[0], b.grad_wpe + grads[1]),
        n_bytes=2 * B * T * C + 8 * C * (_rows_used(device, V, B, T) + T) + 8 * B * T,
    )


def _embed(tokens: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
    return functional.embedding(tokens, wte) + wpe
