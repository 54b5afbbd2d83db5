"""The benches at toy size on a CPU: what they write, and what stands in the README."""

import json
import subprocess

import pytest

from gpt2edu import bench, readme_tables, results
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.results import load_results, stamp_results, write_results

ROW = {"op": "step", "variant": "trainer, torch engine", "dtype": "bf16", "n_runs": 25}
ROW |= {"shape": {"B": 64, "T": 1024, "tokens": 524288, "L": 12}, "median_ms": 1e3, "min_ms": 999.0, "max_ms": 1001.0}
ROW |= {"tokens_per_s": 524288.0, "tflop_per_s": 421.254, "torch_ms": 990.0, "torch_ratio": 0.99}


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


def test_readme_tables_hold_the_numbers_of_the_files(tmp_path, monkeypatch):
    write_results("train_loop", [ROW], {}, gpu="NVIDIA H100", driver="580", command="x", folder=tmp_path)
    kernel = {"op": "gelu_forward", "variant": "production", "dtype": "bf16", "shape": {"N": 65_536, "F": 3072}}
    kernel |= {"median_ms": 0.28, "min_ms": 0.27, "max_ms": 0.3, "gb_per_s": 2876.0, "ceiling_share": 0.98}
    ranks = ROW | {"variant": "numba", "shape": ROW["shape"] | {"ranks": 2, "z": 1}, "mfu": 0.4835, "efficiency": 0.969}
    write_results("ranks", [ranks], {}, gpu="NVIDIA H100", driver="580", command="x", folder=tmp_path)
    rows = [kernel | {"torch_ratio": 1.01}, kernel | {"variant": "torch", "torch_ratio": 1.0}]
    write_results("gelu", rows, {}, gpu="NVIDIA H100", driver="580", command="x", folder=tmp_path)
    monkeypatch.setattr(readme_tables, "load_results", lambda name: load_results(name, tmp_path))
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(["# Title", *readme_tables.MARKERS, "after", ""]))
    for _ in range(2):  # a second time changes nothing
        readme_tables.update_readme(readme)
        text = readme.read_text()
        assert (
            "| NVIDIA H100 | trainer, torch engine | d12, B=64, 524,288 tokens | 1,000.0 | 524,288 | 421 | 0.990 |"
            in text
        )
        assert "| gelu_forward | N=65,536, F=3,072 | 0.280 | 2,876 GB/s | 98% | 1.01 |" in text
        assert "| 2 x NVIDIA H100 | numba | `-z 1` | 1,000.0 |  | 524,288 | 48.4% | 96.9% |" in text
        assert text.count("gelu_forward") == 1
        assert text.startswith("# Title\n" + readme_tables.MARKERS[0]) and text.endswith("\nafter\n")


def test_the_readme_is_up_to_date():
    text = (bench.ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = readme_tables.MARKERS
    assert text.partition(begin)[2].partition(end)[0].strip() == readme_tables.tables(), "run gpt2edu.bench readme"
