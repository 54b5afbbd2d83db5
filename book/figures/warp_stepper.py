"""Write the page in which a reader steps one warp through a kernel; every step is the simulator's trace of a real run.

python book/figures/warp_stepper.py        # writes ../_static/warp_stepper.html
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np

from kernels.layernorm.step1_row_per_thread import layernorm_forward_kernel as row_per_thread_kernel
from kernels.layernorm.step2_warp_per_row import layernorm_forward_kernel as warp_per_row_kernel
from kernels.lessons.first_kernels import add_kernel, copy_runs_kernel, copy_strided_kernel
from kernels.memory import cast_kernel
from kernels.simulator.trace import WarpStep, tracing, warp_steps

TEMPLATE = Path(__file__).with_name("warp_stepper.template.html")
PAGE = Path(__file__).parents[1] / "_static" / "warp_stepper.html"
MAX_STEPS = 12


def launches() -> dict[str, tuple]:
    """Return each kernel and its arguments by the name that the reader chooses it by."""
    x_20, x_1024 = np.zeros(20, np.float32), np.zeros(1024, np.float32)
    half_256 = np.zeros(256, np.uint16)
    rows_NC, stats_N, channel_C = np.zeros((32, 64), np.float32), np.zeros(32, np.float32), np.zeros(64, np.float32)
    norm = rows_NC, stats_N, stats_N.copy(), rows_NC.copy(), channel_C, channel_C.copy(), np.float32(1e-5)
    return {
        "add two arrays of 20": (add_kernel, x_20, x_20.copy(), x_20.copy()),
        "copy 1,024: a run for each lane": (copy_runs_kernel, x_1024, x_1024.copy(), 32),
        "copy 1,024: neighbours": (copy_strided_kernel, x_1024, x_1024.copy()),
        "copy 256 of bf16, 128 bits at a time": (cast_kernel, half_256, half_256.copy(), 256),
        "layernorm: a row for each thread": (row_per_thread_kernel, *norm),
        "layernorm: a row for each warp": (warp_per_row_kernel, *norm),
    }


def steps_of(kernel, *arguments: object) -> list[WarpStep]:
    """Return the first loads and stores of the first warp of one block."""
    with tracing() as accesses:
        kernel[1, 32](*arguments)
    return warp_steps(accesses)[:MAX_STEPS]


def data() -> dict[str, dict]:
    """Return source lines and steps of every kernel, ready for JSON."""
    kernels = {}
    for name, (kernel, *arguments) in launches().items():
        lines, first = inspect.getsourcelines(kernel.py_func)
        steps = [
            {
                "line": step.line - first,
                "array": step.array,
                "itemsize": step.itemsize,
                "store": step.is_store,
                "lanes": step.lanes,
            }
            for step in steps_of(kernel, *arguments)
        ]
        kernels[name] = {"source": [line.rstrip() for line in lines], "steps": steps}
    return kernels


def page() -> str:
    """Return the whole page."""
    return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", json.dumps(data(), separators=(",", ":")))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
