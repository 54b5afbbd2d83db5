"""What a bench of one op consists of, and the check that comes before the clock.

Every output begins as NaN (or, where the op adds, as random numbers), so that a place left unwritten shows. The
results are compared in float64 with a formula of their own; a variant's error may be twice that of PyTorch's own
kernel for the same dtype, or a few roundings of the largest value where PyTorch happens to be exact.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.host import EPSILON

Buffers = SimpleNamespace
Call = Callable[[], Any]

SAMPLED_ROWS = 1021  # prime, so that the rows checked fall on every place in a tile
DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a micro-batch and its model; by default those of GPT-2 124M."""

    B: int = 64
    T: int = 1024
    C: int = 768
    H: int = 12
    model: str = "d12"
    squares: tuple[int, ...] = (4096, 8192)  # of the matrix products

    @property
    def n_places(self) -> int:
        """The places of the batch."""
        return self.B * self.T


QUICK = Sizes(B=2, T=8, C=16, H=1, model="d1,h1,c16,t8,v120", squares=(24,))
"""For the simulator, and to see whether everything works."""


@dataclass(frozen=True)
class Expected:
    """What an output must be, in float64.

    Args:
        values: of the rows.
        rows: which rows of the output they are; all by default.
        tolerance: an error that is allowed in any case, where more than the last digits of the result may differ.
    """

    values: Tensor
    rows: Tensor | None = None
    tolerance: float = 0.0


