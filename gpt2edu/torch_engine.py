"""The textbook model trained by PyTorch: autograd, autocast, torch.compile, and the memory it takes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2edu.averaging import Overlapped
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.model import GPT2, named_views
from gpt2edu.optimizer import FlatAdamW, LossScaler
from gpt2edu.parameters import shards_of_rank

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MEMORY_MARGIN = 0.92  # of the free memory; the rest is for fragmentation and libraries


def choose_device(name: str | None) -> torch.device:
    """Return the device to train on: the named one, or the first there is of cuda, mps and cpu.

    Raises:
        UsageError: the named device does not exist here.
    """
    there = [kind for kind, module in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if module.is_available()]
    there.append("cpu")
    try:
        device = torch.device(name or there[0])
    except RuntimeError:
        device = None
    if device is None or device.type not in there:
        raise UsageError(f"--device {name} does not exist here; choose one of {', '.join(there)}")
    return device


def choose_dtype(name: str | None, device: torch.device) -> tuple[str, str]:
    """Return the type of the matrix products and the reason for it."""
    if name:
        return name, f"{name}, chosen with --dtype"
    if device.type != "cuda":
        return "fp32", f"fp32, because the device is {device.type}"
    # torch's own is_bf16_supported() says yes on Turing too, where bf16 is emulated and slow
    major, minor = torch.cuda.get_device_capability(device)
    gpu = f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}"
    if (major, minor) >= (8, 0):
        return "bf16", f"bf16, because {gpu} (8.0 or more)"
    return "fp16", f"fp16 with loss scaling, because {gpu} (bf16 needs 8.0)"


def choose_compile(wanted: int | None, device: torch.device) -> tuple[bool, str]:
    """Return whether to use torch.compile and the reason for it."""
    if wanted is not None:
        return bool(wanted), f"{'on' if wanted else 'off'}, chosen with --compile"
    if device.type != "cuda":
        return False, f"off, because the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "off, because the package triton is missing"
    return True, "on; the first step takes its time"


class TorchEngine:
    """Forward, backward and update of one rank; `gpt2edu.engine_protocol.Engine` documents the methods.

    Args:
        config: the model's shape; its weights are zero until `load_parameters`.
        settings: of the run; `micro_batch` may still be None, and is read when training begins.
        communicator: the ranks.
        device: this rank's.

    Raises:
        Gpt2EduError: weights, gradients and optimizer state do not fit the device's memory.
    """

    def __init__(
        self, config: ModelConfig, settings: TrainConfig, communicator: Communicator, device: torch.device
    ) -> None:
        self.config, self.settings, self.communicator, self.device = config, settings, communicator, device
        self.dtype, reason = choose_dtype(settings.dtype, device)
        self.notes = [f"precision: {reason}"]
        self.scaler = LossScaler() if self.dtype == "fp16" else None
        self.overflowed = False
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        sharded = settings.zero_stage == 1
        owner = (communicator.rank, communicator.world_size)
        self._own_shards = list(shards_of_rank(config, *owner))
        try:
            self.model = GPT2(config, device=device)
            self.model.allocate_gradients()
            self.flat_parameters = self.model.flat_parameters
            self._gradients = self.model.flat_gradients
            updated = self._own_shards if sharded else shards_of_rank(config, 0, 1)
            self.optimizer = FlatAdamW(self.flat_parameters, self._gradients, updated)
        except torch.OutOfMemoryError as problem:
            raise Gpt2EduError(
                f"-e {settings.model}: weights, gradients and optimizer state do not fit the memory of {device}; "
                "use a smaller model, or more GPUs with -z 1"
            ) from problem
        self.model.recompute = settings.recompute
        self._own_gradients = [self._gradients[s.own] for s in self._own_shards]
        self.averaging = Overlapped(communicator, self._gradients, self._own_shards, DTYPES[settings.grad_dtype])
        self._n_accumulated = 0  # micro-batches of the step under way
        self._n_incomplete: list[int] = []  # gradients of each bucket in the last micro-batch; empty before it
        if communicator.world_size > 1:
            self._watch_gradients()
        self._loss_sum = torch.zeros((), device=device)
        self._at_step_start = True
        self._held_bytes: int | None = None  # before the first step
        compiles, reason = choose_compile(settings.compile, device)
        self._compiled_losses = torch.compile(self.model.losses, dynamic=False) if compiles else self.model.losses
        self.notes.append(f"torch.compile: {reason}")

    def _watch_gradients(self) -> None:
        """Have every bucket reported as soon as the last micro-batch's backward pass has added to all its gradients.

        Out of a model that torch.compile has made one piece of they all come at the end.
        """
        paths = [path for path, _ in named_views(self.config, self._gradients)]
        path_of_shard = dict(zip(self._own_shards, paths, strict=True))
        for number, bucket in enumerate(self.averaging.buckets):
            for shard in bucket:
                parameter = self.model.get_parameter(path_of_shard[shard])
                parameter.register_post_accumulate_grad_hook(functools.partial(self._note_gradient, number))

    def _note_gradient(self, bucket: int, _parameter: Tensor) -> None:
        if self._n_incomplete:
            self._n_incomplete[bucket] -= 1
            if self._n_incomplete[bucket] == 0:
                self.averaging.ready(bucket)

    def _upload(self, tokens_BT: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(tokens_BT)
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return tokens.to(self.device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def accumulate(self, inputs_BT: np.ndarray, targets_BT: np.ndarray, n_micro_steps: int) -> None:
        """Add the gradients of a micro-batch."""
        if self._at_step_start:
            if self.device.type == "cuda" and self._held_bytes is None:
                self._held_bytes = torch.cuda.memory_allocated(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
            self._gradients.zero_()
            self._loss_sum.zero_()
            self._at_step_start, self._n_accumulated = False, 0
        self._n_accumulated += 1
        if self._n_accumulated == n_micro_steps:
            self._n_incomplete = [len(bucket) for bucket in self.averaging.buckets]
        with self._autocast():
            losses_BT = self._compiled_losses(self._upload(inputs_BT), self._upload(targets_BT))
        loss = losses_BT.mean() / n_micro_steps
        (loss * self.scaler.scale if self.scaler else loss).backward()
        self._loss_sum += loss.detach()

    def reduce(self) -> tuple[float, float]:
        """Average over ranks; each rank has the mean gradients of its shards, and of all with -z 0."""
        self._at_step_start, self._n_incomplete = True, []
        self.averaging.finish()
        own_norm = torch.nn.utils.get_total_norm(self._own_gradients)
        if self.settings.zero_stage == 0:
            self.averaging.gather()
        own = torch.stack([self._loss_sum, own_norm]).tolist()  # the only place of a step where the host waits
        ranks = self.communicator.gather(own)
        loss = sum(loss for loss, _ in ranks) / len(ranks)
        grad_norm = sum(norm * norm for _, norm in ranks) ** 0.5
        if self.scaler:
            grad_norm /= self.scaler.scale
            self._unscale = 1.0 / self.scaler.scale
            self.overflowed = self.scaler.update(loss, grad_norm)
        return loss, grad_norm

    def update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> None:
        """Take an AdamW step; with -z 1 each rank updates its shards and all gather the parameters."""
        if self.scaler:
            grad_scale *= self._unscale
        self.optimizer.update(learning_rate, weight_decay, grad_scale, step)
        if self.settings.zero_stage == 1:
            self.communicator.all_gather(self.flat_parameters, self._own_shards)

    @torch.no_grad()
    def losses(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Tensor:
        """Return every token's loss; batches of the training shape go through the compiled model."""
        whole = inputs_BT.shape == (self.settings.micro_batch, self.settings.seq_len)
        with self._autocast():
            return (self._compiled_losses if whole else self.model.losses)(
                self._upload(inputs_BT), self._upload(targets_BT)
            )

    def load_parameters(self, flat: Tensor) -> None:
        """Copy weights into the model's."""
        self.flat_parameters.copy_(flat)

    def whole_parameters(self) -> Tensor:
        """Return the model's weights, which every rank has."""
        return self.flat_parameters

    def state_arrays(self) -> dict[str, Tensor]:
        """Return AdamW's m and v; the weights themselves are fp32, so there are no master weights."""
        return {"m": self.optimizer.m, "v": self.optimizer.v}

    def load_state_arrays(self, arrays: dict[str, Any]) -> None:
        """Copy m and v (NumPy arrays or tensors of the same size) into the optimizer."""
        for name, own in self.state_arrays().items():
            own.copy_(torch.as_tensor(arrays[name]))

    def extra_state(self) -> dict[str, Any]:
        """Return the loss scaler's state, None without one."""
        return {"loss_scaler": dataclasses.asdict(self.scaler) if self.scaler else None}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore the loss scaler, when this run and the saved one have it."""
        if self.scaler and extra.get("loss_scaler"):
            self.scaler = LossScaler(**extra["loss_scaler"])

    # ------------------------------------------------------------------------------------------------
    # memory

    def memory_notes(self) -> list[str]:
        """Return what the first step showed about the device's memory."""
        if self._held_bytes is None:
            return []
        free, total = torch.cuda.mem_get_info(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        per_sequence = max((peak - self._held_bytes) // self.settings.micro_batch, 1)
        unused = free + torch.cuda.memory_reserved(self.device) - peak
        return [
            f"device memory usage: {(total - free) >> 20} MiB / {total >> 20} MiB",
            f"memory per sequence: {per_sequence >> 20} MiB",
            f" -> estimated maximum batch size: {self.settings.micro_batch + max(unused, 0) // per_sequence}",
        ]

    def largest_micro_batch(self, candidates: list[int]) -> int:
        """Return the largest of the ascending `candidates` whose forward and backward pass fits the memory, 0 if none.

        Measured on passes of 1 and 2 sequences without torch.compile, which needs less. Gradients are lost. Without
        a memory to measure (CPU) it is the largest up to 16.
        """
        if self.device.type != "cuda":
            return max((rows for rows in candidates if rows <= 16), default=candidates[0])
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - held
        try:
            one, two = (self._peak_bytes(rows, self.model.losses) - held for rows in (1, 2))
        except torch.OutOfMemoryError:
            return candidates[0] if candidates[0] == 1 else 0
        n_fitting = 1 + int((MEMORY_MARGIN * free - one) // max(two - one, 1))
        return max((rows for rows in candidates if rows <= n_fitting), default=0)

    def fits(self, n_rows: int) -> bool:
        """Try a micro-batch as training would run it; False where there is no memory to measure. Gradients are lost."""
        if self.device.type != "cuda":
            return False
        torch.cuda.empty_cache()
        try:
            self._peak_bytes(n_rows, self._compiled_losses)
        except torch.OutOfMemoryError:
            return False
        return True

    def _peak_bytes(self, n_rows: int, losses: Callable[[Tensor, Tensor], Tensor]) -> int:
        """Return the most memory that was in use during a forward and backward pass."""
        torch.cuda.reset_peak_memory_stats(self.device)
        tokens_BT = torch.zeros(n_rows, self.settings.seq_len, dtype=torch.int64, device=self.device)
        with self._autocast():
            loss = losses(tokens_BT, tokens_BT).mean()
        loss.backward()
        self._gradients.zero_()
        return torch.cuda.max_memory_allocated(self.device)
