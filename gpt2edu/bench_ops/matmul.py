"""The matrix products as bench cases, at GPT-2's sizes and as squares.

Letters: M rows, N output features, K input features.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

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
    ladder,
    launchers,
    sampled_rows,
)
from gpt2edu.config import ModelConfig
from kernels import gelu, matmul


def _gpt2_products(sizes: Sizes) -> list[tuple[int, int, int]]:
    """Return M, N, K of the five linear layers of GPT-2; the first is the one that the ladder is measured with."""
    C, P = sizes.C, ModelConfig.from_descriptor(sizes.model).padded_vocab_size
    return [(sizes.n_places, N, K) for N, K in ((4 * C, C), (3 * C, C), (C, C), (C, 4 * C), (P, C))]


def product_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The three products of a linear layer at every shape: the ladder at the first.

    At the others the step that is used on GPUs before and after Hopper is measured beside the production one.
    """
    shapes = _gpt2_products(sizes)
    squares = [(n, n, n) for n in sizes.squares]
    cases = []
    for make_case in (_forward, _grad_input, _grad_weight):
        for place, shape in enumerate([*shapes, *squares]):
            steps = [matmul.step7_multistage] if place else matmul.LADDER
            cases.append(make_case(device, *shape, steps=steps, sustained=shape in shapes))
    return cases


