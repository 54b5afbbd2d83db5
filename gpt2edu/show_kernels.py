"""What the chapters on kernels need to show: one warp's steps, what the simulator reports, the instructions compiled.

Each of these runs where it belongs, whatever the machine: steps and faults in the simulator, also where kernels
otherwise run on a GPU, and compilation with the real Numba CUDA, also where there is none. Numba takes that choice
only once, so what does not fit this process runs in another.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from gpt2edu.show import ROOT
from gpt2edu.table import Table
from kernels import SIMULATED
from kernels.simulator.errors import SimulatorError
from kernels.simulator.trace import WarpStep, tracing, warp_steps

LINE_WIDTH = 88


def show_steps(
    kernel: Any,
    grid: int,
    block: int,
    *arguments: Any,
    warp: int = 0,
    lanes: Sequence[int] = (0, 1, 31),
    n_steps: int | None = None,
) -> Table:
    """Run a kernel of the package in the simulator and return what one warp of block 0 touches, a row a step.

    Args:
        kernel: a kernel, as `cuda.jit` made it.
        grid: blocks.
        block: threads a block.
        *arguments: NumPy arrays and numbers; the arrays stay as they are.
        warp: which warp of the block.
        lanes: which of its lanes to show.
        n_steps: how many steps to show, from the first; None shows all.
    """
    steps: list[WarpStep] = _elsewhere(_steps, True, _name(kernel), grid, block, arguments, warp)
    rows = []
    for number, step in enumerate(steps[:n_steps], start=1):
        name = f"{number} {'store' if step.is_store else 'load'}"
        rows.append([name, f"{step.n_bytes}", f"{step.n_sectors}", *(_elements(step, lane) for lane in lanes)])
    return Table(["step", "bytes used", "sectors", *(f"lane {lane}" for lane in lanes)], rows)


def _elements(step: WarpStep, lane: int) -> str:
    """Return what a lane touches in a step as it stands in the source: `inp_N[3]` or `inp_N[8:16]`."""
    if lane not in step.lanes:
        return "–"
    first_byte, n_bytes = step.lanes[lane]
    first, n = first_byte // step.itemsize, n_bytes // step.itemsize
    return f"`{step.array}[{first}]`" if n == 1 else f"`{step.array}[{first}:{first + n}]`"


def show_fault(kernel: Any, grid: int, block: int, *arguments: Any) -> None:
    """Run a kernel of the package in the simulator and print what that reports."""
    fault = _elsewhere(_fault, True, _name(kernel), grid, block, arguments)
    for line in (fault or "nothing to report").replace(f"{ROOT}{os.sep}", "").splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        print(textwrap.fill(line, LINE_WIDTH, subsequent_indent=indent, break_on_hyphens=False))


def simulate(kernel: Any, grid: int, block: int, *arguments: Any) -> list[np.ndarray]:
    """Run a kernel of the package in the simulator and return the arrays as they are afterwards."""
    return _elsewhere(_arrays_after, True, _name(kernel), grid, block, arguments)


def ptx_instructions(kernel: Any, signature: str, *starts: str, architecture: str = "sm_90a") -> list[str]:
    """Compile a kernel of the package and return its PTX instructions that begin so, each once, in their order.

    Args:
        kernel: a kernel, as `cuda.jit` made it.
        signature: its arguments in Numba's notation, such as `"void(float32[::1], int64)"`.
        *starts: beginnings of instructions, such as `"ld.global"`.
        architecture: `sm_80` or `sm_90a`.
    """
    ptx: str = _elsewhere(_ptx, False, _name(kernel), signature, architecture)
    statements = re.split(r"[;{}\n]", ptx)  # inline PTX has several to a line
    found = [match[1] for text in statements if (match := re.match(r"\s*(?:@!?%?\w+\s+)?([a-z][\w.]+)", text))]
    return list(dict.fromkeys(name for name in found if name.startswith(starts)))


def _name(kernel: Any) -> tuple[str, str]:
    function = kernel.py_func
    return function.__module__, function.__qualname__


def _kernel(name: tuple[str, str]) -> Any:
    return getattr(importlib.import_module(name[0]), name[1])


def _steps(name: tuple[str, str], grid: int, block: int, arguments: tuple, warp: int) -> list[WarpStep]:
    with tracing() as accesses:
        _kernel(name)[grid, block](*_copies(arguments))
    return warp_steps(accesses, warp=warp)


def _fault(name: tuple[str, str], grid: int, block: int, arguments: tuple) -> str | None:
    try:
        _kernel(name)[grid, block](*_copies(arguments))
    except SimulatorError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _arrays_after(name: tuple[str, str], grid: int, block: int, arguments: tuple) -> list[np.ndarray]:
    copies = _copies(arguments)
    _kernel(name)[grid, block](*copies)
    return [copy for copy in copies if isinstance(copy, np.ndarray)]


def _copies(arguments: tuple) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]


def _ptx(name: tuple[str, str], signature: str, architecture: str) -> str:
    from kernels.compile import to_ptx

    return to_ptx(_kernel(name).py_func, signature, architecture)


def _elsewhere(function: Callable[..., Any], simulated: bool, *arguments: Any) -> Any:
    """Call a function of this module here if kernels are simulated here just as wanted, otherwise in a new process.

    Compiling changes Numba for good, so it always gets a process of its own.
    """
    if simulated and SIMULATED:
        return function(*arguments)
    with mock.patch.dict(os.environ, {"NUMBA_ENABLE_CUDASIM": str(int(simulated))}):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
