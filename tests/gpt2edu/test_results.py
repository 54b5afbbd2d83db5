"""The results files: schema, stamp, and what the committed ones may say."""

import json
import subprocess

import pytest

from gpt2edu import results as module
from gpt2edu.errors import Gpt2EduError
from gpt2edu.results import RESULTS_DIR, ROOT, gpu_slug, load_results, write_results

GPU = "NVIDIA H100 80GB HBM3"
ROW = {
    **{"op": "step", "variant": "production", "dtype": "bf16", "shape": {"B": 64, "T": 1024}},
    **{"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0},
}


def write(folder, rows=(ROW,), name="train_loop"):
    return write_results(name, rows, {"copy_gb_per_s": 2500.0}, gpu=GPU, driver="580.1", command="x", folder=folder)


def test_written_results_come_back(tmp_path):
    path = write(tmp_path, [ROW | {"torch_ratio": 1.5}])
    assert path.name == "train_loop.nvidia-h100-80gb-hbm3.json"
    (loaded,) = load_results("train_loop", tmp_path)
    assert (loaded.gpu, loaded.ceilings, loaded.rows) == (GPU, {"copy_gb_per_s": 2500.0}, [ROW | {"torch_ratio": 1.5}])
    assert loaded.versions["torch"] and loaded.command == "x"
    assert load_results("other", tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"median_ms": None}, "median_ms is None"),
        ({"median_ms": 9.0}, "outside min and max"),
        ({"speed": 1.0}, "unknown fields \\['speed'\\]"),
        ({"shape": "64x1024"}, "shape is '64x1024'"),
    ],
)
def test_a_wrong_row_is_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, [ROW | change])
    assert not list(tmp_path.iterdir())


def test_a_row_without_a_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 0 has no shape"):
        write(tmp_path, [{key: value for key, value in ROW.items() if key != "shape"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 2}, "schema is 2"), ({"rows": []}, "no rows"), ({"name": "other"}, "another file")],
)
def test_a_file_of_another_schema_is_named(tmp_path, change, message):
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Gpt2EduError, match=f"{path.name}.*{message}"):
        load_results("train_loop", tmp_path)


def test_the_stamp_says_whether_the_tree_differs_from_the_commit(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert module.repository_state() == ("unknown", True)
    (tmp_path / "gpt2edu").mkdir()
    (tmp_path / "gpt2edu" / "a.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    commit, dirty = module.repository_state()
    assert len(commit) == 40 and not dirty
    (tmp_path / "gpt2edu" / "a.py").write_text("2")
    assert module.repository_state() == (commit, True)


def test_the_command_keeps_no_folder_of_the_machine(tmp_path):
    command = "python -m gpt2edu.bench text_run -i '/home/me/prose/train_*.bin' -j data/val_*.bin --output /tmp/out"
    path = write_results("a", [ROW], {}, gpu=GPU, driver="580.1", command=command, folder=tmp_path)
    assert json.loads(path.read_text())["command"] == (
        "python -m gpt2edu.bench text_run -i 'train_*.bin' -j data/val_*.bin --output out"
    )


def test_gpu_slug():
    assert gpu_slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


def test_committed_results_are_clean_and_of_a_known_commit():
    for results in load_results():
        assert not results.dirty, f"{results.name} on {results.gpu} was measured on uncommitted code"
        assert len(results.commit) == 40
        assert results.command == module.ABSOLUTE_FOLDER.sub("", results.command)
    for path in RESULTS_DIR.glob("*"):
        assert path.name.count(".") == 2 and path.suffix == ".json", f"{path.relative_to(ROOT)} is no results file"
