"""nvidia-smi's answer as llm.c's line."""

import pytest
import torch

from gpt2edu.gpu_status import format_status, gpu_status


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        ("0x0000000000000000", "no cap"),
        ("0x0000000000000001", "no cap"),
        ("0x0000000000000004", "power cap"),
        ("0x0000000000000044", "power cap"),
        ("0x0000000000000020", "thermal cap"),
        ("0x0000000000000002", "other cap"),
    ],
)
def test_line(bits, reason):
    line = format_status(f"98, 57, [N/A], 1755, 1980, 652.31, 700.00, 61, {bits}\n")
    assert line.strip() == (
        "compute 98% | memory: 57% | fan: [N/A]% | 1755 MHz / 1980 MHz | 652.31 W / 700.00 W | 61\u00b0C | " + reason
    )


def test_another_answer_is_refused():
    with pytest.raises(ValueError):
        format_status("No devices were found")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so():
    assert "no NVIDIA GPU" in gpu_status()
