"""Layer normalisation as bench cases.

Letters: N places, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gpt2edu.bench_ops.case import (
    Buffers,
    Case,
    Draw,
    Expected,
    Sizes,
    eager_and_compiled,
    ladder,
    launchers,
    sampled_rows,
)
from kernels import layernorm
from kernels.host import EPSILON

EPS = 1e-5


def layernorm_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """Layer normalisation, its gradients, and the norm together with the residual before it."""
    shape = sizes.n_places, sizes.C
    return [_forward(device, *shape), _backward(device, *shape), _residual_layernorm(device, *shape)]


def _weights(draw: Draw, C: int) -> dict[str, Tensor]:
    return {"weight": draw.normal(C), "bias": draw.normal(C)}


def _unwritten_statistics(draw: Draw, N: int) -> dict[str, Tensor]:
    return {name: draw.unwritten(N, dtype=torch.float32) for name in ("mean", "rstd")}


def _row_statistics(inp: Tensor) -> tuple[Tensor, Tensor]:
    return inp.mean(1), (inp.var(1, correction=0) + EPS).rsqrt()


def _norm(inp: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(inp, weight.shape, weight, bias, EPS)


def _norm_and_statistics(inp: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what training needs of the norm, as ours does: backward wants the statistics, too."""
    return torch.native_layer_norm(inp, weight.shape, weight, bias, EPS)


def _residual_norm(inp: Tensor, added: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    total = inp + added
    return total, *_norm_and_statistics(total, weight, bias)


def _expected_norm(inp: Tensor, b: Buffers, rows: Tensor) -> tuple[Expected, ...]:
    """Return output, mean and one over the deviation of these rows (float64)."""
    out = _norm(inp, b.weight.double(), b.bias.double())
    summed = 2 * EPSILON["float32"] * inp.shape[1] ** 0.5 * inp.abs().max().item()  # roundings of a sum term by term
    return Expected(out, rows), *(Expected(x, rows, tolerance=summed) for x in _row_statistics(inp))


def _forward(device: torch.device, N: int, C: int) -> Case:
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        return Buffers(
            inp=draw.normal(N, C), out=draw.unwritten(N, C), **_weights(draw, C), **_unwritten_statistics(draw, N)
        )

    return Case(
        op="layernorm_forward",
        shape={"N": N, "C": C},
        make=make,
        outputs=("out", "mean", "rstd"),
        ours=launchers(
            ladder(layernorm.LADDER, "layernorm_forward", layernorm.layernorm_forward),
            lambda b: (b.out, b.mean, b.rstd, b.inp, b.weight, b.bias),
        ),
        theirs=eager_and_compiled(_norm_and_statistics, lambda b: (b.inp, b.weight, b.bias), device),
        reference=lambda b: _expected_norm(b.inp[rows].double(), b, rows),
        arrange=lambda _b, results: (results[0], None, None),
        n_bytes=4 * N * C + 8 * N,
    )


def _residual_layernorm(device: torch.device, N: int, C: int) -> Case:
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        inputs = {"inp": draw.normal(N, C), "added": draw.normal(N, C), **_weights(draw, C)}
        outputs = {"total": draw.unwritten(N, C), "out": draw.unwritten(N, C), **_unwritten_statistics(draw, N)}
        return Buffers(**inputs, **outputs)

    def reference(b: Buffers) -> tuple[Expected, ...]:
        total = b.inp[rows].double() + b.added[rows].double()
        stored = total.to(b.inp.dtype).double()  # what is normalised, and what backward will see
        return Expected(total, rows), *_expected_norm(stored, b, rows)

    return Case(
        op="residual_layernorm",
        shape={"N": N, "C": C},
        make=make,
        outputs=("total", "out", "mean", "rstd"),
        ours=launchers(
            {"production": layernorm.residual_layernorm_forward},
            lambda b: (b.total, b.out, b.mean, b.rstd, b.inp, b.added, b.weight, b.bias),
        ),
        theirs=eager_and_compiled(_residual_norm, lambda b: (b.inp, b.added, b.weight, b.bias), device),
        reference=reference,
        arrange=lambda _b, results: (*results[:2], None, None),
        n_bytes=8 * N * C + 8 * N,
    )


def _backward(device: torch.device, N: int, C: int) -> Case:
    def make(draw: Draw) -> Buffers:
        inp = draw.normal(N, C)
        mean, rstd = _row_statistics(inp.float())
        grads = {"grad_inp": draw.normal(N, C), "grad_out": draw.normal(N, C)}
        grads |= {name: draw.normal(C, dtype=torch.float32) for name in ("grad_weight", "grad_bias")}
        scratch = draw.unwritten(layernorm.layernorm_scratch_size(N, C), dtype=torch.float32)
        return Buffers(inp=inp, mean=mean, rstd=rstd, scratch=scratch, **grads, **_weights(draw, C))

    def inputs(b: Buffers) -> tuple[Tensor, ...]:
        return b.grad_inp, b.grad_out, b.inp, b.mean[:, None], b.rstd[:, None], b.weight, b.bias

    def gradients(grad_inp: Tensor, grad_out: Tensor, inp: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        backward = torch.ops.aten.native_layer_norm_backward
        if inp.device.type == "cpu":
            saved = tuple(x.to(inp.dtype) for x in saved)  # where PyTorch wants all of one dtype
        grad, grad_weight, grad_bias = backward(grad_out, inp, [C], *saved, [True, True, True])
        return grad_inp + grad, grad_weight, grad_bias

    def reference(b: Buffers) -> tuple[Expected, ...]:
        return tuple(Expected(x) for x in added(b, gradients(*(x.double() for x in inputs(b)))))

    def added(b: Buffers, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return results[0], b.grad_weight + results[1], b.grad_bias + results[2]

    return Case(
        op="layernorm_backward",
        shape={"N": N, "C": C},
        make=make,
        outputs=("grad_inp", "grad_weight", "grad_bias"),
        ours=launchers(
            ladder(layernorm.LADDER, "layernorm_backward", layernorm.layernorm_backward),
            lambda b: (b.grad_inp, b.grad_weight, b.grad_bias, b.scratch, b.grad_out, b.inp, b.weight, b.mean, b.rstd),
        ),
        theirs=eager_and_compiled(gradients, inputs, device),
        reference=reference,
        arrange=added,
        n_bytes=8 * N * C + 8 * N,
    )
