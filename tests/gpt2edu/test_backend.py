"""Which engine is chosen where, and that the reason is said."""

import types

import pytest
import torch

from gpt2edu import engine
from gpt2edu.backend import choose_backend, make_engine
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine
from gpt2edu.torch_engine import TorchEngine

CONFIG = ModelConfig.from_descriptor("d1,h2,c16,t8,v61")


@pytest.fixture
def gpu(monkeypatch):
    """A machine that seems to have an NVIDIA GPU of this capability."""
    monkeypatch.setattr(engine, "SIMULATED", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    return lambda *capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "settings", "backend", "reason"),
    [
        ((8, 0), {}, "numba", "NVIDIA X"),
        ((9, 0), {"zero_stage": 1}, "numba", "NVIDIA X"),
        ((9, 0), {"dtype": "fp16"}, "torch", "--dtype fp16"),
        ((9, 0), {"compile": 0}, "torch", "--compile"),
        ((7, 5), {}, "torch", "8.0"),
        ((8, 0), {"arch": "sm_90a"}, "torch", "Hopper"),
        ((9, 0), {"arch": "sm_90a"}, "numba", "NVIDIA X"),
        ((9, 0), {"backend": "torch"}, "torch", "--backend"),
        ((7, 5), {"backend": "numba"}, "numba", "--backend"),  # and the engine refuses
    ],
)
def test_on_a_gpu_the_kernels_are_used_where_they_can_be(gpu, capability, settings, backend, reason):
    gpu(*capability)
    chosen, note = choose_backend(TrainConfig(**settings), torch.device("cuda"))
    assert chosen == backend
    assert note.startswith(f"backend: {backend}, ") and reason in note and "\n" not in note


def test_without_an_nvidia_gpu_it_is_torch(gpu, monkeypatch):
    assert choose_backend(TrainConfig(), torch.device("cpu"))[0] == "torch"
    gpu(9, 4)
    monkeypatch.setattr(engine, "SIMULATED", True)  # as on an AMD GPU, which torch calls cuda, too
    assert choose_backend(TrainConfig(), torch.device("cuda"))[0] == "torch"


def test_without_numba_it_is_torch(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setitem(__import__("sys").modules, "gpt2edu.engine", types.ModuleType("gpt2edu.engine"))
    assert choose_backend(TrainConfig(), torch.device("cuda"))[0] == "torch"


def test_the_chosen_engine_is_made():
    device = torch.device("cpu" if engine.SIMULATED else "cuda")
    for backend, kind in (("numba", NumbaEngine), ("torch", TorchEngine)):
        settings = TrainConfig(backend=backend, dtype="fp32")
        assert type(make_engine(CONFIG, settings, SingleProcess(), device)) is kind
