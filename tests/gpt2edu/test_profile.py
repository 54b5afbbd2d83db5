"""The profile gives each kernel to its operation, counts the work by hand-checked formulas, and adds up."""

import pytest
import torch
from engine_cases import make_engine

from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.profile import COPY, IDLE, DeviceEvent, Part, RecordingPasses, draw_timeline, label, main, rows_of, table
from gpt2edu.work import Work, work_of

CEILINGS = {"copy_gb_per_s": 1000.0, "matmul_tflop_per_s": 100.0}


def bf16(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)


def fp32(*shape):
    return torch.zeros(shape)


CASES = [
    ("matmul_forward", (bf16(2, 3, 5), bf16(2, 3, 7), bf16(5, 7), bf16(5)), {}, 2 * 6 * 5 * 7, 2 * (30 + 42 + 35 + 5)),
    ("matmul_grad_input", (bf16(6, 7), bf16(6, 5), bf16(5, 7)), {}, 2 * 6 * 5 * 7, 2 * (42 + 30 + 35)),
    ("matmul_grad_weight", (fp32(5, 7), bf16(6, 5), bf16(6, 7)), {}, 2 * 6 * 5 * 7, 4 * 35 + 2 * (30 + 42)),
    ("attention_forward", (bf16(2, 8, 6), fp32(2, 1, 8), fp32(1), bf16(2, 8, 18)), {}, 2 * 2 * 8 * 8 * 6, None),
    ("attention_backward", (bf16(2, 8, 18), fp32(1), bf16(2, 8, 6), bf16(2, 8, 6)), {}, 5 * 2 * 8 * 8 * 6, None),
    ("gelu_forward", (bf16(10), bf16(10)), {}, 0, 40),
    ("fused_classifier", (fp32(3), bf16(3, 8), torch.zeros(3), 7, 0.1), {"write_gradient": True}, 0, 2 * 48),
    ("fused_classifier", (fp32(3), bf16(3, 8), torch.zeros(3), 7, 0.1), {"write_gradient": False}, 0, 48),
    ("encoder_backward", (fp32(50, 4), fp32(3, 4), fp32(99), bf16(2, 3, 4), torch.zeros(9)), {}, 0, 2 * (48 + 48 + 96)),
]


@pytest.mark.parametrize(("operation", "arguments", "keywords", "flop", "n_bytes"), CASES)
def test_work(operation, arguments, keywords, flop, n_bytes):
    work = work_of(operation, arguments, keywords)
    assert work.flop == flop
    if n_bytes is not None:
        assert work.n_bytes == n_bytes


@pytest.mark.parametrize(("accumulate", "n_arrays"), [(True, 4), (False, 3)])
def test_layernorm_backward_moves_its_gradient_twice_when_it_adds(accumulate, n_arrays):
    row = bf16(4, 8)
    arguments = (row, fp32(8), fp32(8), fp32(100), row.clone(), row.clone(), bf16(8), fp32(4), fp32(4))
    assert work_of("layernorm_backward", arguments, {"accumulate": accumulate}).n_bytes == n_arrays * row.nbytes


def test_every_launch_of_a_micro_step_has_its_operation():
    engine = make_engine()
    passes = engine.recorded_passes(1, 8, 1, RecordingPasses)
    launches = passes.micro_step(1.0)
    assert [part.operation for part in passes.parts][:2] == ["encoder_forward", "layernorm_forward"]
    assert len(passes.parts) == len(launches)
    n_layers = engine.config.n_layers
    counted = [part.operation for part in passes.parts if part.work.flop]
    assert counted.count("matmul_forward") == 4 * n_layers + 1
    assert counted.count("matmul_grad_weight") == 4 * n_layers + 1
    assert counted.count("attention_backward") == n_layers


EVENTS = [
    DeviceEvent("Memcpy HtoD (Pinned -> Device)", 0.0, 10.0),
    DeviceEvent("first", 20.0, 120.0),
    DeviceEvent("second", 120.0, 220.0),
    DeviceEvent("third", 250.0, 300.0),
]
PARTS = [
    Part("matmul_forward", Work(flop=5 * 10**9)),
    Part("matmul_forward", Work()),
    Part("gelu_forward", Work(0, 40_000_000)),
]


def test_rows_add_up():
    rows = rows_of(label(EVENTS, PARTS), CEILINGS, "bf16", {"B": 1})
    by_op = {row["op"]: row for row in rows}
    assert [row["op"] for row in rows] == ["matmul_forward", "gelu_forward", COPY, IDLE, "step"]
    assert by_op["matmul_forward"]["median_ms"] == pytest.approx(0.2)
    assert by_op["matmul_forward"]["tflop_per_s"] == pytest.approx(25.0)
    assert by_op["matmul_forward"]["ceiling_share"] == pytest.approx(0.25)
    assert by_op["gelu_forward"]["gb_per_s"] == pytest.approx(800.0)
    assert by_op[IDLE]["median_ms"] == pytest.approx(0.04)
    assert sum(row["median_ms"] for row in rows[:-1]) == pytest.approx(rows[-1]["median_ms"]) == pytest.approx(0.3)
    assert rows[-1]["floor_ms"] == pytest.approx(0.05 + 0.04)
    assert "66.7%" in table(rows)


def test_missing_kernel_is_an_error():
    with pytest.raises(Gpt2EduError, match="3 kernels, but the step has 2 launches"):
        label(EVENTS, PARTS[:2])


def test_timeline_is_drawn(tmp_path):
    draw_timeline(label(EVENTS, PARTS), tmp_path / "t.svg", 1)
    assert "</svg>" in (tmp_path / "t.svg").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        main([])
