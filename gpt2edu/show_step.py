"""What the chapter on the training step needs to show: a tiny engine, its yardstick, memory, work, and the profile.

Work and memory of the real model are counted from its shapes alone, so no cell here needs a GPU or much memory.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2edu.activations import activation_buffers, arena_bytes, cut_arena
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine
from gpt2edu.model import GPT2, named_views
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.passes import Passes
from gpt2edu.profile import COLOURS, IDLE, Part, group_of, whole_step
from gpt2edu.results import Row, load_results
from gpt2edu.table import Table
from gpt2edu.work import work_of
from kernels import SIMULATED

BYTES_PER_PARAMETER = 18  # bf16 weight; fp32 gradient, master weight, m and v
SMALL_SHARE = 0.003  # of the arena: buffers below it stand in one line
SMALL_TIME = 0.005  # of the step: operations below it share a bar
GROUP_OF_BUFFER = {
    "ln1": "outputs of the norms",
    "ln2": "outputs of the norms",
    "activated": "outputs of GELU",
    "logits": "logits",
}
OTHERS = "all other activations"
MEMORY_COLOURS = {
    "weights and optimizer": "#64748b",
    OTHERS: "#2563eb",
    "logits": "#9333ea",
    "outputs of the norms": "#d97706",
    "outputs of GELU": "#16a34a",
}


# --------------------------------------------------------------------------------------------------
# a model small enough for the simulator


def tiny_engine(descriptor: str, seed: int = 1) -> NumbaEngine:
    """Return an fp32 engine where kernels run here, with weights all of which are random, biases too."""
    config = ModelConfig.from_descriptor(descriptor)
    device = torch.device("cpu" if SIMULATED else "cuda")
    settings = TrainConfig(dtype="fp32", seq_len=config.max_seq_len, recompute=0)
    engine = NumbaEngine(config, settings, SingleProcess(), device)
    model = GPT2(config)
    model.init_weights(seed)
    noise = torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(seed))
    engine.flat_parameters.copy_(model.flat_parameters + 0.1 * noise)
    return engine


def model_gradients(
    config: ModelConfig, flat_parameters: Tensor, inputs_BT: np.ndarray, targets_BT: np.ndarray, dtype: torch.dtype
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the mean loss of PyTorch's model and its 16 gradients by name, all computed in `dtype`."""
    model = GPT2(config)
    model.flat_parameters.copy_(flat_parameters)
    model.to(dtype)
    loss = model.losses(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (inputs_BT, targets_BT))).mean()
    loss.backward()
    gradients = torch.zeros(n_parameters(config), dtype=dtype)
    for path, view in named_views(config, gradients):
        view.copy_(model.get_parameter(path).grad)
    return loss.item(), {t.name: t.view(gradients.numpy()) for t in parameter_layout(config)}


# --------------------------------------------------------------------------------------------------
# work, counted from shapes


class CountedPasses(Passes):
    """Counts the work of each operation and prepares no launch, so its arrays need no memory."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts: list[Part] = []

    def _do(self, operation: Callable, *arguments: object, **keywords: object) -> None:
        self.parts.append(Part(operation.__name__, work_of(operation.__name__, arguments, keywords)))


def micro_step_operations(config: ModelConfig, B: int, T: int, recompute: int = 0) -> list[Part]:
    """Return the operations of a micro-step in bf16, in their order, with their work."""
    buffers = activation_buffers(config, B, T, torch.bfloat16, recompute)
    activations = cut_arena(torch.empty(arena_bytes(buffers), dtype=torch.uint8, device="meta"), buffers)
    weights, gradients = (
        SimpleNamespace(**{t.name: torch.empty(t.shape, dtype=dtype, device="meta") for t in parameter_layout(config)})
        for dtype in (torch.bfloat16, torch.float32)
    )
    passes = CountedPasses(config, weights, gradients, activations, recompute)
    passes.micro_step(1.0)
    passes.embedding_gradient()
    return passes.parts


def show_floor(
    config: ModelConfig, B: int, T: int, n_micro_steps: int, *, tflop_per_s: float, gb_per_s: float
) -> Table:
    """Return the work of a bf16 step, and the least time that it takes at these two rates, a row an operation."""
    parts = whole_step(micro_step_operations(config, B, T), n_micro_steps, config, "bf16")
    found = []
    for operation in dict.fromkeys(part.operation for part in parts):
        own = [part.work for part in parts if part.operation == operation and (part.work.flop or part.work.n_bytes)]
        flop, n_bytes = sum(work.flop for work in own), sum(work.n_bytes for work in own)
        if flop:
            found.append((flop / tflop_per_s / 1e9, operation, len(own), f"{flop / 1e12:,.1f} TFLOP"))
        elif n_bytes:
            found.append((n_bytes / gb_per_s / 1e6, operation, len(own), f"{n_bytes / 1e9:,.1f} GB"))
    found.sort(reverse=True)
    rows = [[f"`{operation}`", f"{n_calls:,}", work, f"{ms:.1f}"] for ms, operation, n_calls, work in found]
    whole_ms = sum(ms for ms, *_ in found)
    rows.append(["**the whole step**", f"{sum(n for _, _, n, _ in found):,}", "", f"**{whole_ms:.0f}**"])
    return Table(["operation", "calls", "work", "floor, ms"], rows)


# --------------------------------------------------------------------------------------------------
# memory


def show_buffers(config: ModelConfig, B: int, T: int, recompute: int = 0) -> Table:
    """Return the engine's bf16 buffers with shape and bytes; the small ones together in one row."""
    buffers = activation_buffers(config, B, T, torch.bfloat16, recompute)
    whole = arena_bytes(buffers)
    rows, small = [], []
    for buffer in buffers:
        if buffer.n_bytes < SMALL_SHARE * whole:
            small.append(buffer)
        else:
            shape = " × ".join(f"{size:,}" for size in buffer.shape)
            rows.append([f"`{buffer.name}`", shape, f"{buffer.n_bytes / 1e9:.1f}"])
    rows.append([f"{len(small)} smaller ones", "", f"{arena_bytes(small) / 1e9:.1f}"])
    return Table(["buffer", "shape", "GB"], [*rows, ["**all**", "", f"**{whole / 1e9:.1f}**"]])


