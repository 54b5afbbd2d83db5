"""How the GPU feels: load, clocks, power, heat and what slows it down, as nvidia-smi tells."""

from __future__ import annotations

import subprocess

import torch

FIELDS = (
    "utilization.gpu",
    "utilization.memory",
    "fan.speed",
    "clocks.sm",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_throttle_reasons.active",
)
POWER_CAP, THERMAL_CAP = 0x04 | 0x80, 0x20 | 0x40  # bits of NVML's clocks throttle reasons
IDLE = 0x01


def gpu_status() -> str:
    """Return llm.c's line about torch's current GPU, or why there is none; the slowdown temperature is left out."""
    if not torch.cuda.is_available():
        return "-lg: there is no NVIDIA GPU to ask"
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return format_status(answer)
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        return f"-lg: nvidia-smi gave no answer ({type(problem).__name__})"


def format_status(answer: str) -> str:
    """Return the line for nvidia-smi's answer to `FIELDS`.

    Raises:
        ValueError: the answer has other fields.
    """
    compute, memory, fan, clock, max_clock, power, power_limit, heat, reasons = (x.strip() for x in answer.split(","))
    bits = int(reasons, 16)
    caps = [(POWER_CAP, "power cap"), (THERMAL_CAP, "thermal cap"), (~IDLE, "other cap")]
    reason = next((name for mask, name in caps if bits & mask), "no cap")
    return (
        f"                  compute {compute}% | memory: {memory}% | fan: {fan}% | {clock} MHz / {max_clock} MHz | "
        f"{power} W / {power_limit} W | {heat}\u00b0C | {reason}"
    )
