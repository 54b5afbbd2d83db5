"""AdamW over flat buffers, with llm.c's decay groups, and the loss scale that fp16 needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2edu.parameters import Shard

BETAS = (0.9, 0.95)
EPSILON = 1e-8


@dataclass
class Span:
    """A contiguous run of the flat buffers whose elements are updated alike."""

    offset: int
    size: int
    state_offset: int
    decayed: bool


def merge_shards(shards: Iterable[Shard]) -> list[Span]:
    """Join shards that touch each other and are decayed alike: 10 spans instead of 148 for one rank's GPT-2 124M."""
    spans: list[Span] = []
    for shard in shards:
        last = spans[-1] if spans else None
        if last and last.offset + last.size == shard.offset and last.decayed == shard.tensor.decayed:
            last.size += shard.size
        else:
            spans.append(Span(shard.offset, shard.size, shard.state_offset, shard.tensor.decayed))
    return spans


class FlatAdamW:
    """torch's AdamW over views of flat buffers.

    The six matrices are decayed, biases and layernorms are not. The bias correction uses the run's step number, so
    a skipped step counts, as in llm.c.

    Attributes:
        m: (k,) fp32, mean of the gradients; k is the size of all `shards` together.
        v: (k,) fp32, mean of their squares.

    Source: Loshchilov & Hutter 2019, algorithm 2 (arXiv:1711.05101).
    """

    def __init__(self, flat_parameters: Tensor, flat_gradients: Tensor, shards: Iterable[Shard]) -> None:
        spans = merge_shards(shards)
        state_size = sum(span.size for span in spans)
        self.m = torch.zeros(state_size, device=flat_parameters.device)
        self.v = torch.zeros_like(self.m)
        self._steps = torch.zeros(len(spans), device=flat_parameters.device)
        self.gradients = [flat_gradients[span.offset : span.offset + span.size] for span in spans]
        groups: list[dict] = [{"params": [], "decayed": True}, {"params": [], "decayed": False}]
        # on a CPU the fused kernel rounds the last few elements of a view differently: sharding would show
        fused = flat_parameters.device.type == "cuda"
        states = {}
        for index, span in enumerate(spans):
            parameters = flat_parameters[span.offset : span.offset + span.size]
            parameters.grad = self.gradients[index]
            state = slice(span.state_offset, span.state_offset + span.size)
            states[parameters] = {"step": self._steps[index], "exp_avg": self.m[state], "exp_avg_sq": self.v[state]}
            groups[0 if span.decayed else 1]["params"].append(parameters)
        groups = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, fused=fused)
        self._adamw.state.update(states)

    @torch.no_grad()
    def update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> None:
        """Take optimizer step number `step` (from 1) with the gradients times `grad_scale`."""
        if grad_scale != 1.0:
            torch._foreach_mul_(self.gradients, grad_scale)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = weight_decay if group["decayed"] else 0.0
        self._steps.fill_(step - 1)  # AdamW adds the one
        self._adamw.step()


@dataclass
class LossScaler:
    """The factor that keeps small fp16 gradients from becoming zero: halved when a gradient overflows, doubled later.

    Source: Micikevicius et al. 2018, section 3.2 (arXiv:1710.03740); constants of torch.amp.GradScaler.
    """

    scale: float = 65536.0
    good_steps: int = 0  # since the scale last changed
    growth_interval: int = 2000
    smallest: float = 1.0

    def update(self, loss: float, grad_norm: float) -> bool:
        """Take in a step; return whether it overflowed, so that its gradients are to be thrown away.

        A gradient that is not finite although the scale is down to its smallest is no overflow but a defect.
        """
        if not math.isfinite(grad_norm):
            overflowed = math.isfinite(loss) and self.scale > self.smallest
            self.scale, self.good_steps = max(self.scale / 2, self.smallest), 0
            return overflowed
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0
        return False
