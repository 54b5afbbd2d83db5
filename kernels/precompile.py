"""Compile many kernels at once, in processes of their own, before the first of them is launched.

Numba compiles a kernel where it is launched first: one after another, and mostly in Python, so on one core. Here
workers read names of kernels, compile them without touching the GPU and leave them in the folder of `compile_cache`,
where the launch finds them. What goes wrong in a worker costs only time.

`python -m kernels.precompile` compiles all kernels for this machine's GPU, with `--capability 9.0` also without one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import queue
import subprocess
import sys
import threading
from argparse import RawDescriptionHelpFormatter as RawText
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

from tqdm import tqdm

from kernels import SIMULATED
from kernels.launch import Launch
from kernels.registry import KernelEntry, all_kernels, registered


@dataclass(frozen=True)
class Job:
    """A kernel to compile: the module that makes it, its name in the list of kernels, and its variant."""

    module: str
    name: str
    variant: str


def missing(launches: Iterable[Launch]) -> list[Job]:
    """Return the kernels of these launches that are neither compiled in this process nor kept on disk."""
    entries = {entry.function: entry for entry in registered()}
    jobs: dict[Job, None] = {}  # each once, in order
    for launch in [] if SIMULATED else launches:
        types = tuple(launch.kernel.typeof_pyval(argument) for argument in launch.arguments)
        if types in launch.kernel.overloads or launch.kernel.py_func not in entries or launch.kernel._cache.has(types):
            continue
        entry = entries[launch.kernel.py_func]
        variant = next((v for v in entry.signatures if _argument_types(entry, v) == types), None)
        if variant is not None:
            jobs[Job(entry.function.__module__, entry.name, variant)] = None
    return list(jobs)


def _argument_types(entry: KernelEntry, variant: str) -> tuple:
    from numba.cuda.core.sigutils import normalize_signature

    return tuple(normalize_signature(entry.signatures[variant])[0])


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def current_capability() -> str:
    """Return the compute capability of the current GPU, for example "9.0"."""
    from numba.cuda.dispatcher import get_current_device

    return ".".join(map(str, get_current_device().compute_capability))


def compile_in_processes(jobs: list[Job], n_workers: int, capability: str) -> Iterator[tuple[Job, str]]:
    """Compile kernels for GPUs of this capability and keep them on disk.

    Yields each kernel when a worker is done with it, and why it is not kept, or "". One with which a worker died is
    not among them.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Job, str] | None] = queue.SimpleQueue()  # None: a worker has ended
    for job in jobs:
        waiting.put(job)
    workers = [_start_worker(capability) for _ in range(min(n_workers, len(jobs)))]
    for worker in workers:
        threading.Thread(target=_feed, args=(worker, waiting, done), daemon=True).start()
    try:
        n_working = len(workers)
        while n_working:
            answer = done.get()
            if answer is None:
                n_working -= 1
            else:
                yield answer
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start_worker(capability: str) -> subprocess.Popen:
    """Start a worker that sees no GPU: a context on it would take memory."""
    command = [sys.executable, "-m", "kernels.precompile", "--worker", "--capability", capability]
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": path}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)


def _feed(worker: subprocess.Popen, waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
    """Give a worker job after job until none is left or it has ended."""
    try:
        while True:
            job = waiting.get_nowait()
            worker.stdin.write(f"{job.module} {job.name} {job.variant}\n")
            answer = worker.stdout.readline()
            if not answer:
                break
            done.put((job, answer.strip()))
    except (queue.Empty, OSError):
        pass
    finally:
        done.put(None)


# ---- in a worker ---------------------------------------------------------------------------------------------------


@contextmanager
def pretend_gpu(capability: tuple[int, ...]) -> Iterator[None]:
    """Compile for a GPU of some compute capability that need not be there; nothing can be launched meanwhile."""
    import numba.cuda.dispatcher
    from numba.cuda.cudadrv import devices

    device = SimpleNamespace(compute_capability=capability, id=0)
    own = numba.cuda.dispatcher.get_current_device, devices.get_context
    numba.cuda.dispatcher.get_current_device = lambda: device
    devices.get_context = lambda *_: SimpleNamespace(device=device)
    try:
        yield
    finally:
        numba.cuda.dispatcher.get_current_device, devices.get_context = own


def compile_and_keep(kernel, argument_types: tuple):
    """Compile a kernel under `pretend_gpu` and keep it; returns what Numba made."""
    from numba.cuda.dispatcher import _Kernel

    compiled = _Kernel(kernel.py_func, argument_types, **kernel.targetoptions)
    compiled._codelibrary.get_cubin()
    kernel._cache.save_overload(argument_types, compiled)
    return compiled


def work(capability: str) -> None:
    """Compile what is asked for on standard input, a line each; answer each with a line: why it is not kept."""
    with pretend_gpu(tuple(map(int, capability.split(".")))):
        for line in sys.stdin:
            print(_compile_job(Job(*line.split())), flush=True)


def _compile_job(job: Job) -> str:
    from kernels.compile_cache import cache_folder

    importlib.import_module(job.module)
    entry = next(entry for entry in registered() if entry.name == job.name)
    types = _argument_types(entry, job.variant)
    try:
        if not entry.compiled._cache.has(types):
            compile_and_keep(entry.compiled, types)
    except Exception as problem:  # whatever a compiler raises; the next kernel may be better
        return f"{type(problem).__name__}: {problem}".partition("\n")[0]
    return "" if entry.compiled._cache.has(types) else f"it cannot be written to {cache_folder()}"


# ---- the command ---------------------------------------------------------------------------------------------------


def all_jobs(names: Sequence[str], family: str) -> list[Job]:
    """Return the jobs of all kernels of an architecture in whose names one of `names` occurs, or of all if none is."""
    return [
        Job(entry.function.__module__, entry.name, variant)
        for entry in all_kernels().values()
        if family in entry.architectures and (not names or any(name in entry.name for name in names))
        for variant in entry.signatures
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.precompile", description=__doc__, allow_abbrev=False, formatter_class=RawText
    )
    parser.add_argument("names", nargs="*", help="parts of names of kernels; by default all are compiled")
    parser.add_argument("--capability", help="compute capability that is compiled for (default: this machine's GPU)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.capability is None and SIMULATED:
        parser.error("there is no GPU here: say for which one with --capability, for example --capability 9.0")
    capability = options.capability or current_capability()
    if options.worker:
        work(capability)
        return 0
    jobs = all_jobs(options.names, "sm_90a" if capability == "9.0" else "sm_80")
    problems = dict.fromkeys(jobs, "the worker ended")
    for job, problem in tqdm(compile_in_processes(jobs, options.workers, capability), "compiling kernels", len(jobs)):
        problems[job] = problem
    for job, problem in problems.items():
        if problem:
            print(f"{job.name} {job.variant}: {problem}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
