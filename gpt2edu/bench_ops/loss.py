"""Loss, norm of the gradients and update as bench cases; what comes once a micro-batch or once a step.

Letters: N places, V vocabulary, P padded vocabulary; in the norm and the update N elements, S tensors, M = S + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from gpt2edu.bench_ops.case import Buffers, Call, Case, Draw, Expected, Sizes, ladder, launchers, sampled_rows
from gpt2edu.config import ModelConfig
from gpt2edu.optimizer import BETAS, EPSILON
from gpt2edu.parameters import n_parameters, parameter_layout
from kernels import adamw, classifier, global_norm

LEARNING_RATE, WEIGHT_DECAY = 6e-4, 0.1
STEP = 1  # number of the update
ROUNDED_STOCHASTICALLY = 2.0**-7  # a whole step of bfloat16, relative


def classifier_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """Each place's loss, and the gradient of the logits."""
    config = ModelConfig.from_descriptor(sizes.model)
    N, V, P = sizes.n_places, config.vocab_size, config.padded_vocab_size
    rows = sampled_rows(N, device)

    def make(draw: Draw) -> Buffers:
        losses = draw.unwritten(N, dtype=torch.float32)
        return Buffers(losses=losses, logits=draw.normal(N, P), targets=draw.integers(V, N))

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        padding = torch.arange(P, device=device) >= V
        return functional.cross_entropy(logits.masked_fill(padding, -torch.inf), targets, reduction="none")

    def loss_and_gradient(chosen: Callable, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        found = chosen(logits, targets)
        (gradient,) = torch.autograd.grad(found, logits, torch.full_like(found, 1 / N))
        return found.detach(), gradient

    def reference(b: Buffers) -> tuple[Expected, ...]:
        found = loss_and_gradient(losses, b.logits[rows].double(), b.targets[rows].long())
        return tuple(Expected(x, rows) for x in found)

    compiles = device.type == "cuda"  # without it several fp32 copies of the logits would not fit
    chosen = torch.compile(lambda x, t: losses(x.float(), t), dynamic=False) if compiles else losses

    def theirs(b: Buffers) -> Call:
        targets = b.targets.long()
        return lambda: loss_and_gradient(chosen, b.logits, targets)

    return [
        Case(
            op="classifier",
            shape={"N": N, "V": V},
            make=make,
            outputs=("losses", "logits"),
            ours=launchers(
                ladder(classifier.LADDER, "fused_classifier", classifier.fused_classifier),
                lambda b: (b.losses, b.logits, b.targets, V, 1 / N),
            ),
            theirs={"torch.compile" if compiles else "torch": theirs},
            reference=reference,
            n_bytes=4 * N * P + 8 * N,
        )
    ]


def global_norm_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The sum of the squares of all gradients."""
    N = n_parameters(ModelConfig.from_descriptor(sizes.model))

    def make(draw: Draw) -> Buffers:
        scratch = draw.unwritten(global_norm.sum_scratch_size(N), dtype=torch.float32)
        return Buffers(out=draw.unwritten(1, dtype=torch.float32), scratch=scratch, inp=draw.normal(N).float())

    return [
        Case(
            op="global_norm",
            shape={"N": N},
            make=make,
            outputs=("out",),
            ours=launchers({"production": global_norm.squared_norm}, lambda b: (b.out, b.scratch, b.inp)),
            theirs={"torch": lambda b: lambda: torch.linalg.vector_norm(b.inp)},
            reference=lambda b: (Expected(b.inp.double().square().sum().view(1)),),
            arrange=lambda _b, norm: (norm.double().square().view(1),),
            n_bytes=4 * N,
            dtype="fp32",
        )
    ]


def adamw_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """The update of all weights of the model."""
    layout = parameter_layout(ModelConfig.from_descriptor(sizes.model))
    bounds = [0, *(tensor.offset + tensor.size for tensor in layout)]
    decay = [WEIGHT_DECAY * tensor.decayed for tensor in layout]
    N = bounds[-1]

    def make(draw: Draw) -> Buffers:
        state = {name: draw.normal(N, dtype=torch.float32) for name in ("master", "m", "grad")}
        v = draw.normal(N, dtype=torch.float32).square_()
        tables = {"bounds": torch.tensor(bounds, device=device), "decay": torch.tensor(decay, device=device)}
        return Buffers(param=draw.unwritten(N), v=v, **state, **tables)

    def arguments(b: Buffers) -> tuple:
        tensors = b.param, b.master, b.m, b.v, b.grad, b.bounds, b.decay
        return *tensors, LEARNING_RATE, *BETAS, EPSILON, 1.0, STEP

    return [
        Case(
            op="adamw",
            shape={"N": N},
            make=make,
            outputs=("master", "m", "v", "param"),
            ours=launchers(ladder(adamw.LADDER, "adamw_update", adamw.adamw_update), arguments),
            theirs={"torch": lambda b: _fused_adamw(b, bounds, decay)},
            reference=_adamw_reference,
            n_bytes=30 * N,
        )
    ]


def _adamw_reference(b: Buffers) -> tuple[Expected, ...]:
    grad = b.grad.double()
    m = BETAS[0] * b.m.double() + (1 - BETAS[0]) * grad
    v = BETAS[1] * b.v.double() + (1 - BETAS[1]) * grad.square_()
    decay_N = b.decay.double().repeat_interleave(b.bounds.diff())
    change = (m / (1 - BETAS[0] ** STEP)) / ((v / (1 - BETAS[1] ** STEP)).sqrt_() + EPSILON)
    master = b.master.double()
    master -= LEARNING_RATE * (change + decay_N * master)
    one_step = ROUNDED_STOCHASTICALLY * master.abs().max().item()
    return Expected(master), Expected(m), Expected(v), Expected(master, tolerance=one_step)


def _fused_adamw(b: Buffers, bounds: list[int], decay: list[float]) -> Call:
    """Return torch's fused update, one launch for the tensors that decay alike; it has no bfloat16 copy to write."""
    groups = []
    for weight_decay in sorted(set(decay)):
        spans = [slice(*span) for span, own in zip(pairwise(bounds), decay, strict=True) if own == weight_decay]
        lists = [[buffer[span] for span in spans] for buffer in (b.master, b.grad, b.m, b.v)]
        steps = [torch.full((), float(STEP), device=b.master.device) for _ in spans]
        groups.append((*lists, [], steps, weight_decay))
    numbers = {"lr": LEARNING_RATE, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPSILON}

    def update() -> tuple[Tensor | None, ...]:
        for *tensors, weight_decay in groups:
            torch._fused_adamw_(*tensors, weight_decay=weight_decay, amsgrad=False, maximize=False, **numbers)
        return b.master, b.m, b.v, None

    return update
