from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from gpt2edu import bench, bench_tune
from gpt2edu.bench_ops.case import Case
from gpt2edu.bench_timing import Timing
from gpt2edu.errors import UsageError
from kernels import SIMULATED
from kernels.matmul import tuning
from kernels.matmul.common import Product

GPU = "NVIDIA Test 9000"
KEY = "sm_80 forward 8x8x64"
OPTIONS = [{"group": 16}, {"group": 4}, {"group": 8}]


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """Return a function that tunes one product with given milliseconds for its three options."""

    def prepare(buffers, stream):
        array = buffers.out.numpy()
        product = Product(array, array, array, 8, 8, 64, True, True)
        choice = tuning.choose("sm_80", product, OPTIONS)
        return lambda: choice

    case = Case(
        "matmul_forward", {}, lambda draw: SimpleNamespace(out=torch.zeros(8, 8)), ("out",), {"production": prepare},
        {}, tuple,
    )  # fmt: skip
    monkeypatch.setattr(bench_tune, "SIMULATED", False)
    monkeypatch.setattr(bench_tune, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(tuning, "gpu_name", lambda: GPU)
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "package")
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    monkeypatch.setattr(bench_tune, "product_cases", lambda *_: [case])

    def run(times_ms, *arguments) -> tuning.Choice:
        def time_calls(calls, *_):
            assert [on_each_set[0]() for on_each_set in calls.values()] == OPTIONS
            return {name: Timing([ms]) for name, ms in zip(calls, times_ms, strict=True)}

        monkeypatch.setattr(bench_tune, "time_calls", time_calls)
        tuning.measured_choices.cache_clear()
        assert bench.main(["tune", *arguments]) == 0
        tuning.measured_choices.cache_clear()
        return tuning.measured_choices(GPU).get(KEY)

    yield run
    tuning.measured_choices.cache_clear()


def test_the_fastest_option_is_kept_and_not_measured_again(tune, tmp_path):
    assert tune([2.0, 1.0, 3.0]) == {"group": 4}
    assert json.loads(tuning.file_in(tmp_path / "tuned", GPU).read_text())["gpu"] == GPU
    assert tune([1.0, 2.0, 2.0]) == {"group": 4}  # two runs on one GPU give the same bits
    assert tune([1.0, 2.0, 2.0], "--again") == {"group": 16}


def test_a_gain_that_may_be_noise_is_no_reason_to_leave_the_default(tune):
    assert tune([1.0, 0.999, 0.998]) == {"group": 16}


def test_what_the_package_has_is_not_measured(tune, tmp_path):
    assert tune([2.0, 1.0, 3.0], "--output", str(tmp_path / "package")) == {"group": 4}
    tune([3.0, 2.0, 1.0])
    assert not tuning.file_in(tmp_path / "tuned", GPU).exists()


@pytest.mark.skipif(not SIMULATED, reason="there is a GPU to tune")
def test_without_a_gpu_there_is_nothing_to_tune():
    with pytest.raises(UsageError, match="tune measures a GPU"):
        bench.main(["tune"])
