"""What this computer is: its GPUs, driver, processors and memory, read without opening a GPU.

The launcher of a multi-GPU run must not hold GPU memory itself, so everything here comes from nvidia-smi
and the driver library; torch is asked only where nvidia-smi is missing (ROCm, some containers).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gpt2edu.errors import Gpt2EduError

GPU_QUERY = "index,uuid,name,memory.total,compute_cap,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """The computer as a run sees it."""

    gpus: tuple[Gpu, ...]
    driver: str | None  # of NVIDIA, as in "580.95.05"
    cuda: tuple[int, int] | None  # the newest CUDA that the driver runs
    cpu_name: str
    n_cores: int  # that this process may use
    memory_bytes: int

    @property
    def title(self) -> str:
        """One phrase: `8 x NVIDIA A100-SXM4-80GB`, or the processor where there is no GPU."""
        if not self.gpus:
            return f"{self.n_cores} cores of {self.cpu_name}, no GPU"
        return f"{len(self.gpus)} x {self.gpus[0].name}"


def describe_machine() -> Machine:
    """Look at this computer; never fails, what cannot be found is empty."""
    gpus, driver = _nvidia_gpus()
    return Machine(
        gpus=gpus or _torch_gpus(),
        driver=driver,
        cuda=_driver_cuda_version(),
        cpu_name=_cpu_name(),
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def parse_gpu_table(table: str, visible: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """Read nvidia-smi's answer to `GPU_QUERY`, one GPU a line.

    Args:
        table: CSV without header and units; memory in MiB.
        visible: the value of CUDA_VISIBLE_DEVICES: indices or the beginnings of UUIDs, None for all.

    Returns:
        The visible GPUs in that order, and the driver's version.
    """
    rows = [[field.strip() for field in line.split(",")] for line in table.strip().splitlines()]
    rows = [row for row in rows if len(row) == 6 and row[3].isdigit()]
    if visible is not None:
        wanted = [entry.strip() for entry in visible.split(",") if entry.strip()]
        rows = [row for entry in wanted for row in rows if entry == row[0] or (row[1].startswith(entry))]
    gpus = []
    for _, _, name, memory_mib, capability, _ in rows:
        major, _, minor = capability.partition(".")
        gpus.append(Gpu(name, int(memory_mib) * 2**20, (int(major), int(minor or 0))))
    return tuple(gpus), rows[0][5] if rows else None


def find_mpiexec() -> str:
    """Return the mpiexec installed beside this Python, or another on the PATH.

    Raises:
        Gpt2EduError: there is none.
    """
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        raise Gpt2EduError(f"there is no mpiexec; run: {sys.executable} -m pip install mpi4py mpich")
    return found


def _nvidia_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    command = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return (), None
    return parse_gpu_table(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _torch_gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(gpu.name, gpu.total_memory, (gpu.major, gpu.minor)) for gpu in found)


def _driver_cuda_version() -> tuple[int, int] | None:
    """Ask libcuda itself; this call needs no GPU context."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
