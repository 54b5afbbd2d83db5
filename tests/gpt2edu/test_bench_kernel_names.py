"""What runs on the device: our kernels, copies and fills; and what the numba engine asks of torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from gpt2edu import bench
from gpt2edu.bench_kernel_names import is_allowed, python_name
from gpt2edu.config import ModelConfig
from gpt2edu.errors import UsageError
from gpt2edu.results import load_results

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import batch, make_engine, take_step

TOY = ["kernel_names", "-e", "d2,h2,c128,t64,v300", "-b", "4", "-t", "64"]
PHASES = {"optimizer_step", "validation", "hellaswag", "sampling"}

# an inner function as numba-cuda 0.30 names it, and as c++filt reads that
MANGLED = (
    "_ZN7kernels9attention14step4_backward22make_grad_query_kernel12_3clocals_3e17grad_query_kernelB2v1B10"
    "2cw51cXTLSUwv1sDUaKthqaNgoKOgnqiuqaOAFAC24LAFBjFabNuCUh5EGJKwkARQEwtMAsnxttXqsCBVt1KARo06UBLIM67VBAA_3dE5Array"
    "ItLi1E1C7mutable7alignedExxf"
)
READABLE = "kernels::memory::zero_kernel[abi:v7][abi:cw51c](Array<float, 1, C, mutable, aligned>, long long)"


def test_device_names_lead_to_functions():
    inner = "kernels.attention.step4_backward.make_grad_query_kernel.<locals>.grad_query_kernel"
    assert python_name(MANGLED) == python_name(MANGLED.replace("_ZN", "_ZN6cudapy")) == inner
    assert python_name(READABLE) == python_name(f"cudapy::{READABLE}") == "kernels.memory.zero_kernel"
    for other in ("kernels::memory::unknown_kernel(int)", "_ZN2at6native18elementwise_kernelE", "Memset (Device)"):
        assert python_name(other) is None


def test_only_kernels_copies_and_nccl_are_allowed():
    for name in ("kernels.memory.zero_kernel", "Memcpy HtoD (Pinned -> Device)", "ncclDevKernel_ReduceScatter"):
        assert is_allowed(name)
    for name in ("void at::native::elementwise_kernel<4>", "sm90_xmma_gemm_bf16", "cudnn_flash", READABLE):
        assert not is_allowed(name)


def names_of(results):
    return {phase: {row["variant"] for row in results.rows if row["op"] == phase} for phase in PHASES}


def check_names(results):
    names = names_of(results)
    assert all(names.values())
    foreign = {name for found in names.values() for name in found if not is_allowed(name)}
    assert not foreign
    for kernel in ("matmul", "attention", "layernorm", "classifier", "encoder"):
        assert all(any(f"kernels.{kernel}" in name for name in names[phase]) for phase in PHASES), kernel
    assert any("adamw" in name for name in names["optimizer_step"])


@pytest.mark.gpu
@pytest.mark.skipif(kernels.SIMULATED, reason="needs a GPU")
def test_every_kernel_on_the_device_is_ours(tmp_path):
    # in a process of its own: the profiler stays in one, and CUDA 13.0's has crashed at the end of longer ones
    command = [sys.executable, "-m", "gpt2edu.bench", *TOY, "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    (found,) = load_results("kernel_names", tmp_path)
    check_names(found)
    counts = {row["variant"]: row["n_runs"] for row in found.rows if row["op"] == "optimizer_step"}
    assert sum(n for name, n in counts.items() if "fused_classifier" in name) == 2  # one a micro-batch
    assert sum(n for name, n in counts.items() if "adamw" in name) == 1


def test_the_measured_names_are_ours():
    for results in load_results("kernel_names"):
        check_names(results)


def test_a_cpu_has_no_names(tmp_path):
    with pytest.raises(UsageError, match="kernel_names profiles a GPU"):
        bench.main([*TOY, "--device", "cpu", "--output", str(tmp_path)])


# ---- what the engine asks of torch ---------------------------------------------------------------------------------

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "lift_fresh"}
VIEWS = set("view _unsafe_view slice select detach alias as_strided expand unsqueeze unbind t".split())
COPIES = {"copy_", "_to_copy", "clone", "_local_scalar_dense", "_pin_memory", "is_pinned", "record_stream"}


class Watch(TorchDispatchMode):
    """Collects the names of the operations that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, _types, arguments=(), keywords=None):
        self.seen.add(operation.overloadpacket.__name__)
        return operation(*arguments, **(keywords or {}))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_torch_only_allocates_views_and_copies(quick, dtype):
    watch = Watch()
    engine = make_engine(ModelConfig.from_descriptor("d1,h2,c16,t8,v61"), dtype=dtype)
    with watch:
        for step in (1,) if kernels.SIMULATED else (1, 2, 3):  # one by one, captured, and out of the graph
            take_step(engine, step)
            engine.losses(*batch(step))
        engine.load_extra_state(engine.extra_state())  # the weights are to be rounded again
        engine.logits(batch()[0])
        text = engine.model.new_cache()
        for token in (5, 3):  # a prompt, and a step
            engine.model(torch.tensor([[token]]), text)
    assert "copy_" in watch.seen
    assert watch.seen - ALLOCATIONS - VIEWS - COPIES == set()
    with Watch() as other:
        torch.ones(2) + 1
    assert other.seen - ALLOCATIONS - VIEWS - COPIES
