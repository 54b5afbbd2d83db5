"""Which engine trains: the hand-written kernels where they run, PyTorch elsewhere."""

from __future__ import annotations

import torch

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import Communicator
from gpt2edu.engine_protocol import Engine
from gpt2edu.errors import UsageError
from gpt2edu.torch_engine import TorchEngine, choose_dtype


def choose_backend(settings: TrainConfig, device: torch.device) -> tuple[str, str]:
    """Return the backend and the reason for it.

    Without `--backend` it is numba on NVIDIA GPUs of compute capability 8.0 or more, unless the run asks for what only
    PyTorch does here.
    """
    if settings.backend:
        return settings.backend, f"backend: {settings.backend}, chosen with --backend"
    if device.type != "cuda":
        return "torch", f"backend: torch, because the device is {device.type}"
    if settings.compile is not None:
        return "torch", "backend: torch, because --compile is a flag of that one"
    try:
        from gpt2edu.engine import refuse  # here: who does not use Numba need not have it

        refuse(settings, device, choose_dtype(settings.dtype, device)[0])
    except (ImportError, UsageError) as problem:
        return "torch", f"backend: torch, because the kernels cannot be used ({problem})"
    return "numba", f"backend: numba, because the device is {torch.cuda.get_device_name(device)}"


def make_engine(config: ModelConfig, settings: TrainConfig, communicator: Communicator, device: torch.device) -> Engine:
    """Return the engine that `--backend` names."""
    if settings.backend == "numba":
        from gpt2edu.engine import NumbaEngine  # here: who does not use Numba need not have it

        return NumbaEngine(config, settings, communicator, device)
    return TorchEngine(config, settings, communicator, device)
