"""What the simulator raises, and how it finds the kernel's source line."""

from __future__ import annotations

from types import CodeType, FrameType, TracebackType


class SimulatorError(Exception):
    """A kernel did what a GPU forbids or leaves undefined."""


class OutOfBoundsError(SimulatorError, IndexError):
    """An access outside an array: on a GPU it reads or destroys something else."""


class MisalignedError(SimulatorError):
    """A vector access whose address is no multiple of its size: on a GPU the launch fails."""


class DivergenceError(SimulatorError):
    """Threads that have to meet at one barrier or warp operation wait at different ones, or have not all come."""


class LaunchError(SimulatorError, ValueError):
    """A launch that no GPU accepts: too many threads, too much shared memory."""


_is_kernel_code: dict[CodeType, bool] = {}


def is_kernel_frame(frame: FrameType) -> bool:
    """Tell whether a frame belongs to a kernel or a device function rather than to the simulator."""
    known = _is_kernel_code.get(frame.f_code)
    if known is None:
        name = frame.f_globals.get("__name__", "")
        known = not name.startswith(("kernels.simulator", "numba", "numpy", "functools"))
        _is_kernel_code[frame.f_code] = known
    return known


def frame_location(frame: FrameType | None) -> str:
    """Describe the innermost line of kernel code at or below `frame`, a suspended or running frame."""
    while frame is not None and not is_kernel_frame(frame):
        frame = frame.f_back
    return "its start" if frame is None else _describe(frame.f_code, frame.f_lineno)


def traceback_location(traceback: TracebackType | None) -> str:
    """Describe the innermost line of kernel code through which an exception passed."""
    location = "its start"
    while traceback is not None:
        if is_kernel_frame(traceback.tb_frame):
            location = _describe(traceback.tb_frame.f_code, traceback.tb_lineno)
        traceback = traceback.tb_next
    return location


def _describe(code: CodeType, line: int) -> str:
    return f"{code.co_filename}:{line} ({code.co_name})"