class Draw:
    """Makes buffers on a device: random numbers in a fixed order, or NaN for what has to be written."""

    def __init__(self, device: torch.device, seed: int = 0):
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, dtype=dtype, device=self.device, generator=self._generator)

    def unwritten(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return memory full of NaN."""
        return torch.full(shape, math.nan, dtype=dtype, device=self.device)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Return int32 from 0 to `below` - 1, each equally often."""
        return torch.randint(below, shape, dtype=torch.int32, device=self.device, generator=self._generator)

    def tokens(self, V: int, *shape: int) -> Tensor:
        """Return int32 token ids as unevenly distributed as those of a text: Zipf's law with Mandelbrot's offset."""
        weights_V = torch.arange(V, device=self.device).add(2.7).reciprocal()
        shuffled_V = torch.randperm(V, device=self.device, generator=self._generator)
        ranks = torch.multinomial(weights_V, math.prod(shape), replacement=True, generator=self._generator)
        return shuffled_V[ranks].to(torch.int32).view(shape)


def as_tuple(_buffers: Buffers, results: Any) -> tuple:
    """Return the results of a call as they are, in a tuple."""
    return results if isinstance(results, tuple) else (results,)


@dataclass(frozen=True)
class Case:
    """One op at one shape: its buffers, who computes it, and what is right.

    Args:
        op: its name in the results file.
        shape: sizes by letter.
        make: makes one set of buffers.
        outputs: the buffers that are checked; the error of the first is kept.
        ours: of each variant, what prepares its launches on a set of buffers and a stream.
        theirs: of each of PyTorch's variants, what makes its call.
        reference: what the outputs must be, computed from fresh buffers.
        arrange: makes of PyTorch's results, and the buffers as they are then, what `outputs` would hold.
        n_bytes: that the op has to move.
        flop: that the op has to do; one of the two is given.
        sustained: also measure one long burst.
        memory: also keep the most memory that a call takes, its buffers among it.
    """

    op: str
    shape: dict[str, int]
    make: Callable[[Draw], Buffers]
    outputs: tuple[str, ...]
    ours: dict[str, Callable[[Buffers, Any], Call]]
    theirs: dict[str, Callable[[Buffers], Call]]
    reference: Callable[[Buffers], tuple[Expected, ...]]
    arrange: Callable[[Buffers, Any], tuple[Tensor | None, ...]] = as_tuple
    n_bytes: int = 0
    flop: int = 0
    dtype: str = "bf16"
    sustained: bool = False
    memory: bool = False

    def __str__(self) -> str:
        """Return the op with its shape."""
        return f"{self.op} {' '.join(f'{letter}={size}' for letter, size in self.shape.items())}"


# ---- parts of a case -----------------------------------------------------------------------------------------------


def ladder(steps: list[ModuleType], name: str, production: Callable) -> dict[str, Callable]:
    """Return an op's launchers: the steps under their module's name, and last the one that is used, `production`."""
    named = {step.__name__.rpartition(".")[2]: getattr(step, name, None) for step in steps}
    early = {step: launcher for step, launcher in named.items() if launcher not in (None, production)}
    return early | {"production": production}


def launchers(functions: dict[str, Callable], arguments: Callable[[Buffers], tuple], **keywords: Any) -> dict:
    """Return `Case.ours` for launchers that take the same arguments."""

    def preparing(function: Callable) -> Callable[[Buffers, Any], Call]:
        return lambda buffers, stream: function.prepare(*arguments(buffers), **keywords, stream=stream)

    return {name: preparing(function) for name, function in functions.items()}


def eager_and_compiled(function: Callable, arguments: Callable[[Buffers], tuple], device: torch.device) -> dict:
    """Return `Case.theirs` for a function of tensors: as it is, and on a GPU also with torch.compile."""

    def calling(chosen: Callable) -> Callable[[Buffers], Call]:
        return lambda buffers: lambda: chosen(*arguments(buffers))

    compiled = {"torch.compile": calling(torch.compile(function, dynamic=False))} if device.type == "cuda" else {}
    return {"torch": calling(function)} | compiled


def sampled_rows(n_rows: int, device: torch.device) -> Tensor:
    """Return the numbers of evenly spread rows, the first and the last among them; all if there are few."""
    spread = np.linspace(0, n_rows - 1, min(n_rows, SAMPLED_ROWS)).round().astype(np.int64)
    return torch.from_numpy(spread).to(device)


# ---- the check -----------------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """What the check of a case found."""

    errors: dict[str, float] = field(default_factory=dict)  # of the first output, by variant
    baseline_error: float = 0.0  # of the first output, the greatest of PyTorch's variants
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by variant, on a GPU
    refused: dict[str, str] = field(default_factory=dict)  # variants that do not take this case, and why
    wrong: dict[str, str] = field(default_factory=dict)  # variants whose error is too large, and where


def check(case: Case, device: torch.device, stream: Any) -> Checked:
    """Run every variant once on fresh buffers and compare with the reference."""
    found = Checked()
    expected = case.reference(case.make(Draw(device)))
    baseline = [0.0] * len(expected)
    for name, variant in case.theirs.items():
        with _peak_bytes(device, found.peak_bytes, name):
            buffers = case.make(Draw(device))
            results = variant(buffers)()
        results = case.arrange(buffers, results)
        errors = [_error(result, wanted) for result, wanted in zip(results, expected, strict=True)]
        found.errors[name] = errors[0]
        baseline = [max(pair) for pair in zip(baseline, errors, strict=True)]
        del results, buffers
    found.baseline_error = baseline[0]
    for name, variant in case.ours.items():
        with _peak_bytes(device, found.peak_bytes, name):
            buffers = case.make(Draw(device))
            try:
                launches = variant(buffers, stream)
            except ValueError as refusal:  # launchers say so before anything is launched
                found.refused[name] = str(refusal)
                continue
            launches()
        results = [getattr(buffers, output) for output in case.outputs]
        found.errors[name] = _error(results[0], expected[0])
        problems = [
            problem
            for output, result, wanted, theirs in zip(case.outputs, results, expected, baseline, strict=True)
            if (problem := _problem(output, result, wanted, theirs))
        ]
        if problems:
            found.wrong[name] = "; ".join(problems)
    return found


@contextlib.contextmanager
def _peak_bytes(device: torch.device, peaks: dict[str, int], name: str) -> Iterator[None]:
    """Keep the most bytes of a GPU's memory that were taken meanwhile."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    peaks[name] = torch.cuda.max_memory_allocated(device) - before


def _error(result: Tensor | None, expected: Expected) -> float:
    """Return the greatest absolute difference; NaN where something was not written, 0 where there is no result."""
    if result is None:
        return 0.0
    checked = result if expected.rows is None else result[expected.rows]
    return (checked.double() - expected.values).abs().max().item()


def _problem(output: str, result: Tensor, expected: Expected, baseline_error: float) -> str | None:
    """Return what is wrong with an output, None if nothing is."""
    roundings = max(2 * EPSILON[DTYPE_NAMES[result.dtype]], 4 * EPSILON["float32"])
    greatest = expected.values.abs().max().item()
    bound = max(2 * baseline_error, roundings * greatest, expected.tolerance)
    error = _error(result, expected)
    if not torch.isfinite(result).all():
        return f"{output} is not finite everywhere"
    return None if error <= bound else f"{output} has an error of {error:.3g}, at most {bound:.3g} is allowed"
