"""How a micro-batch costs the host little: its launches as one CUDA graph, its token ids through pinned memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kernels.launch import Prepared


class Replay:
    """Launches that are called again and again: one by one the first time, which compiles them, then as one graph.

    A launch from Python takes 30 microseconds and more, one out of a CUDA graph about one. The graph holds the
    addresses of the arrays, and this object keeps the launches, and with them the arrays. On a CPU there is no graph.

    Args:
        launches: prepared for `stream`.
        stream: where they run the first time and are captured (the default stream cannot be); None on a CPU.

    Source: CUDA C++ Programming Guide, CUDA graphs, stream capture.
    """

    def __init__(self, launches: Prepared, stream: torch.cuda.Stream | None) -> None:
        self._launches, self._stream = launches, stream
        self._compiled = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Launch them all, in the order of the current stream; the host does not wait."""
        if self._stream is None:
            self._launches()
        elif not self._compiled:
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            self._launches()
            current.wait_stream(self._stream)
            self._compiled = True
        else:
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # NCCL asks after its events from a thread of its own, which a capture in the mode "global" would forbid
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._launches()
        return graph


@dataclass
class _Staging:
    """Pinned memory, and when the device has read it."""

    memory: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    read: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class Uploader:
    """Copies integers to the device without stopping the host.

    Only from pinned memory a copy runs beside the host, and pinning takes long; so two pieces of it are kept and
    used in turns. The host waits for the copy before the last one, which limits how far it runs ahead.

    Args:
        device: where to; on a CPU the copies are plain.
    """

    def __init__(self, device: torch.device) -> None:
        self._turns = [_Staging(), _Staging()] if device.type == "cuda" else []

    def __call__(self, *copies: tuple[Tensor, np.ndarray]) -> None:
        """Copy each array of integers to its int32 tensor of equal size."""
        if not self._turns:
            for target, values in copies:
                target.copy_(torch.from_numpy(np.ascontiguousarray(values, np.int32)))
            return
        staging = self._turns.pop(0)
        self._turns.append(staging)
        staging.read.synchronize()
        size = sum(values.size for _, values in copies)
        if len(staging.memory) < size:
            staging.memory = torch.empty(size, dtype=torch.int32, pin_memory=True)
        start = 0
        for target, values in copies:
            part = staging.memory[start : start + values.size].view(target.shape)
            part.numpy()[...] = values
            target.copy_(part, non_blocking=True)
            start += values.size
        staging.read.record()