def matmul_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The three products at every shape, and what goes with them."""
    M, N, K = _gpt2_products(sizes)[0]
    beside = [_bias_gelu(device, M, N, K), _grad_input_gelu(device, M, K, N)]
    beside += [_grad_weight_bias(device, M, N, K), _grad_bias(device, M, N)]
    return product_cases(device, sizes) + beside


def _case(op: str, M: int, N: int, K: int, **parts: Any) -> Case:
    return Case(op=op, shape={"M": M, "N": N, "K": K}, flop=2 * M * N * K, **parts)


def _forward(device: torch.device, M: int, N: int, K: int, steps: list[ModuleType], sustained: bool) -> Case:
    rows = sampled_rows(M, device)

    def theirs(b: Buffers) -> Call:
        return lambda: torch.mm(b.inp, b.weight.T)

    return _case(
        "matmul_forward", M, N, K,
        make=lambda draw: Buffers(inp=draw.normal(M, K), weight=draw.normal(N, K), out=draw.unwritten(M, N)),
        outputs=("out",),
        ours=launchers(
            ladder(steps, "matmul_forward", matmul.matmul_forward), lambda b: (b.out, b.inp, b.weight)
        ),
        theirs={"cublas": theirs},
        reference=lambda b: (Expected(b.inp[rows].double() @ b.weight.double().T, rows),),
        sustained=sustained,
    )  # fmt: skip


def _grad_input(device: torch.device, M: int, N: int, K: int, steps: list[ModuleType], sustained: bool) -> Case:
    rows = sampled_rows(M, device)

    def theirs(b: Buffers) -> Call:
        return lambda: torch.mm(b.grad_out, b.weight)

    return _case(
        "matmul_grad_input", M, N, K,
        make=lambda draw: Buffers(grad_out=draw.normal(M, N), weight=draw.normal(N, K), grad_inp=draw.unwritten(M, K)),
        outputs=("grad_inp",),
        ours=launchers(
            ladder(steps, "matmul_grad_input", matmul.matmul_grad_input), lambda b: (b.grad_inp, b.grad_out, b.weight)
        ),
        theirs={"cublas": theirs},
        reference=lambda b: (Expected(b.grad_out[rows].double() @ b.weight.double(), rows),),
        sustained=sustained,
    )  # fmt: skip


def _grad_weight(device: torch.device, M: int, N: int, K: int, steps: list[ModuleType], sustained: bool) -> Case:
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        grad_weight = draw.normal(N, K, dtype=torch.float32)
        return Buffers(grad_out=draw.normal(M, N), inp=draw.normal(M, K), grad_weight=grad_weight)

    def theirs(b: Buffers) -> Call:  # a bfloat16 result that is added to nothing: less to move than ours
        return lambda: torch.mm(b.grad_out.T, b.inp)

    def reference(b: Buffers) -> tuple[Expected, ...]:
        product = b.grad_out[:, rows].double().T @ b.inp.double()
        return (Expected(b.grad_weight[rows] + product, rows),)

    return _case(
        "matmul_grad_weight", M, N, K,
        make=make,
        outputs=("grad_weight",),
        ours=launchers(
            ladder(steps, "matmul_grad_weight", matmul.matmul_grad_weight),
            lambda b: (b.grad_weight, b.grad_out, b.inp),
        ),
        theirs={"cublas": theirs},
        reference=reference,
        arrange=lambda b, product: (b.grad_weight + product,),
        sustained=sustained,
    )  # fmt: skip


def _grad_bias(device: torch.device, M: int, N: int) -> Case:
    def make(draw: Draw) -> Buffers:
        scratch = draw.unwritten(matmul.bias_scratch_size(M, N), dtype=torch.float32)
        return Buffers(grad_bias=draw.normal(N, dtype=torch.float32), scratch=scratch, grad_out=draw.normal(M, N))

    return Case(
        op="matmul_grad_bias",
        shape={"M": M, "N": N},
        make=make,
        outputs=("grad_bias",),
        ours=launchers({"production": matmul.matmul_grad_bias}, lambda b: (b.grad_bias, b.scratch, b.grad_out)),
        theirs=eager_and_compiled(lambda grad_out: grad_out.sum(0), lambda b: (b.grad_out,), device),
        reference=lambda b: (Expected(b.grad_bias + b.grad_out.double().sum(0)),),
        arrange=lambda b, total: (b.grad_bias + total,),
        n_bytes=2 * M * N + 8 * N,
    )


# ---- a product and what goes with it, as one kernel or as two --------------------------------------------------------


def _in_order(*prepared: Call) -> Call:
    def run() -> None:
        for launches in prepared:
            launches()

    return run


def _grad_weight_bias(device: torch.device, M: int, N: int, K: int) -> Case:
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        gradients = {"grad_weight": draw.normal(N, K, dtype=torch.float32)}
        gradients["grad_bias"] = draw.normal(N, dtype=torch.float32)
        scratch = draw.unwritten(matmul.bias_scratch_size(M, N), dtype=torch.float32)
        return Buffers(grad_out=draw.normal(M, N), inp=draw.normal(M, K), scratch=scratch, **gradients)

    def gradients(grad_out: Tensor, inp: Tensor) -> tuple[Tensor, Tensor]:
        return grad_out.T @ inp, grad_out.sum(0)

    def apart(b: Buffers, stream: Any) -> Call:
        product = matmul.matmul_grad_weight.prepare(b.grad_weight, b.grad_out, b.inp, stream=stream)
        return _in_order(product, matmul.matmul_grad_bias.prepare(b.grad_bias, b.scratch, b.grad_out, stream=stream))

    def fused(b: Buffers, stream: Any) -> Call:
        return matmul.matmul_grad_weight.prepare(
            b.grad_weight, b.grad_out, b.inp, grad_bias_N=b.grad_bias, scratch_S=b.scratch, stream=stream
        )

    def reference(b: Buffers) -> tuple[Expected, ...]:
        product, total = gradients(b.grad_out[:, rows].double(), b.inp.double())
        return Expected(b.grad_weight[rows] + product, rows), Expected(b.grad_bias[rows] + total, rows)

    return _case(
        "matmul_grad_weight_bias", M, N, K,
        make=make,
        outputs=("grad_weight", "grad_bias"),
        ours={"two_kernels": apart, "production": fused},
        theirs=eager_and_compiled(gradients, lambda b: (b.grad_out, b.inp), device),
        reference=reference,
        arrange=lambda b, results: (b.grad_weight + results[0], b.grad_bias + results[1]),
    )  # fmt: skip


def _bias_gelu(device: torch.device, M: int, N: int, K: int) -> Case:
    rows = sampled_rows(M, device)

    def make(draw: Draw) -> Buffers:
        inputs = {"inp": draw.normal(M, K), "weight": draw.normal(N, K), "bias": draw.normal(N)}
        return Buffers(before=draw.unwritten(M, N), out=draw.unwritten(M, N), **inputs)

    def linear_gelu(inp: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        before = functional.linear(inp, weight, bias)
        return functional.gelu(before, approximate="tanh"), before

    def reference(b: Buffers) -> tuple[Expected, ...]:
        inputs = b.inp[rows].double(), b.weight.double(), b.bias.double()
        return tuple(Expected(x, rows) for x in linear_gelu(*inputs))

    def apart(b: Buffers, stream: Any) -> Call:
        product = matmul.matmul_forward.prepare(b.before, b.inp, b.weight, b.bias, stream=stream)
        return _in_order(product, gelu.gelu_forward.prepare(b.out, b.before, stream=stream))

    def fused(b: Buffers, stream: Any) -> Call:
        return matmul.matmul_forward.prepare(b.out, b.inp, b.weight, b.bias, pre_activation_MN=b.before, stream=stream)

    return _case(
        "matmul_bias_gelu", M, N, K,
        make=make,
        outputs=("out", "before"),
        ours={"two_kernels": apart, "production": fused},
        theirs=eager_and_compiled(linear_gelu, lambda b: (b.inp, b.weight, b.bias), device),
        reference=reference,
        sustained=True,
    )  # fmt: skip


def _grad_input_gelu(device: torch.device, M: int, N: int, K: int) -> Case:
    """The layer after GELU has N output and K input features; GELU's input is that of the layer before."""
    rows = sampled_rows(M, device)

    def make(draw: Draw) -> Buffers:
        inputs = {"grad_out": draw.normal(M, N), "weight": draw.normal(N, K), "before": draw.normal(M, K)}
        return Buffers(grad_inp=draw.unwritten(M, K), **inputs)

    def gradient(grad_out: Tensor, weight: Tensor, before: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad_out @ weight, before, approximate="tanh")

    def apart(b: Buffers, stream: Any) -> Call:
        product = matmul.matmul_grad_input.prepare(b.grad_inp, b.grad_out, b.weight, stream=stream)
        return _in_order(product, gelu.gelu_backward.prepare(b.grad_inp, b.grad_inp, b.before, stream=stream))

    def fused(b: Buffers, stream: Any) -> Call:
        return matmul.matmul_grad_input.prepare(
            b.grad_inp, b.grad_out, b.weight, pre_activation_MK=b.before, stream=stream
        )

    def reference(b: Buffers) -> tuple[Expected, ...]:
        return (Expected(gradient(b.grad_out[rows].double(), b.weight.double(), b.before[rows].double()), rows),)

    return _case(
        "matmul_grad_input_gelu", M, N, K,
        make=make,
        outputs=("grad_inp",),
        ours={"two_kernels": apart, "production": fused},
        theirs=eager_and_compiled(gradient, lambda b: (b.grad_out, b.weight, b.before), device),
        reference=reference,
        sustained=True,
    )  # fmt: skip
