"""What a reproduction will do before it does it: what fits this machine, and what it takes here and elsewhere.

Everything here is an estimate from stated assumptions; nothing is measured and nothing is started.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gpt2edu.communication import scaling_table
from gpt2edu.config import ModelConfig
from gpt2edu.errors import UsageError
from gpt2edu.flops import flop_per_token, peak_flop_per_s
from gpt2edu.machine import Machine
from gpt2edu.parameters import n_parameters
from gpt2edu.presets import PRESETS, SHARD_TOKENS, Preset

VAL_TOKENS = 10_485_760  # what validation reads of a large split
HELLASWAG_TOKENS = 10_042 * 4 * 192  # 4 endings of each example, padded to the longest
CHECKPOINT_BYTES_PER_PARAMETER = 14  # a bf16 weight; in fp32 the master weight and two moments; torch writes 12


@dataclass(frozen=True)
class GpuKind:
    """A GPU that one can rent.

    Attributes:
        name: part of the device's name, known to `flops.peak_flop_per_s`.
        memory_gb: of the usual variant, decimal.
        dollars_per_hour: of one GPU. A100 and H100 as llm.c's scripts assume ($14 and $28 an hour for 8); the others
            are common cloud prices, rounded, and differ by a factor of two between providers.
        mfu: share of the bf16 peak (fp16 on a T4) that training is assumed to reach with the torch engine.
    """

    name: str
    memory_gb: float
    dollars_per_hour: float
    mfu: float


GPU_KINDS = (
    GpuKind("B200", 192, 6.00, 0.35),
    GpuKind("H200", 141, 3.80, 0.42),
    GpuKind("H100", 80, 3.50, 0.40),
    GpuKind("A100", 80, 1.75, 0.45),
    GpuKind("A100", 40, 1.30, 0.45),
    GpuKind("L40S", 48, 0.90, 0.35),
    GpuKind("RTX 4090", 24, 0.40, 0.45),
    GpuKind("A10", 24, 0.75, 0.35),
    GpuKind("T4", 16, 0.35, 0.30),
)
OTHER_GPU_MFU = 0.35
SEVERAL_GPUS_EFFICIENCY = 0.95  # of n times one GPU, inside a node
CORE_FLOP_PER_S = 50e9  # of one processor core in fp32
USABLE_MEMORY = 0.85  # of a GPU's memory; the rest is the context's, NCCL's and the allocator's

ASSUMPTIONS = f"""\
Assumed: MFU and price as in the table (A100 and H100 prices as in llm.c's scripts, the others typical); 8 GPUs are
{8 * SEVERAL_GPUS_EFFICIENCY:.1f} times as fast as one. Validation and HellaSwag are included, the data stage is not.
Measured by llm.c's author for gpt2-124m, training alone: 8 x A100 80GB 300 ms a step (MFU 56 %, 94 minutes, $20),
8 x H100 140 ms a step (MFU 38 %, 46 minutes)."""


@dataclass(frozen=True)
class Plan:
    """A preset on a machine.

    Attributes:
        n_gpus: GPUs in use, one for each process; 0 for a run on the processor.
        world_size: processes that train.
        micro_batch: sequences a GPU (or the processor) works on at once.
        recompute: what backward computes again, as `-r`.
        memory_bytes: estimate for one GPU.
    """

    preset: Preset
    machine: Machine
    n_gpus: int
    world_size: int
    micro_batch: int
    recompute: int
    memory_bytes: float
    gpu_price: float | None = None  # dollars an hour, given by the user

    @property
    def n_micro_steps(self) -> int:
        """Micro-batches of each process in an optimizer step."""
        settings = self.preset.settings
        return (settings.total_batch or 0) // (self.micro_batch * settings.seq_len * self.world_size)

    @property
    def train_flags(self) -> list[str]:
        """The preset's flags and those that this machine decided."""
        flags = [*self.preset.flags.split(), "-b", str(self.micro_batch), "-r", str(self.recompute)]
        if self.world_size > 1:
            flags += ["-z", "1"]
        return flags + (["--device", self.device] if self.device else [])

    @property
    def device(self) -> str | None:
        """The device to name to torch: the processor where GPUs are left alone, otherwise torch finds the best."""
        return "cpu" if self.machine.gpus and not self.n_gpus else None

    @property
    def training_flop(self) -> float:
        """FLOP of all training steps."""
        return float(self.preset.tokens) * flop_per_token(self.preset.model, self.preset.settings.seq_len)

    @property
    def evaluation_flop(self) -> float:
        """FLOP of all validations and HellaSwag evaluations: a third of training's for a token."""
        settings = self.preset.settings
        n_evaluations = settings.max_steps // settings.val_every + 2
        tokens = min(VAL_TOKENS, self.preset.text.val_tokens) + settings.hellaswag * HELLASWAG_TOKENS
        return n_evaluations * tokens * flop_per_token(self.preset.model, settings.seq_len) / 3

    @property
    def data_bytes(self) -> int:
        """Disk that the shards take, 2 bytes a token."""
        text = self.preset.text
        return 2 * (min(self.preset.train_shards * SHARD_TOKENS, text.train_tokens) + text.val_tokens)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk that the kept checkpoints take; one more than kept exists while it is written."""
        settings = self.preset.settings
        written = math.ceil(settings.max_steps / settings.checkpoint_every)
        kept = min(written, settings.checkpoints_keep + 1) if settings.checkpoints_keep else written
        return kept * CHECKPOINT_BYTES_PER_PARAMETER * n_parameters(self.preset.model)

    @property
    def gpu_kind(self) -> GpuKind | None:
        """The table's row for the GPUs in use, None where there is none."""
        if not self.n_gpus:
            return None
        gpu = self.machine.gpus[0]
        # the name must end there: an A10G is no A10
        kinds = [kind for kind in GPU_KINDS if re.search(rf"{kind.name}\b", gpu.name)]
        return min(kinds, key=lambda kind: abs(kind.memory_gb - gpu.memory_bytes / 1e9), default=None)

    @property
    def hours(self) -> float | None:
        """Estimate for this machine, None where the GPU's peak is not known."""
        if not self.n_gpus:
            return (self.training_flop + self.evaluation_flop) / (self.machine.n_cores * CORE_FLOP_PER_S) / 3600
        peak = peak_flop_per_s(self.machine.gpus[0].name, "bf16")
        mfu = self.gpu_kind.mfu if self.gpu_kind else OTHER_GPU_MFU
        return self.hours_on(self.n_gpus, peak * mfu) if peak else None

    def hours_on(self, n_gpus: int, flop_per_s: float) -> float:
        """Return the hours of training and evaluation on GPUs that each reach `flop_per_s` alone."""
        efficiency = SEVERAL_GPUS_EFFICIENCY if n_gpus > 1 else 1.0
        return (self.training_flop + self.evaluation_flop) / (n_gpus * flop_per_s * efficiency) / 3600

    @property
    def dollars_per_hour(self) -> float | None:
        """Price of the GPUs in use, None where it is not known; a run without GPUs costs nothing here."""
        if not self.n_gpus:
            return 0.0
        price = self.gpu_kind.dollars_per_hour if self.gpu_kind and self.gpu_price is None else self.gpu_price
        return None if price is None else price * self.n_gpus

    @property
    def dollars(self) -> float | None:
        """Estimated cost on this machine."""
        hours, price = self.hours, self.dollars_per_hour
        return None if hours is None or price is None else hours * price


def make_plan(
    machine: Machine,
    preset_name: str | None = None,
    max_gpus: int | None = None,
    gpu_price: float | None = None,
    launched: int = 1,
) -> Plan:
    """Choose what fits the machine.

    Args:
        machine: what there is.
        preset_name: a key of PRESETS; None takes gpt2-124m where a GPU has the memory for it, otherwise laptop.
        max_gpus: use no more GPUs than this.
        gpu_price: dollars an hour for one GPU, instead of the table's.
        launched: processes that MPI started already, perhaps on several machines like this one; 1 for none.

    Raises:
        UsageError: there is no such preset, or the machine has no memory for it.
    """
    if preset_name is not None and preset_name not in PRESETS:
        raise UsageError(f"--preset {preset_name}: there are {', '.join(PRESETS)}")
    n_available = len(machine.gpus) if max_gpus is None else min(max_gpus, len(machine.gpus))
    preset = PRESETS[preset_name or default_preset(machine if n_available else None)]
    n_sequences = (preset.settings.total_batch or 0) // preset.settings.seq_len
    world_size = launched
    if launched == 1 and not preset.text.own_vocabulary:  # the small presets gain nothing from a second GPU
        world_size = largest_world(n_sequences, n_available)
    if n_sequences % world_size:
        raise UsageError(f"--preset {preset.name}: {world_size} processes cannot share {n_sequences} sequences a step")
    n_gpus = world_size if n_available else 0
    micro_batch, recompute, needed = fit_memory(preset, machine, n_gpus, n_sequences // world_size)
    return Plan(preset, machine, n_gpus, world_size, micro_batch, recompute, needed, gpu_price)


def default_preset(machine: Machine | None) -> str:
    """Return gpt2-124m where every GPU has room for one sequence of it, otherwise (and without a machine) laptop."""
    smallest = min((gpu.memory_bytes for gpu in machine.gpus), default=0) if machine else 0
    needed = memory_bytes(PRESETS["gpt2-124m"].model, 1, PRESETS["gpt2-124m"].settings.seq_len, recompute=2)
    return "gpt2-124m" if needed <= USABLE_MEMORY * smallest else "laptop"


def largest_world(n_sequences: int, n_available: int) -> int:
    """Return the largest power of two of GPUs that share a step's sequences (and every tensor's layers) evenly."""
    world_size = 1
    while 2 * world_size <= n_available and n_sequences % (2 * world_size) == 0:
        world_size *= 2
    return world_size


def fit_memory(preset: Preset, machine: Machine, n_gpus: int, n_local: int) -> tuple[int, int, float]:
    """Return micro-batch, recomputation and the bytes of a GPU: the largest batch first, then the least recomputing.

    Args:
        preset: of the model.
        machine: whose smallest GPU counts; without GPUs memory is not looked at.
        n_gpus: in use.
        n_local: sequences of a process in a step, a power of two.

    Raises:
        UsageError: not even one sequence fits.
    """
    micro_batch = min(preset.micro_batch, n_local)
    seq_len = preset.settings.seq_len
    if not n_gpus:
        return micro_batch, 0, memory_bytes(preset.model, micro_batch, seq_len)
    gpu_bytes = min(gpu.memory_bytes for gpu in machine.gpus)
    while micro_batch:
        for recompute in (0, 1, 2):
            needed = memory_bytes(preset.model, micro_batch, seq_len, recompute, n_gpus)
            if needed <= USABLE_MEMORY * gpu_bytes:
                return micro_batch, recompute, needed
        micro_batch //= 2
    raise UsageError(
        f"--preset {preset.name} needs {needed / 1e9:.0f} GB a GPU even with one sequence at a time, and "
        f"{machine.gpus[0].name} has {gpu_bytes / 1e9:.0f}; choose a smaller preset"
    )


def memory_bytes(model: ModelConfig, micro_batch: int, seq_len: int, recompute: int = 0, world_size: int = 1) -> float:
    """Estimate the memory of one GPU with the torch engine in bf16.

    Weights and gradients in fp32, a bf16 copy of the weights, two fp32 moments (cut over the GPUs); logits and
    their gradient in bf16; and for each token, layer and channel the bytes that backward needs: with GELU and
    layernorms recomputed 22, with GELU 26, with nothing 34. B=64 of GPT-2 124M comes to 36 GB; torch.compile was
    measured at 31 GB.
    """
    state = n_parameters(model) * (4 + 4 + 2 + 8 / world_size)
    n_tokens = micro_batch * seq_len
    layers = n_tokens * model.n_layers * model.channels * (34, 26, 22)[recompute]
    logits = n_tokens * model.padded_vocab_size * 4
    return state + layers + logits


# --------------------------------------------------------------------------------------------------
# in words


def choice_lines(plan: Plan) -> tuple[str, str]:
    """Say in two lines what was chosen for this machine and why."""
    preset, settings = plan.preset, plan.preset.settings
    machine = plan.machine.title
    if plan.n_gpus > len(plan.machine.gpus):
        machine = f"{plan.n_gpus} GPUs of several machines, here {machine}"
    elif plan.n_gpus < len(plan.machine.gpus):
        machine += f" ({plan.n_gpus or 'none'} of them used)"
    how = f"micro-batch {plan.micro_batch} x {settings.seq_len}, {plan.n_micro_steps} to a step"
    if plan.n_gpus:
        how += f" on each GPU, recompute {plan.recompute}"
    return (
        f"{machine}: preset {preset.name}, {preset.title}",
        f"{settings.max_steps:,} steps of {settings.total_batch:,} tokens of {preset.text.title}; {how}",
    )


def plan_text(plan: Plan) -> str:
    """Return the choice and its details."""
    return "\n".join([*choice_lines(plan), "", plan_details(plan)])


def plan_details(plan: Plan) -> str:
    """Return the numbers of the plan and, for the GPT-2 presets, the table of GPU kinds."""
    preset, model, settings = plan.preset, plan.preset.model, plan.preset.settings
    gpu = f" of {plan.machine.gpus[0].memory_bytes / 1e9:.0f} GB" if plan.n_gpus else ""
    per_token = flop_per_token(model, settings.seq_len) / 1e6
    rows = [
        ("model", f"{settings.model}: {n_parameters(model):,} parameters"),
        ("tokens", f"{preset.tokens:,} = {settings.max_steps:,} steps x {settings.total_batch:,}"),
        ("FLOP", f"{plan.training_flop:.3g} for training ({per_token:,.1f} MFLOP a token, 6N + 6LCT)"),
        ("", f"{plan.evaluation_flop:.3g} for validation" + (" and HellaSwag" if settings.hellaswag else "")),
        (
            "memory",
            f"{plan.memory_bytes / 1e9:.1f} GB{gpu} a GPU" if plan.n_gpus else f"{plan.memory_bytes / 1e9:.1f} GB",
        ),
        ("disk", f"{_gigabytes(plan.data_bytes)} of token shards, {_gigabytes(plan.checkpoint_bytes)} of checkpoints"),
        ("here", ", ".join([_duration(plan.hours), *([_dollars(plan.dollars)] if plan.n_gpus else [])])),
        ("command", f"python -m gpt2edu.train {' '.join(plan.train_flags)}"),
    ]
    lines = [f"  {name:9}{value}" for name, value in rows]
    if settings.hellaswag:
        lines += ["", *price_table(plan), "", ASSUMPTIONS, "", *scaling_lines(plan)]
    return "\n".join(lines)


def price_table(plan: Plan) -> list[str]:
    """Return the lines of the table: hours and dollars of this preset on 1 and on 8 GPUs of each kind."""
    lines = [f"  {'GPU':14}{'$/h each':>9}{'MFU':>6}{'1 GPU':>18}{'8 GPUs':>20}"]
    for kind in GPU_KINDS:
        peak = peak_flop_per_s(kind.name, "bf16") or math.nan
        cells = []
        for n_gpus in (1, 8):
            hours = plan.hours_on(n_gpus, kind.mfu * peak)
            smallest = memory_bytes(plan.preset.model, 1, plan.preset.settings.seq_len, 2, n_gpus)
            fits = smallest <= USABLE_MEMORY * kind.memory_gb * 1e9
            cells.append(f"{hours:,.1f} h  ${hours * n_gpus * kind.dollars_per_hour:,.0f}" if fits else "too small")
        name = f"{kind.name} {kind.memory_gb:.0f}GB"
        lines.append(f"  {name:14}{kind.dollars_per_hour:>9.2f}{kind.mfu:>6.2f}{cells[0]:>18}{cells[1]:>20}")
    return lines


def scaling_lines(plan: Plan) -> list[str]:
    """Return the lines of the predicted scaling of the GPUs in use; without any in the table, of H100s."""
    kind = plan.gpu_kind or next(kind for kind in GPU_KINDS if kind.name == "H100")
    settings, peak = plan.preset.settings, peak_flop_per_s(kind.name, "bf16") or math.nan
    return scaling_table(plan.preset.model, settings.seq_len, settings.total_batch or 0, kind.mfu * peak, kind.name)


def large_work(plan: Plan, *, data_ready: bool) -> list[str]:
    """Return why the work should be agreed to first: over 30 minutes, 10 GB or 1 dollar; empty when it is small."""
    reasons = []
    if plan.hours is None or plan.hours > 0.5:
        reasons.append(_duration(plan.hours))
    n_bytes = plan.checkpoint_bytes + (0 if data_ready else plan.data_bytes)
    if n_bytes > 10e9:
        reasons.append(f"{_gigabytes(n_bytes)} of disk")
    if plan.dollars is not None and plan.dollars > 1:
        reasons.append(_dollars(plan.dollars))
    return reasons


def _duration(hours: float | None) -> str:
    if hours is None:
        return "an unknown time (this GPU's speed is not known)"
    if hours < 1:
        minutes = max(1, round(hours * 60))
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {hours:.1f} hours" if hours < 100 else f"about {hours / 24:,.0f} days"


def _dollars(dollars: float | None) -> str:
    return "price unknown (give --gpu-price)" if dollars is None else f"about ${dollars:,.2f}"


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"