def memory_gb(config: ModelConfig, B: int, T: int, recompute: int) -> dict[str, float]:
    """Return the GB that a bf16 run needs, by what they are for."""
    found = dict.fromkeys(MEMORY_COLOURS, 0.0)
    found["weights and optimizer"] = BYTES_PER_PARAMETER * n_parameters(config) / 1e9
    for buffer in activation_buffers(config, B, T, torch.bfloat16, recompute):
        found[GROUP_OF_BUFFER.get(buffer.name.rpartition("_")[0], OTHERS)] += buffer.n_bytes / 1e9
    return found


def plot_memory(config: ModelConfig, B: int, T: int) -> None:
    """Draw the memory of a run for each `-r`, a stacked bar each, for `plt.show()`."""
    import matplotlib.pyplot as plt

    for recompute in (2, 1, 0):
        left = 0.0
        for name, gb in memory_gb(config, B, T, recompute).items():
            label = name if recompute == 0 else None
            plt.barh(f"-r {recompute}", gb, left=left, color=MEMORY_COLOURS[name], label=label, height=0.6)
            left += gb
        plt.text(left + 0.3, f"-r {recompute}", f"{left:.1f}", va="center")
    plt.xlim(0, 33)
    plt.xlabel("GB")
    plt.figlegend(loc="outside lower center", ncols=2, frameon=False)


# --------------------------------------------------------------------------------------------------
# the measured profile


def show_profile(name: str = "profile") -> Table:
    """Return the measured profile of a step: a row an operation, with the least that it could take."""
    measured = load_results(name)
    if not measured:
        return Table(["profile"], [[f"{name}: not measured yet"]])
    results = measured[0]
    whole_ms = results.rows[-1]["median_ms"]
    header = ["operation", "launches", "ms", "share", "rate", "floor, ms", "of ceiling"]
    ceilings = (
        f"{results.ceilings['copy_gb_per_s']:,.0f} GB/s and {results.ceilings['matmul_tflop_per_s']:,.0f} TFLOP/s"
    )
    caption = f"Measured on {results.gpu} (driver {results.driver}, {results.date}); ceilings: {ceilings}."
    return Table(header, [_profile_cells(row, whole_ms) for row in results.rows], caption)


def _profile_cells(row: Row, whole_ms: float) -> list[str]:
    ms = row["median_ms"]
    rate = f"{row['tflop_per_s']:,.0f} TFLOP/s" if "tflop_per_s" in row else ""
    rate = f"{row['gb_per_s']:,.0f} GB/s" if "gb_per_s" in row else rate
    floor = [f"{row['floor_ms']:.1f}", f"{row['ceiling_share']:.0%}"] if "floor_ms" in row else ["", ""]
    operation = row["op"] if row["op"] in (IDLE, "step") or " " in row["op"] else f"`{row['op']}`"
    return [operation, f"{row.get('n_runs', 1):,}", f"{ms:,.1f}", f"{ms / whole_ms:.1%}", rate, *floor]


def plot_waterfall(name: str = "profile") -> None:
    """Draw where the milliseconds of a measured step go, for `plt.show()`; without a measurement print that.

    Each operation begins where the one above ends. The dark part is its floor.
    """
    import matplotlib.pyplot as plt

    measured = load_results(name)
    if not measured:
        print(f"{name}: not measured yet")
        return
    *rows, step = _without_small_ones(measured[0].rows)
    plt.figure(figsize=(6.4, 0.3 * len(rows) + 1.3))
    start = 0.0
    for place, row in enumerate([*rows, step]):
        left, floor_ms = (0.0 if row is step else start), row.get("floor_ms", 0.0)
        colour = "#1e293b" if row is step else COLOURS[group_of(row["op"])]
        plt.barh(place, row["median_ms"], left=left, color=colour, alpha=0.35)
        plt.barh(place, min(floor_ms, row["median_ms"]), left=left, color=colour)
        plt.text(left + row["median_ms"], place, f" {row['median_ms']:.1f}", va="center", fontsize=8)
        start += row["median_ms"]
    plt.yticks(range(len(rows) + 1), [row["op"] for row in (*rows, step)], fontsize=8)
    plt.ylim(len(rows) + 0.6, -0.6)
    plt.xlim(0, 1.1 * step["median_ms"])
    plt.xlabel("ms of the step; dark: the floor")


def _without_small_ones(rows: list[Row]) -> list[Row]:
    """Return the rows of a profile with the operations below half a percent of the step put together."""
    *operations, idle, step = rows
    large = [row for row in operations if row["median_ms"] >= SMALL_TIME * step["median_ms"]]
    small = [row for row in operations if row not in large]
    sums = {key: sum(row.get(key, 0.0) for row in small) for key in ("median_ms", "floor_ms")}
    return [*large, *([{"op": f"{len(small)} others", **sums}] if small else []), idle, step]
