"""What is launched under compute-sanitizer: every op, and every production kernel of both architectures."""

import pytest

from kernels import SIMULATED, sanitize
from kernels.architecture import force_architecture
from kernels.registry import ARCHITECTURES, all_kernels


@pytest.fixture
def both_architectures(monkeypatch):
    """As on a Hopper GPU."""
    monkeypatch.setattr(sanitize, "architecture", lambda: "sm_90a")
    yield
    force_architecture(None)


def prepared_kernels(op):
    names = {entry.function: name for name, entry in all_kernels().items()}
    found = set()
    for forced in ARCHITECTURES:
        force_architecture(forced)
        for dtype in sanitize.DTYPES:
            launches = [launch for prepared in sanitize.OPS[op](sanitize.Draw(dtype)) for launch in prepared]
            found |= {names[launch.kernel.py_func] for launch in launches}
    return found


@pytest.mark.parametrize("op", sanitize.OPS)
def test_the_shapes_take_every_production_kernel(both_architectures, op):
    kernels = prepared_kernels(op)
    assert any(name.startswith(f"{op}.") for name in kernels)
    assert sanitize.missed(op, kernels) == []


def test_a_kernel_that_did_not_run_is_missed(both_architectures):
    ran = {"encoder.encoder_forward_kernel", "encoder.merge_partials_kernel", "matmul.step11_hidden_epilogue.x_kernel"}
    assert sanitize.missed("encoder", ran) == ["encoder.position_gradient_kernel", "encoder.segment_sums_kernel"]
    assert "matmul.step11_hidden_epilogue.forward_gelu_kernel" in sanitize.missed("matmul", ran)
    assert not any("step1_naive" in name for name in sanitize.missed("matmul", ran))  # a step of the ladder


def test_every_op_is_there():
    ops = {name.partition(".")[0] for name in all_kernels()}
    assert ops - {"lessons"} == set(sanitize.OPS)


@pytest.mark.skipif(not SIMULATED, reason="compute-sanitizer runs it on a GPU")
def test_the_kernels_run_and_are_named(capsys, monkeypatch):
    assert sanitize.main(["memory", "residual"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "memory, residual: simulated",
        "memory.zero_kernel",
        "memory.cast_kernel",
        "residual.residual_forward_kernel",
    ]
    monkeypatch.setitem(sanitize.OPS, "memory", lambda draw: iter([sanitize.zero.prepare(draw.real(3))]))
    assert sanitize.main(["memory"]) == 1
    assert "memory.cast_kernel did not run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sanitize.main(["unknown"])
