"""The ops that compute each element alone, as bench cases.

Letters: N places, C channels, F = 4C.
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
    launchers,
    sampled_rows,
)
from kernels import gelu, memory, residual


def _elementwise(op: str, function, shape: tuple[int, int], formula, device, n_inputs: int) -> Case:
    """Return the case of an op that computes each element of its output from the same one of its inputs."""
    N, F = shape
    names = [f"inp{i}" for i in range(n_inputs)]
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        return Buffers(out=draw.unwritten(N, F), **{name: draw.normal(N, F) for name in names})

    def inputs(b: Buffers) -> tuple[Tensor, ...]:
        return tuple(getattr(b, name) for name in names)

    return Case(
        op=op,
        shape={"N": N, "F": F},
        make=make,
        outputs=("out",),
        ours=launchers({"production": function}, lambda b: (b.out, *inputs(b))),
        theirs=eager_and_compiled(formula, inputs, device),
        reference=lambda b: (Expected(formula(*(x[rows].double() for x in inputs(b))), rows),),
        n_bytes=2 * (n_inputs + 1) * N * F,
    )


def _gelu(inp: Tensor) -> Tensor:
    return functional.gelu(inp, approximate="tanh")


def _gelu_backward(grad_out: Tensor, inp: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad_out, inp, approximate="tanh")


def memory_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """Zero, copy and cast on a buffer as large as the widest activation."""
    N, F = sizes.n_places, 4 * sizes.C
    rows = sampled_rows(N, device)

    def case(op: str, function, inputs, theirs, formula, n_bytes: int, dtype: torch.dtype = torch.bfloat16) -> Case:
        def make(draw: Draw) -> Buffers:
            return Buffers(out=draw.unwritten(N, F), inp=draw.normal(N, F, dtype=dtype))

        return Case(
            op=op,
            shape={"N": N, "F": F},
            make=make,
            outputs=("out",),
            ours=launchers({"production": function}, lambda b: (b.out, *inputs(b))),
            theirs={"torch": lambda b: lambda: theirs(b)},
            reference=lambda b: (Expected(formula(b.inp[rows].double()), rows),),
            n_bytes=n_bytes,
        )

    def one(b: Buffers) -> tuple[Tensor]:
        return (b.inp,)

    n = N * F
    return [
        case("zero", memory.zero, lambda b: (), lambda b: b.out.zero_(), torch.zeros_like, 2 * n),
        # not copy_, which in a graph is done by another engine, a fifth slower
        case("copy", memory.copy, one, lambda b: torch.add(b.inp, 0, out=b.out), torch.clone, 4 * n),
        case("cast", memory.cast, one, lambda b: b.out.copy_(b.inp), torch.clone, 6 * n, torch.float32),
    ]


def residual_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The residual stream plus what a block adds."""
    shape = sizes.n_places, sizes.C
    return [_elementwise("residual", residual.residual_forward, shape, torch.add, device, n_inputs=2)]


def gelu_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """GELU and its gradient."""
    shape = sizes.n_places, 4 * sizes.C
    return [
        _elementwise("gelu_forward", gelu.gelu_forward, shape, _gelu, device, n_inputs=1),
        _elementwise("gelu_backward", gelu.gelu_backward, shape, _gelu_backward, device, n_inputs=2),
    ]
