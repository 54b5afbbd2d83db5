"""What cells tagged `gpu` print: a verdict on the stored table, in the simulator about a made-up one."""

import pytest
import torch

from gpt2edu import show_measured
from gpt2edu.bench_ops import GROUPS, OPS
from gpt2edu.bench_ops.case import Sizes
from gpt2edu.results import load_results
from kernels import SIMULATED

CPU = torch.device("cpu")
ROW = {"op": "gelu_forward", "variant": "production", "shape": {"N": 65536, "F": 3072}, "ceiling_share": 0.9}


def verdict(now, stored):
    return show_measured._verdict(ROW | {"ceiling_share": now}, [ROW | {"ceiling_share": share} for share in stored])


@pytest.mark.parametrize(("now", "stored", "holds"), [(0.9, [0.9], 1), (0.73, [0.9], 1), (0.71, [0.9], 0), (1, [], 0)])
def test_verdict_leaves_a_fifth_to_clocks(now, stored, holds, capsys):
    assert verdict(now, stored) == holds
    assert capsys.readouterr().out.startswith("✓" if holds else "✗")


def test_a_good_verdict_reads_the_same_whatever_was_measured(capsys):
    verdict(0.95, [0.9])
    verdict(0.8, [0.9])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == "✓ gelu_forward N=65536 F=3072: as near to the ceiling as in the table"


def test_the_first_shape_of_each_op_in_the_chapters_is_in_its_table():
    for op in ("residual", "gelu_forward", "matmul_forward", "layernorm_forward", "attention_forward", "classifier"):
        group = OPS.get(op, op)
        case = next(case for case in GROUPS[group](CPU, Sizes()) if case.op == op)
        rows = [row for results in load_results(group) for row in results.rows]
        assert any(
            row["op"] == op and row["shape"] == case.shape and row["variant"] == "production" and "ceiling_share" in row
            for row in rows
        ), op


@pytest.mark.skipif(not SIMULATED, reason="there is a GPU")
def test_without_a_gpu_they_say_why_nothing_is_measured(capsys):
    show_measured.measure_again("gelu_forward")
    show_measured.measure_step_again()
    assert capsys.readouterr().out == 2 * (show_measured.SKIPPED + "\n")


@pytest.mark.gpu
def test_on_a_gpu_the_table_is_compared_with(capsys):
    show_measured.measure_again("gelu_forward")
    assert "N=65536 F=3072: " in capsys.readouterr().out
