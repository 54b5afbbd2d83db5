"""What chapters print is the same everywhere, and the source shown is the source that runs."""

import inspect

import pytest

from gpt2edu import show as module
from gpt2edu.config import ModelConfig
from gpt2edu.exercises import NOT_YET, check_cases
from gpt2edu.results import load_results, write_results
from gpt2edu.show import Table, setup, show_check, show_peak_memory, show_results, show_source


def test_show_source_is_the_source():
    source = show_source(ModelConfig.from_descriptor)
    expected = inspect.cleandoc("\n" + inspect.getsource(ModelConfig.from_descriptor))
    assert source._repr_markdown_() == f"```python\n# gpt2edu/config.py\n{expected}\n```"
    assert repr(source).splitlines()[0] == "# gpt2edu/config.py"


def test_show_source_looks_through_a_numba_dispatcher():
    from numba import njit

    def add(a, b):
        return a + b

    assert "return a + b" in repr(show_source(njit(add)))


@pytest.mark.parametrize(("ok", "line"), [(True, "✓ loss: ln V"), (False, "✗ loss: ln V")])
def test_show_check_prints_a_verdict(ok, line, capsys):
    assert show_check("loss", ok, "ln V") == ok
    assert capsys.readouterr().out == line + "\n"


def test_show_check_without_detail_and_with_a_numpy_bool(capsys):
    import numpy as np

    assert show_check("loss", np.bool_(True))
    assert capsys.readouterr().out == "✓ loss\n"


def test_setup_seeds_and_prints_versions(capsys):
    import torch

    setup()
    first = torch.rand(3)
    setup()
    assert torch.equal(torch.rand(3), first)
    assert f"torch {torch.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("simulated", "capability", "line"),
    [
        (False, (9, 0), "Some GPU"),
        (
            True,
            (7, 5),
            "Some GPU, but compute capability 7.5 knows no bf16: kernels run in the simulator, on the CPU",
        ),
        (True, (9, 0), "Some GPU, but NUMBA_ENABLE_CUDASIM=1: kernels run in the simulator, on the CPU"),
    ],
)
def test_setup_says_where_kernels_run_and_gpu_cells_are_skipped_in_the_simulator(
    simulated, capability, line, monkeypatch, capsys
):
    import torch

    import kernels

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(kernels, "SIMULATED", simulated)
    setup()
    assert capsys.readouterr().out.splitlines()[1] == line
    assert ("gpu" in module.missing_hardware()) == simulated
    assert "multi-gpu" in module.missing_hardware()


def test_table_in_both_forms():
    table = Table(["a", "long"], [["1", "2"], ["333", "4"]], "Caption.")
    assert repr(table) == "a    long\n1    2\n333  4\nCaption."
    assert table._repr_markdown_() == "| a | long |\n| --- | --- |\n| 1 | 2 |\n| 333 | 4 |\n\nCaption."


def test_show_results_prints_what_the_file_says(tmp_path, monkeypatch):
    row = {"op": "step", "variant": "production", "dtype": "bf16", "shape": {"B": 64, "T": 1024}}
    row |= {"median_ms": 1045.0, "min_ms": 1040.0, "max_ms": 1050.0, "torch_ratio": 0.994, "tflop_per_s": 400.4}
    load = module.load_results
    monkeypatch.setattr(module, "load_results", lambda name: load(name, tmp_path))
    assert show_results("train_loop").rows == [["train_loop: not measured yet"]]
    write_results("train_loop", [row], {}, gpu="NVIDIA H200", driver="580", command="x", folder=tmp_path)
    table = show_results("train_loop", "step", gpu="H200")
    assert table.header == ["variant", "ms (median)", "TFLOP/s", "of ceiling", "over torch"]
    assert table.rows == [["production", "1,045.000", "400", "", "0.994"]]
    assert "Measured on NVIDIA H200 (driver 580," in table.caption
    assert table.caption.endswith(": step, bf16, B=64, T=1024.")
    write_results("train_loop", [row | {"op": "gelu"}], {}, gpu="A100", driver="580", command="x", folder=tmp_path)
    assert [line[:3] for line in show_results("train_loop").rows] == [
        ["A100", "gelu", "production"],
        ["NVIDIA H200", "step", "production"],
    ]
    mixed = row | {"op": "gelu", "gb_per_s": 2000.0}
    write_results("train_loop", [row, mixed], {}, gpu="A100", driver="580", command="x", folder=tmp_path)
    table = show_results("train_loop", gpu="A100")
    assert table.header[3] == "rate" and [line[3] for line in table.rows] == ["400 TFLOP/s", "2,000 GB/s"]
    assert show_results("train_loop", "adamw").rows == [["train_loop: not measured yet"]]


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("answer", "ok", "line"),
    [
        (double, True, "✓ double: all 2 cases"),
        (lambda x: None, False, f"✗ double: {NOT_YET}"),
        (lambda x: x + 1, False, "✗ double: for 3 got 4, expected 6"),
        (lambda x: 1 / 0, False, "✗ double: 1 raised ZeroDivisionError: division by zero"),
    ],
)
def test_check_cases_gives_one_verdict(answer, ok, line, capsys):
    assert check_cases("double", answer, [((1,), 2), ((3,), 6)]) == ok
    assert capsys.readouterr().out == line + "\n"


def test_a_starter_that_is_not_implemented_is_not_yet(capsys):
    def starter(x):
        raise NotImplementedError

    assert not check_cases("double", starter, [((1,), 2)])
    assert NOT_YET in capsys.readouterr().out


def test_show_peak_memory_divides_by_the_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_results", lambda name: load_results(name, tmp_path))
    assert "attention: not measured yet" in repr(show_peak_memory("attention"))
    row = {"op": "attention_forward", "variant": "production", "dtype": "bf16", "shape": {"B": 2, "T": 8}}
    row |= {"median_ms": 1.0, "min_ms": 1.0, "max_ms": 1.0}
    rows = [row | {"peak_bytes": 2**20}, row | {"op": "attention_decode"}]
    write_results("attention", rows, {}, gpu="Some GPU", driver="1", command="x", folder=tmp_path)
    shown = show_peak_memory("attention")
    assert shown.rows == [["attention_forward", "production", "2", "8", "1", "65,536"]]
