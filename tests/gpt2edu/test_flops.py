"""FLOP of a token, the GPU table, MFU."""

import pytest

from gpt2edu.config import ModelConfig
from gpt2edu.flops import flop_per_token, mfu, peak_flop_per_s


def test_flop_of_a_token_of_gpt2_124m():
    # 6 * 124,475,904 + 6 * 12 * 768 * 1024
    assert flop_per_token(ModelConfig(), 1024) == 803_478_528


@pytest.mark.parametrize(
    ("name", "dtype", "tflop_per_s"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA A100-SXM4-40GB", "fp32", 156.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("Tesla T4", "fp16", 65.0),
    ],
)
def test_peak(name, dtype, tflop_per_s):
    assert peak_flop_per_s(name, dtype) == pytest.approx(tflop_per_s * 1e12)


def test_tf32_switched_off_lowers_the_fp32_peak():
    assert peak_flop_per_s("NVIDIA A100-SXM4-40GB", "fp32", tf32=False) == pytest.approx(19.5e12)


@pytest.mark.parametrize("name", [None, "NVIDIA GeForce GTX 1080", "NVIDIA RTX A4000", "NVIDIA T400", "Some New GPU"])
def test_unknown_gpus_have_no_peak_and_no_mfu(name):
    assert peak_flop_per_s(name, "bf16") is None
    assert mfu(ModelConfig(), 1024, 1e5, peak_flop_per_s(name, "bf16")) is None


def test_mfu_of_the_published_a100_run():
    # 300 ms a step of 524,288 tokens on 8 A100
    assert mfu(ModelConfig(), 1024, 524_288 / 8 / 0.3, 312e12) == pytest.approx(0.563, abs=1e-3)
