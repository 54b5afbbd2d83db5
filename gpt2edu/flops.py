"""Work and speed: the FLOP of a training token, what GPUs promise, and the share of it a run reaches (MFU)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpt2edu.config import ModelConfig
from gpt2edu.parameters import n_parameters

MFU_FORMULA = "(6 N + 6 L C T) * tokens/s / peak, with N all parameters, position embedding and padding included"


@dataclass(frozen=True)
class GpuPeak:
    """Dense arithmetic that a GPU's data sheet promises, in TFLOP/s; sums are kept in fp32."""

    half: float  # bf16 on tensor cores; fp16 where the GPU has no bf16
    tf32: float
    fp32: float  # without tensor cores


# An entry counts when its name stands as a word in the device's name; of several, the first.
# Source: NVIDIA's data sheets and architecture whitepapers, figures without sparsity.
GPU_PEAKS = {
    "GB200": GpuPeak(2500.0, 1250.0, 80.0),
    "B200": GpuPeak(2250.0, 1125.0, 75.0),
    "GH200": GpuPeak(989.4, 494.7, 66.9),
    "H200": GpuPeak(989.4, 494.7, 66.9),
    "H100 NVL": GpuPeak(835.5, 417.5, 60.0),
    "H100 PCIe": GpuPeak(756.0, 378.0, 51.2),
    "H100": GpuPeak(989.4, 494.7, 66.9),
    "A100": GpuPeak(312.0, 156.0, 19.5),
    "A40": GpuPeak(149.7, 74.8, 37.4),
    "A30": GpuPeak(165.0, 82.0, 10.3),
    "A10G": GpuPeak(70.0, 35.0, 31.5),
    "A10": GpuPeak(125.0, 62.5, 31.2),
    "L40S": GpuPeak(362.0, 183.0, 91.6),
    "L40": GpuPeak(181.0, 90.5, 90.5),
    "L4": GpuPeak(121.0, 60.0, 30.3),
    "RTX 6000 Ada": GpuPeak(364.2, 182.1, 91.1),
    "RTX A6000": GpuPeak(154.8, 77.4, 38.7),
    "RTX 5090": GpuPeak(209.5, 104.8, 104.8),
    "RTX 4090": GpuPeak(165.2, 82.6, 82.6),
    "RTX 3090": GpuPeak(71.0, 35.6, 35.6),
    "V100-PCIE": GpuPeak(112.0, 14.0, 14.0),
    "V100": GpuPeak(125.0, 15.7, 15.7),
    "T4": GpuPeak(65.0, 8.1, 8.1),
}


def flop_per_token(config: ModelConfig, seq_len: int) -> int:
    """Return the FLOP of one token, forward and backward: 6N for the weights, 6LCT for causal attention.

    Source: Kaplan et al. 2020, section 2.1 (arXiv:2001.08361); compare llm.c train_gpt2.cu, gpt2_estimate_mfu.
    """
    return 6 * n_parameters(config) + 6 * config.n_layers * config.channels * seq_len


def peak_flop_per_s(gpu_name: str | None, dtype: str, *, tf32: bool = True) -> float | None:
    """Return the peak FLOP/s that is assumed for a GPU, None where it is not known (and on a CPU).

    Args:
        gpu_name: as the driver says it, for example "NVIDIA H100 80GB HBM3".
        dtype: of the matrix products: "bf16", "fp16" or "fp32".
        tf32: whether fp32 products may run on tensor cores.
    """
    for name, peak in GPU_PEAKS.items():
        if gpu_name and re.search(rf"\b{name}\b", gpu_name):
            return 1e12 * (peak.half if dtype in ("bf16", "fp16") else peak.tf32 if tf32 else peak.fp32)
    return None


def mfu(config: ModelConfig, seq_len: int, tokens_per_s: float, peak: float | None) -> float | None:
    """Return the model FLOP utilization of one GPU, as a fraction of `peak` FLOP/s; None without a peak."""
    return flop_per_token(config, seq_len) * tokens_per_s / peak if peak else None
