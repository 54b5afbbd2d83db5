"""What the trainer needs of an engine: a model whose parameters, gradients and optimizer state live on a device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from gpt2edu.averaging import AllReduce
from gpt2edu.config import ModelConfig


class Engine(Protocol):
    """Forward, backward and update of one rank. Shapes: B sequences of a micro-batch, T tokens."""

    config: ModelConfig
    model: Any  # a GPT2 or what looks like one to `sample.generate`
    dtype: str  # of the matrix products: bf16, fp16 or fp32
    notes: list[str]  # what was decided and why, a sentence each
    averaging: AllReduce  # of the gradients over ranks, one of the ways in `gpt2edu.averaging`
    overflowed: bool  # the last `reduce` met an fp16 overflow: throw the step away, it is not an error

    def accumulate(self, inputs_BT: np.ndarray, targets_BT: np.ndarray, n_micro_steps: int) -> None:
        """Add the gradients of a micro-batch's mean loss / `n_micro_steps`; the host does not wait."""

    def reduce(self) -> tuple[float, float]:
        """Average loss and gradients over micro-batches and ranks; return (loss, gradient norm). The host waits."""

    def update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> None:
        """Take optimizer step number `step` (from 1) with the gradients times `grad_scale`."""

    def losses(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Tensor:
        """Return the (B, T) fp32 loss of every token, in nats, without gradients."""

    def memory_notes(self) -> list[str]:
        """Return llm.c's lines about device memory, after the first step; nothing where the device does not know."""

    def largest_micro_batch(self, candidates: list[int]) -> int:
        """Return the largest of the ascending `candidates` that fits the memory, 0 if none; gradients are lost."""

    def fits(self, n_rows: int) -> bool:
        """Try whether a micro-batch of `n_rows` fits the memory; gradients are lost."""

    def load_parameters(self, flat: Tensor) -> None:
        """Take over weights (n,) fp32, on any device; every rank has the same."""

    def whole_parameters(self) -> Tensor:
        """Return all weights (n,) fp32, on any device; every rank calls this, for they may lie on several."""

    def state_arrays(self) -> dict[str, Tensor]:
        """Return this rank's optimizer state, by name: flat fp32 arrays of equal size."""

    def load_state_arrays(self, arrays: dict[str, Any]) -> None:
        """Take over what `state_arrays` gave."""

    def extra_state(self) -> dict[str, Any]:
        """Return what else a resume needs, as JSON."""

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take over what `extra_state` gave."""
