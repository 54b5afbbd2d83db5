"""How long things take on this device: bursts without gaps, turn by turn, and what the machine reaches at best.

A launch from Python takes longer than many kernels run. So the calls of a burst are captured in a CUDA graph and
replayed between two events; where that is not possible they are launched one by one. The things compared take
turns in a shuffled order, with a pause before each, so that all see the same clocks and temperatures.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]

L2_MULTIPLE = 4  # buffers in rotation are this many times the L2 cache together, so that no call finds its data there
BURST_MS = 20.0
MOST_CALLS = 64  # of a burst
SLOW_MS = 20.0  # a call that takes longer is a burst of its own, and gets fewer of them
PAUSE_S = 0.01


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    n_bursts: int = 9
    n_slow_bursts: int = 3
    sustained_s: float = 1.0  # of one long burst; 0 for none
    seed: int = 0  # of the order


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: a mean for each burst, and that of one long burst if it was asked for."""

    bursts_ms: list[float]
    sustained_ms: float | None = None
    captured: bool = True

    @property
    def median_ms(self) -> float:
        """The median of the bursts."""
        return statistics.median(self.bursts_ms)


def n_rotating(bytes_of_set: int, device: torch.device) -> int:
    """Return how many sets of buffers of this size must take turns so that the L2 cache never holds the next one."""
    if device.type != "cuda":
        return 1
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, math.ceil(L2_MULTIPLE * l2_bytes / bytes_of_set))


class CpuBurst:
    """One pass over the calls on a CPU, timed by the clock."""

    captured = False

    def __init__(self, calls: Sequence[Call]):
        self.calls, self.n_calls, self.slow = calls, len(calls), False

    def run(self, repeats: int = 1) -> float:
        """Return the milliseconds of a call."""
        start = time.perf_counter()
        for _ in range(repeats):
            for call in self.calls:
                call()
        return 1e3 * (time.perf_counter() - start) / (repeats * self.n_calls)


class CudaBurst:
    """Calls on the current stream, captured in a graph where possible.

    Args:
        calls: one for each set of buffers; a burst goes through them as often as `BURST_MS` allows.
        capture: False launches them one by one.
    """

    def __init__(self, calls: Sequence[Call], capture: bool = True):
        for call in calls:  # compiles
            call()
        estimate_ms = self._time(lambda: [call() for call in calls]) / len(calls)
        n_rounds = min(BURST_MS / estimate_ms, MOST_CALLS) / len(calls)
        self.n_calls = len(calls) * max(1, math.ceil(n_rounds))
        self.slow = estimate_ms > SLOW_MS
        repeated = list(itertools.islice(itertools.cycle(calls), self.n_calls))
        self._play = self._capture(repeated) if capture else None
        self.captured = self._play is not None
        if self._play is None:
            self._play = lambda: [call() for call in repeated]
        self._play()

    def run(self, repeats: int = 1) -> float:
        """Return the milliseconds of a call."""
        return self._time(lambda: [self._play() for _ in range(repeats)]) / (repeats * self.n_calls)

    @staticmethod
    def _time(work: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    @staticmethod
    def _capture(calls: list[Call]) -> Call | None:
        """Return what replays the calls, or None if something in them cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for call in calls:
                call()
        except Exception:  # whatever the library under test raises; launched one by one it will say so again
            try:
                graph.capture_end()
            except RuntimeError:
                pass  # the capture was broken off
            return None
        graph.capture_end()
        return graph.replay


def time_calls(
    functions: dict[str, Sequence[Call]], device: torch.device, plan: Plan, sustained: frozenset[str] = frozenset()
) -> dict[str, Timing]:
    """Time several things that compute the same.

    Args:
        functions: of each, by name, the same call on each set of the rotating buffers. On a GPU the current stream
            must not be the default one, and all calls must use it.
        device: where they run.
        plan: how much to measure.
        sustained: names that are also run for `plan.sustained_s` without a pause, which shows the clocks that the
            GPU can keep up.
    """
    bursts = {name: (CudaBurst if device.type == "cuda" else CpuBurst)(calls) for name, calls in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    shuffled = random.Random(plan.seed)
    for turn in range(plan.n_bursts):
        order = [name for name, burst in bursts.items() if not burst.slow or turn < plan.n_slow_bursts]
        shuffled.shuffle(order)
        for name in order:
            _pause(device)
            times[name].append(bursts[name].run())
    timings = {}
    for name, burst in bursts.items():
        long_ms = None
        if name in sustained and plan.sustained_s and device.type == "cuda":
            burst_ms = statistics.median(times[name]) * burst.n_calls
            long_ms = burst.run(max(1, math.ceil(1e3 * plan.sustained_s / burst_ms)))
        timings[name] = Timing(times[name], long_ms, burst.captured)
    return timings


def _pause(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        time.sleep(PAUSE_S)


def measure_ceilings(device: torch.device, plan: Plan) -> dict[str, float]:
    """Return what this GPU reaches at best: copying 1 GiB, and an 8192 x 8192 x 8192 bf16 product (empty on a CPU)."""
    if device.type != "cuda":
        return {}
    with torch.cuda.stream(torch.cuda.Stream(device)):
        source = torch.ones(2**28, device=device)
        target = torch.empty_like(source)
        a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
        out = torch.empty_like(a)
        # not captured: as a node of a graph a copy is done another way, a fifth slower
        copy = CudaBurst([lambda: target.copy_(source)], capture=False)
        matmul = CudaBurst([lambda: torch.matmul(a, b, out=out)])
        times_ms = []
        for burst in (copy, matmul):
            _pause(device)
            times_ms.append(statistics.median(burst.run() for _ in range(plan.n_bursts)))
    return {
        "copy_gb_per_s": round(2 * source.nbytes / times_ms[0] / 1e6, 1),
        "matmul_tflop_per_s": round(2 * 8192**3 / times_ms[1] / 1e9, 1),
    }


def time_interleaved(
    functions: dict[str, Call], *, n_blocks: int, block_steps: int, warmup: int, sync: Call
) -> dict[str, list[float]]:
    """Return the milliseconds of every call of things too long for a burst; they take turns in blocks.

    Args:
        functions: what to time, by name.
        n_blocks: turns of each function.
        block_steps: timed calls in a turn; one call more begins the turn untimed.
        warmup: untimed calls of each function before the first turn.
        sync: waits until the device is idle.
    """
    for function in functions.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(n_blocks):
        for name, function in functions.items():
            function()
            sync()
            for _ in range(block_steps):
                start = time.perf_counter()
                function()
                sync()
                times[name].append(1e3 * (time.perf_counter() - start))
    return times
