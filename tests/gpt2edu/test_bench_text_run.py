"""The bench that learns, at toy size on a CPU, and the yardstick by which the engines are compared."""

import dataclasses

import numpy as np
import pytest

from gpt2edu import bench
from gpt2edu.bench_text_run import Comparison, compare_engines
from gpt2edu.errors import UsageError
from gpt2edu.results import load_results
from gpt2edu.shards import write_shard


def test_the_loss_curves_are_kept(tmp_path, capsys):
    tokens = np.random.default_rng(0).zipf(1.5, 4097) % 256  # uneven, so that there is something to learn
    for split in ("train", "val"):
        write_shard(tmp_path / f"text_{split}_000000.bin", tokens)
    command = ["text_run", "--device", "cpu", "-e", "d2,h2,c32,t32,v256", "--runs", "torch:4", "torch:2", "-t", "16"]
    command += ["-i", str(tmp_path / "text_train_*.bin"), "-j", str(tmp_path / "text_val_*.bin"), "-d", "128"]
    assert bench.main([*command, "-x", "30", "-v", "15", "--output", str(tmp_path)]) == 0
    (found,) = load_results("text_run", tmp_path)
    four, two = found.rows
    assert [row["variant"] for row in found.rows] == ["torch engine, B=4", "torch engine, B=2"]
    assert [step for step, _ in four["validation_loss"]] == [0, 15, 30]
    assert len(four["train_loss"]) == 30
    assert four["validation_loss"][-1][1] < four["validation_loss"][0][1] - 0.05
    assert two["train_loss"] == pytest.approx(four["train_loss"], rel=1e-4)  # the same sequences, cut otherwise
    assert "between numba and torch" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="-x 33: .* lasts for 32 steps"):
        bench.main([*command, "-x", "33", "--output", str(tmp_path)])


def test_unknown_runs_are_refused():
    with pytest.raises(SystemExit):
        bench.main(["text_run", "-i", "a", "-j", "b", "--runs", "jax:4"])


def curve(engine, micro_batch, losses, validation):
    row = {"variant": f"{engine} engine, B={micro_batch}", "shape": {"B": micro_batch}, "train_loss": losses}
    return row | {"validation_loss": [[0, 9.0], [4, validation]]}


def test_the_engines_are_compared_by_the_later_half():
    torch_16 = curve("torch", 16, [9.0, 8.0, 7.0, 6.0], 5.5)
    torch_8 = curve("torch", 8, [8.0, 9.0, 7.01, 6.01], 5.6)
    numba_16 = curve("numba", 16, [7.0, 7.0, 7.03, 5.98], 5.51)
    sm_80_16 = curve("sm_80", 16, [7.0, 7.0, 7.03, 5.94], 5.51)
    found, other = compare_engines([torch_8, torch_16, numba_16, sm_80_16])
    assert dataclasses.astuple(found) == ("numba", *map(pytest.approx, (0.01, 0.025, 0.01)))
    assert found.holds and str(found).endswith("good")
    assert (other.engine, other.difference, other.holds) == ("sm_80", pytest.approx(0.045), False)
    assert compare_engines([torch_16, torch_8]) == []
    assert compare_engines([torch_16, numba_16]) == []


@pytest.mark.parametrize("values", [(0.01, 0.031, 0.0), (0.01, 0.0, 0.021)])
def test_engines_that_are_too_far_apart_are_said_to_be(values):
    assert not Comparison("numba", *values).holds
    assert "TOO FAR" in str(Comparison("numba", *values))


def test_the_measured_engines_agree():
    for results in load_results("text_run"):
        for found in compare_engines(results.rows):
            assert found.holds, found
