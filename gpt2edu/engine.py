"""The numba engine: forward, backward and update of one rank with hand-written kernels over flat buffers.

PyTorch gives the memory and moves it; every number is computed by a function of `kernels`. A batch's launches are
prepared once for its shape (`gpt2edu.passes`), captured in a CUDA graph and replayed. In bf16 the weights that the
kernels read are a bfloat16 copy of the fp32 master weights: at every update matrices are rounded stochastically,
vectors to nearest (`kernel_adamw`).

Shape suffix legend: B batch, T time, P padded vocabulary.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gpt2edu.activations import activation_buffers, arena_bytes, cut_arena
from gpt2edu.averaging import Overlapped
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.generation import SampleModel
from gpt2edu.kernel_adamw import KernelAdamW
from gpt2edu.kernel_start import compile_ahead, tuning_note
from gpt2edu.parameters import parameter_layout
from gpt2edu.passes import Passes
from gpt2edu.replay import Replay, Uploader
from gpt2edu.torch_engine import DTYPES, MEMORY_MARGIN, choose_dtype
from kernels import SIMULATED
from kernels.architecture import force_architecture
from kernels.global_norm import sum_scratch_size, total
from kernels.launch import Prepared
from kernels.memory import zero
from kernels.token_plan import plan_token_gradient

PassesKind = TypeVar("PassesKind", bound=Passes)
MAX_SHAPES = 32  # whose launches are kept


def refuse(settings: TrainConfig, device: torch.device, dtype: str) -> None:
    """Raise UsageError where this engine cannot run."""
    if SIMULATED and device.type != "cpu":
        raise UsageError(f"--backend numba: kernels are simulated here, on the CPU; use --device cpu, not {device}")
    if not SIMULATED and device.type != "cuda":
        raise UsageError(
            f"--backend numba: kernels are compiled for the GPU here, not for {device}; use --device cuda, or simulate "
            "a tiny model on the CPU with the environment variable NUMBA_ENABLE_CUDASIM=1"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(
            f"--backend numba needs a GPU of compute capability 8.0 or more, not {torch.cuda.get_device_name(device)}; "
            "use --backend torch"
        )
    if settings.arch == "sm_90a" and device.type == "cuda" and torch.cuda.get_device_capability(device) != (9, 0):
        raise UsageError(f"--arch sm_90a is for Hopper GPUs, not for {torch.cuda.get_device_name(device)}; use sm_80")
    if dtype == "fp16":
        raise UsageError("--dtype fp16 is for --backend torch only; use --dtype bf16 or fp32")
    if dtype == "bf16" and not settings.master_weights:
        raise UsageError("-w 0: --backend numba always has fp32 master weights; leave out -w 0")


@dataclass(frozen=True)
class Batch:
    """What is prepared for micro-batches of one shape."""

    activations: SimpleNamespace
    pieces: list[Replay]  # with several ranks one for each bucket of gradients that it completes, otherwise one
    embedding_gradient: Replay
    zero_losses: Prepared
    sum_losses: Prepared
    n_tokens: int  # of an optimizer step, on this rank


class NumbaEngine:
    """Forward, backward and update of one rank; `gpt2edu.engine_protocol.Engine` documents the methods.

    Args:
        config: the model's shape; its weights are zero until `load_parameters`.
        settings: of the run; `micro_batch` may still be None.
        communicator: the ranks.
        device: this rank's GPU, or the CPU in the simulator.

    Raises:
        UsageError: the settings or the device are not for this engine.
        Gpt2EduError: weights, gradients and optimizer state do not fit the device's memory.
    """

    overflowed = False  # only fp16 does

    def __init__(
        self, config: ModelConfig, settings: TrainConfig, communicator: Communicator, device: torch.device
    ) -> None:
        self.config, self.settings, self.communicator, self.device = config, settings, communicator, device
        self.dtype, reason = choose_dtype(settings.dtype, device)
        refuse(settings, device, self.dtype)
        force_architecture(settings.arch)
        where = (
            "simulated on the CPU, slowly: for tiny models only"
            if SIMULATED
            else "compiled for this GPU when first used, and kept on disk"
        )
        self.notes = [f"precision: {reason}", f"kernels: {where}"]
        if not SIMULATED:
            self.notes.append(tuning_note(device))
        self._sums = torch.zeros(2, device=device)  # the losses' and the squared gradients', for one copy to the host
        bf16 = self.dtype == "bf16"
        try:
            self._adamw = KernelAdamW(config, bf16, communicator, settings.zero_stage, self._sums[1:])
        except torch.OutOfMemoryError as problem:
            raise Gpt2EduError(
                f"-e {settings.model}: weights, gradients and optimizer state do not fit the memory of {device}; "
                "use a smaller model, or more GPUs with -z 1"
            ) from problem
        self.flat_parameters = self._adamw.master
        self._read_parameters, self._gradients = self._adamw.parameters, self._adamw.gradients
        self.averaging = Overlapped(communicator, self._gradients, self._adamw.shards, DTYPES[settings.grad_dtype])
        tensors = parameter_layout(config)
        self._weights = SimpleNamespace(**{t.name: t.view(self._read_parameters) for t in tensors})
        self._weight_gradients = SimpleNamespace(**{t.name: t.view(self._gradients) for t in tensors})
        self._start_step = zero.prepare(self._gradients)
        self._arena = torch.empty(0, dtype=torch.uint8, device=device)
        self._prepared: OrderedDict[tuple, Batch] = OrderedDict()
        self._batch: Batch | None = None  # of the step under way
        self._upload = Uploader(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._at_step_start = True
        self._n_accumulated = 0  # micro-batches of the step under way
        self.model = SampleModel(config, self._weights, self.flat_parameters, self._stream, self.forward)

    # ------------------------------------------------------------------------------------------------
    # batches

    def _prepare(self, B: int, T: int, n_micro_steps: int | None) -> Batch:
        """Return the buffers and launches of a shape; without `n_micro_steps` those of an evaluation."""
        shape = (B, T, n_micro_steps)
        if shape in self._prepared:
            self._prepared.move_to_end(shape)
            return self._prepared[shape]
        buffers = activation_buffers(self.config, B, T, DTYPES[self.dtype], self.settings.recompute)
        if arena_bytes(buffers) > len(self._arena):
            self._free_arena()  # before the larger one is there
            self._arena = torch.empty(arena_bytes(buffers), dtype=torch.uint8, device=self.device)
        activations = cut_arena(self._arena, buffers)
        passes = self._passes(activations, Passes)
        pieces = passes.micro_step_by_layer(1 / (B * T * n_micro_steps)) if n_micro_steps else [passes.evaluation()]
        if self.communicator.world_size == 1:
            pieces = [Prepared(itertools.chain(*pieces))]
        embedding_gradient, zero_losses = passes.embedding_gradient(), zero.prepare(activations.losses)
        sum_losses = total.prepare(self._sums[:1], self._sums.new_empty(sum_scratch_size(B * T)), activations.losses)
        of_steps = [self._start_step, zero_losses, embedding_gradient, sum_losses, self._adamw.launches()]
        compile_ahead(itertools.chain(*pieces, *(of_steps if n_micro_steps else [])), self.communicator)
        self._prepared[shape] = Batch(
            activations,
            [Replay(piece, self._stream) for piece in pieces],
            Replay(embedding_gradient, self._stream),
            zero_losses,
            sum_losses,
            n_tokens=B * T * (n_micro_steps or 1),
        )
        if len(self._prepared) > MAX_SHAPES:
            self._prepared.popitem(last=False)
        return self._prepared[shape]

    def _passes(self, activations: SimpleNamespace, kind: type[PassesKind]) -> PassesKind:
        stream = self._stream.cuda_stream if self._stream else 0
        state = self.config, self._weights, self._weight_gradients, activations, self.settings.recompute
        return kind(*state, stream)

    def recorded_passes(self, B: int, T: int, n_micro_steps: int, kind: type[PassesKind]) -> PassesKind:
        """Return the passes of a micro-batch as another kind of `Passes` records them, over the same buffers."""
        return self._passes(self._prepare(B, T, n_micro_steps).activations, kind)

    def _free_arena(self) -> None:
        """Give the activations' memory back, with the launches that use it."""
        self._prepared.clear()
        self._batch = None
        self._arena = self._arena.new_empty(0)

    def accumulate(self, inputs_BT: np.ndarray, targets_BT: np.ndarray, n_micro_steps: int) -> None:
        """Add the gradients of a micro-batch; those of one step are of equal shape."""
        self._adamw.publish()
        batch = self._prepare(*inputs_BT.shape, n_micro_steps)
        if self._at_step_start:
            self._start_step()
            batch.zero_losses()
            self._at_step_start, self._n_accumulated = False, 0
        self._n_accumulated += 1
        last = self._n_accumulated == n_micro_steps
        a = batch.activations
        self._upload((a.inputs, inputs_BT), (a.targets, targets_BT))
        for bucket, piece in enumerate(batch.pieces):
            piece()
            if last:
                self.averaging.ready(bucket)
        self._upload((a.plan, plan_token_gradient(inputs_BT)))  # the host plans while the device works
        batch.embedding_gradient()
        self._batch = batch

    def reduce(self) -> tuple[float, float]:
        """Average over ranks; the norm is that of the ranks' shards, added in rank order."""
        self._at_step_start = True
        self._batch.sum_losses()
        self.averaging.finish()
        self._adamw.take_mean()
        if not self._adamw.sharded:
            self.averaging.gather()
        ranks = self.communicator.gather(self._sums.tolist())  # the only place of a step where the host waits
        loss_sum, squared = (sum(values) for values in zip(*ranks, strict=True))
        return loss_sum / (self._batch.n_tokens * len(ranks)), squared**0.5

    def losses(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> Tensor:
        """Return every token's loss."""
        return self._evaluate(inputs_BT, targets_BT).losses.clone()

    def logits(self, inputs_BT: np.ndarray) -> Tensor:
        """Return the scores (B, T, P) of every next token; the columns from V on are padding."""
        return self.forward(inputs_BT).logits.clone()

    def forward(self, inputs_BT: np.ndarray) -> SimpleNamespace:
        """Return the activations of a batch; they stay until the next one."""
        return self._evaluate(inputs_BT, np.zeros_like(inputs_BT))

    def _evaluate(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> SimpleNamespace:
        self._adamw.publish()
        batch = self._prepare(*inputs_BT.shape, None)
        self._upload((batch.activations.inputs, inputs_BT), (batch.activations.targets, targets_BT))
        batch.pieces[0]()
        return batch.activations

    # ------------------------------------------------------------------------------------------------
    # weights and optimizer

    def update(self, learning_rate: float, weight_decay: float, grad_scale: float, step: int) -> None:
        """Take an AdamW step."""
        self._adamw.update(learning_rate, weight_decay, grad_scale, step)

    def load_parameters(self, flat: Tensor) -> None:
        """Take over weights."""
        self._adamw.fill(flat)

    def whole_parameters(self) -> Tensor:
        """Return the fp32 weights."""
        return self._adamw.whole()

    def state_arrays(self) -> dict[str, Tensor]:
        """Return AdamW's m and v, and in bf16 the fp32 master weights."""
        return self._adamw.state_arrays()

    def load_state_arrays(self, arrays: dict[str, Any]) -> None:
        """Copy what is there of m, v and master weights."""
        self._adamw.load_state_arrays(arrays)

    def extra_state(self) -> dict[str, Any]:
        """Return the seed that the last update rounded with."""
        return self._adamw.extra_state()

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore the seed."""
        self._adamw.load_extra_state(extra)

    # ------------------------------------------------------------------------------------------------
    # memory

    def _activation_bytes(self, n_rows: int) -> int:
        shape = n_rows, self.settings.seq_len
        return arena_bytes(activation_buffers(self.config, *shape, DTYPES[self.dtype], self.settings.recompute))

    def _free_bytes(self) -> int:
        """Return the device's memory that is free beside weights, gradients and optimizer state."""
        allocated = torch.cuda.memory_allocated(self.device)
        unused = torch.cuda.memory_reserved(self.device) - allocated + len(self._arena)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def memory_notes(self) -> list[str]:
        """Return how much memory is used, and how much a sequence takes."""
        if self.device.type != "cuda":
            return []
        free, whole = torch.cuda.mem_get_info(self.device)
        per_sequence = self._activation_bytes(2) - self._activation_bytes(1)
        return [
            f"device memory usage: {(whole - free) >> 20} MiB / {whole >> 20} MiB",
            f"memory per sequence: {per_sequence >> 20} MiB",
            f" -> estimated maximum batch size: {self._free_bytes() // per_sequence}",
        ]

    def largest_micro_batch(self, candidates: list[int]) -> int:
        """Return the largest of the ascending `candidates` that fits, 0 if none; on a CPU the largest up to 16."""
        if self.device.type != "cuda":
            return max((rows for rows in candidates if rows <= 16), default=candidates[0])
        return max((rows for rows in candidates if self.fits(rows)), default=0)

    def fits(self, n_rows: int) -> bool:
        """Compare the activations' bytes with the free memory; False where there is no memory to measure."""
        return self.device.type == "cuda" and self._activation_bytes(n_rows) <= MEMORY_MARGIN * self._free_bytes()
