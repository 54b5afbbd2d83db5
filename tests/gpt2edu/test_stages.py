import os

import pytest

from gpt2edu.errors import Gpt2EduError
from gpt2edu.logger import MainLog
from gpt2edu.stages import RunFolder


def test_a_finished_stage_is_done_only_with_its_settings(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert not run.is_done("data", {"shards": (1, 2)})
    with run.working_on("data", {"shards": (1, 2)}) as stamp:
        stamp.result = {"tokens": 7}
        assert not run.is_done("data", {"shards": (1, 2)})  # not yet
    assert run.is_done("data", {"shards": (1, 2)})
    assert not run.is_done("data", {"shards": (1, 3)})
    assert run.read("data").result == {"tokens": 7}


def test_an_error_leaves_the_stage_undone(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.working_on("train", {}):
        raise KeyboardInterrupt
    assert not run.is_done("train", {})


def test_attempts_add_up_until_the_settings_change(tmp_path):
    run = RunFolder(tmp_path)
    for _ in range(3):
        with run.working_on("train", {"x": 1}) as stamp:
            stamp.done = False  # stopped by a signal
    assert not run.is_done("train", {"x": 1})
    assert len(run.read("train").attempts) == 3
    with run.working_on("train", {"x": 2}):
        pass
    assert len(run.read("train").attempts) == 1


def test_a_killed_attempt_lasted_until_the_log_was_last_written(tmp_path):
    run = RunFolder(tmp_path)
    attempt = run.working_on("train", {})
    stamp = attempt.__enter__()  # and never left
    MainLog(run.train_folder).log_validation(0, 1.0)
    log = run.train_folder / "main.log"
    ended = stamp.attempts[-1]["started"] + 500
    os.utime(log, (ended, ended))
    with run.working_on("train", {}) as stamp:
        pass
    assert stamp.attempts[0]["seconds"] == pytest.approx(500, abs=1e-3)
    assert run.read("train").seconds == pytest.approx(500, abs=5)


def test_damaged_stamp_and_impossible_folder(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "stages" / "data.json").write_text('{"settings": ')
    with pytest.raises(Gpt2EduError, match="data.json is damaged"):
        run.read("data")
    (tmp_path / "file").write_text("")
    with pytest.raises(Gpt2EduError, match="--out"):
        RunFolder(tmp_path / "file" / "run")
