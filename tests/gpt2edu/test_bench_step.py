"""Whole steps against each other, at toy size on a CPU."""

import argparse

import pytest
import torch

from gpt2edu import bench, bench_step
from gpt2edu.results import load_results

TOY = ["--device", "cpu", "-e", "d2,h2,c32,t32,v256", "-b", "2", "-t", "16", "-d", "64"]
FEW = ["--blocks", "2", "--block-steps", "2", "--warmup", "1"]


def test_train_loop_writes_a_results_file(tmp_path):
    assert bench.main(["train_loop", *TOY, *FEW, "--output", str(tmp_path)]) == 0
    (found,) = load_results("train_loop", tmp_path)
    trainer, bare = found.rows
    assert (trainer["variant"], bare["variant"]) == ("trainer, torch engine", "bare PyTorch loop")
    assert trainer["n_runs"] == bare["n_runs"] == 4
    assert trainer["torch_ratio"] == pytest.approx(bare["median_ms"] / trainer["median_ms"], rel=1e-5)
    assert bare["torch_ratio"] == 1.0
    assert bare["tokens_per_s"] == pytest.approx(64 / bare["median_ms"] * 1e3, rel=1e-5)
    assert found.command.startswith("python -m gpt2edu.bench " + " ".join(["train_loop", *TOY, *FEW]))


TINY = ["step", "--device", "cpu", "-e", "d1,h1,c16,t8,v60", "-b", "1", "-t", "8", "-d", "8"]
ONCE = ["--blocks", "1", "--block-steps", "1", "--warmup", "0"]


def test_step_compares_the_engines(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(
        bench_step, "trainer_step", lambda run: lambda: taken.append((run.settings.backend, type(run.engine).__name__))
    )
    assert bench.main([*TINY, *ONCE, "--sizes", "d2,h1,c16,t8,v60:2:32", "--output", str(tmp_path)]) == 0
    one_size = 2 * [("numba", "NumbaEngine")] + 2 * [("torch", "TorchEngine")]  # one call untimed, one timed
    assert taken == 2 * one_size
    (found,) = load_results("step", tmp_path)
    numba, torch_row, *further = found.rows
    assert [(row["variant"], row["shape"]["B"], row["shape"]["tokens"], row["shape"]["L"]) for row in further] == [
        ("numba", 2, 32, 2),
        ("torch", 2, 32, 2),
    ]
    assert (numba["op"], numba["variant"], torch_row["variant"]) == ("step", "numba", "torch")
    assert numba["shape"] == {"B": 1, "T": 8, "tokens": 8, "L": 1, "C": 16, "V": 60, "recompute": 0}
    assert numba["torch_ratio"] == pytest.approx(torch_row["median_ms"] / numba["median_ms"], rel=1e-3)


@pytest.mark.slow
def test_both_engines_really_take_a_step(tmp_path):
    assert bench.main([*TINY, *ONCE, "--output", str(tmp_path)]) == 0
    (found,) = load_results("step", tmp_path)
    assert all(row["tokens_per_s"] > 0 for row in found.rows)


def test_the_bare_loop_learns(tmp_path):
    arguments = argparse.Namespace(model="d2,h2,c32,t32,v256", micro_batch=2, seq_len=16, total_batch=64, recompute=0)
    settings = bench_step.train_settings(arguments, torch.device("cpu"), tmp_path)
    settings.learning_rate = 1e-2
    loop = bench_step.BareLoop(settings, 2, "fp32", torch.device("cpu"))
    before = loop.losses(loop.inputs_BT, loop.targets_BT).mean().item()
    for _ in range(5):
        loop.step()
    assert loop.losses(loop.inputs_BT, loop.targets_BT).mean().item() < before - 0.1


def test_sizes_that_are_none_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main([*TINY, "--sizes", "d12:4"])
    assert "'d12:4' is no MODEL:B:TOKENS such as d12:4:32768" in capsys.readouterr().err
