"""The benches at toy size on a CPU: what they write, and what stands in the README."""

import json
import subprocess

import numpy as np
import pytest

from gpt2edu import bench, results
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.results import load_results, stamp_results, write_results
from gpt2edu.shards import write_shard

ROW = {"op": "step", "variant": "trainer, torch engine", "dtype": "bf16", "n_runs": 25}
ROW |= {"shape": {"B": 64, "T": 1024, "tokens": 524288}, "median_ms": 1000.0, "min_ms": 999.0, "max_ms": 1001.0}
ROW |= {"tokens_per_s": 524288.0, "tflop_per_s": 421.254, "torch_ms": 990.0, "torch_ratio": 0.99}


def test_text_run_keeps_the_loss_curves(tmp_path):
    tokens = np.random.default_rng(0).zipf(1.5, 4097) % 256  # uneven, so that there is something to learn
    for split in ("train", "val"):
        write_shard(tmp_path / f"text_{split}_000000.bin", tokens)
    command = ["text_run", "--device", "cpu", "-e", "d2,h2,c32,t32,v256", "-b", "4", "2", "-t", "16", "-d", "128"]
    command += ["-i", str(tmp_path / "text_train_*.bin"), "-j", str(tmp_path / "text_val_*.bin")]
    assert bench.main([*command, "-x", "30", "-v", "15", "--output", str(tmp_path)]) == 0
    (found,) = load_results("text_run", tmp_path)
    four, two = found.rows
    assert [step for step, _ in four["validation_loss"]] == [0, 15, 30]
    assert len(four["train_loss"]) == 30
    assert four["validation_loss"][-1][1] < four["validation_loss"][0][1] - 0.05
    assert two["train_loss"] == pytest.approx(four["train_loss"], rel=1e-4)  # the same sequences, cut otherwise
    with pytest.raises(UsageError, match="-x 33: .* lasts for 32 steps"):
        bench.main([*command, "-x", "33", "--output", str(tmp_path)])


def test_results_of_a_cpu_do_not_go_into_the_book():
    with pytest.raises(UsageError, match="--output is needed on cpu"):
        bench.main(["train_loop", "--device", "cpu"])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository that stands in for ours."""
    root = tmp_path / "repository"
    (root / "gpt2edu").mkdir(parents=True)
    (root / "gpt2edu" / "a.py").write_text("1")
    monkeypatch.setattr(results, "ROOT", root)
    return root


def commit(root):
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *arguments], cwd=root, check=True)


def test_stamp_finds_the_commit_of_the_measured_source(tmp_path, repository):
    measured = write_results("train_loop", [ROW], {}, gpu="H100", driver="580", command="x", folder=tmp_path / "there")
    assert json.loads(measured.read_text())["commit"] == "unknown"
    (repository / "gpt2edu" / "a.py").write_text("2")
    commit(repository)
    with pytest.raises(Gpt2EduError, match="in none of the last commits"):
        stamp_results(measured, tmp_path)
    (repository / "gpt2edu" / "a.py").write_text("1")
    commit(repository)
    measured_commit = results.repository_state()[0]
    (repository / "gpt2edu" / "b.py").write_text("3")
    commit(repository)
    stamped = json.loads(stamp_results(measured, tmp_path).read_text())
    assert (stamped["commit"], stamped["dirty"]) == (measured_commit, False)


def test_readme_table_holds_the_numbers_of_the_files(tmp_path, monkeypatch):
    write_results("train_loop", [ROW], {}, gpu="NVIDIA H100", driver="580", command="x", folder=tmp_path)
    monkeypatch.setattr(bench, "load_results", lambda name: load_results(name, tmp_path))
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(["# Title", *bench.README_MARKERS, "after", ""]))
    for _ in range(2):  # a second time changes nothing
        bench.update_readme(readme)
        text = readme.read_text()
        assert "| NVIDIA H100 | trainer, torch engine | 1,000 | 524,288 | 421 | 0.990 |" in text
        assert text.startswith("# Title\n" + bench.README_MARKERS[0]) and text.endswith("\nafter\n")


def test_the_readme_is_up_to_date():
    text = (bench.ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = bench.README_MARKERS
    assert text.partition(begin)[2].partition(end)[0].strip() == bench.readme_table(), "run gpt2edu.bench readme"
