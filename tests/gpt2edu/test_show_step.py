"""What chapter 9 shows of memory and work is what the engine has, and its tables and plots follow the results files."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from gpt2edu import show_step as module
from gpt2edu.activations import activation_buffers, arena_bytes
from gpt2edu.config import ModelConfig
from gpt2edu.flops import flop_per_token
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.profile import RecordingPasses
from gpt2edu.results import write_results
from gpt2edu.show_step import (
    memory_gb,
    micro_step_operations,
    model_gradients,
    plot_memory,
    plot_waterfall,
    show_buffers,
    show_floor,
    show_profile,
    tiny_engine,
)

D12 = ModelConfig.from_descriptor("d12")
TINY = "d2,h2,c16,t8,v61"
SHAPE = {"B": 64, "T": 1024}
ROWS = [
    {"op": "matmul_forward", "median_ms": 30.0, "tflop_per_s": 500.0, "floor_ms": 20.0, "ceiling_share": 2 / 3},
    {"op": "gelu_forward", "median_ms": 8.0, "gb_per_s": 2000.0, "floor_ms": 5.0, "ceiling_share": 0.625, "n_runs": 96},
    {"op": "zero", "median_ms": 0.1, "gb_per_s": 2000.0, "floor_ms": 0.05, "ceiling_share": 0.5},
    {"op": "total", "median_ms": 0.1},
    {"op": "idle", "median_ms": 1.8},
    {"op": "step", "median_ms": 40.0, "floor_ms": 25.0, "ceiling_share": 0.625},
]


@pytest.fixture
def results(tmp_path, monkeypatch):
    load = module.load_results
    monkeypatch.setattr(module, "load_results", lambda name: load(name, tmp_path))
    matplotlib.use("Agg")
    plt.close("all")
    yield tmp_path
    plt.close("all")


def write(folder):
    rows = [{"variant": "production", "dtype": "bf16", "shape": SHAPE, **row} for row in ROWS]
    rows = [row | {"min_ms": row["median_ms"], "max_ms": row["median_ms"]} for row in rows]
    ceilings = {"copy_gb_per_s": 3000.0, "matmul_tflop_per_s": 750.0}
    write_results("profile", rows, ceilings, gpu="NVIDIA H100", driver="580", command="x", folder=folder)


def test_operations_counted_from_shapes_are_those_that_the_engine_records():
    engine = tiny_engine(TINY)
    recorded = engine.recorded_passes(2, 8, 1, RecordingPasses)
    launches = (*recorded.micro_step(1.0), *recorded.embedding_gradient())
    operations = [part.operation for part in recorded.parts if part.work.n_bytes]
    counted = micro_step_operations(engine.config, 2, 8)
    assert [part.operation for part in counted] == operations
    assert len(launches) > len(counted)
    products = [(part.operation, part.work.flop) for part in recorded.parts if part.work.flop]
    assert [(part.operation, part.work.flop) for part in counted if part.work.flop] == products


def test_the_floor_of_a_step_has_the_flop_of_the_model():
    table = show_floor(D12, 64, 1024, 8, tflop_per_s=700.0, gb_per_s=3000.0)
    tflop = sum(float(work.split()[0]) for _, _, work, _ in table.rows if work.endswith("TFLOP"))
    lookups = 6 * 1024 * 768  # position embeddings are parameters without a product
    expected = (flop_per_token(D12, 1024) - lookups) * 64 * 1024 * 8 / 1e12
    # the usual count takes attention as three products, the kernels as 2 + 5 halves: 7 against 6
    assert tflop == pytest.approx(expected, rel=0.02)
    assert table.rows[-1][0] == "**the whole step**"


def test_memory_adds_up():
    for recompute in (0, 1, 2):
        whole = arena_bytes(activation_buffers(D12, 64, 1024, torch.bfloat16, recompute)) + 18 * n_parameters(D12)
        assert sum(memory_gb(D12, 64, 1024, recompute).values()) == pytest.approx(whole / 1e9)
    assert show_buffers(D12, 64, 1024).rows[-1][2] == "**26.8**"


def test_gradients_of_the_model_are_named_and_of_the_type_asked_for():
    config = ModelConfig.from_descriptor(TINY)
    flat = 0.1 * torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(0))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    loss, gradients = model_gradients(config, flat, tokens[:, :-1], tokens[:, 1:], torch.float64)
    assert list(gradients) == [t.name for t in parameter_layout(config)]
    assert all(gradient.dtype == np.float64 for gradient in gradients.values())
    step = 1e-2 * torch.from_numpy(np.concatenate([g.ravel() for g in gradients.values()])).float()
    lower, _ = model_gradients(config, flat - step, tokens[:, :-1], tokens[:, 1:], torch.float64)
    assert lower < loss  # downhill


def test_without_a_measurement_the_profile_says_so(results, capsys):
    assert show_profile().rows == [["profile: not measured yet"]]
    plot_waterfall()
    assert capsys.readouterr().out == "profile: not measured yet\n"
    assert not plt.get_fignums()


def test_profile_table(results):
    write(results)
    table = show_profile()
    assert table.rows[0] == ["`matmul_forward`", "1", "30.0", "75.0%", "500 TFLOP/s", "20.0", "67%"]
    assert table.rows[4] == ["idle", "1", "1.8", "4.5%", "", "", ""]
    assert "3,000 GB/s and 750 TFLOP/s" in table.caption


def test_waterfall_bars_follow_each_other(results, capsys):
    write(results)
    plot_waterfall()
    assert capsys.readouterr().out == ""
    bars = plt.gca().patches
    starts, widths = [0, 30, 38, 38.2, 0], [30, 8, 0.2, 1.8, 40]
    assert [bar.get_x() for bar in bars[::2]] == pytest.approx(starts)
    assert [bar.get_width() for bar in bars[::2]] == pytest.approx(widths)
    assert [bar.get_width() for bar in bars[1::2]] == pytest.approx([20, 5, 0.05, 0, 25])
    names = [label.get_text() for label in plt.gca().get_yticklabels()]
    assert names == ["matmul_forward", "gelu_forward", "2 others", "idle", "step"]


def test_memory_plot_has_a_bar_for_each_setting():
    plot_memory(D12, 64, 1024)
    assert {text.get_text() for text in plt.gca().texts} == {"29.0", "24.6", "22.4"}
    plt.close("all")
