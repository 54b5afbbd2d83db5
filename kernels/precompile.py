"""Compile many kernels at once, in processes of their own, before the first of them is launched.

Numba compiles a kernel where it is launched first: one after another, and mostly in Python, so on one core. Here
workers (`python -m kernels.precompile CAPABILITY`) read names of kernels, compile them without touching the GPU and
leave them in the folder of `compile_cache`, where the launch finds them. What goes wrong there costs only time.
"""

from __future__ import annotations

import importlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

from kernels import SIMULATED
from kernels.launch import Launch
from kernels.registry import KernelEntry, registered


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


def compile_in_processes(jobs: list[Job], n_workers: int) -> Iterator[Job]:
    """Compile kernels for the current GPU and keep them on disk; yields each when a worker is done with it."""
    from numba.cuda.dispatcher import get_current_device

    capability = ".".join(map(str, get_current_device().compute_capability))
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: a worker has ended
    for job in jobs:
        waiting.put(job)
    workers = [_start_worker(capability) for _ in range(min(n_workers, len(jobs)))]
    for worker in workers:
        threading.Thread(target=_feed, args=(worker, waiting, done), daemon=True).start()
    try:
        n_working = len(workers)
        while n_working:
            job = done.get()
            if job is None:
                n_working -= 1
            else:
                yield job
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start_worker(capability: str) -> subprocess.Popen:
    """Start a worker that sees no GPU: a context on it would take memory."""
    command = [sys.executable, "-m", "kernels.precompile", capability]
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
            if not worker.stdout.readline():
                break
            done.put(job)
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


def main(arguments: list[str]) -> None:
    """Compile what is asked for on standard input, a line each; answer with a line each."""
    with pretend_gpu(tuple(map(int, arguments[0].split(".")))):
        for line in sys.stdin:
            module, name, variant = line.split()
            importlib.import_module(module)
            entry = next(entry for entry in registered() if entry.name == name)
            types = _argument_types(entry, variant)
            if not entry.compiled._cache.has(types):
                compile_and_keep(entry.compiled, types)
            print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
