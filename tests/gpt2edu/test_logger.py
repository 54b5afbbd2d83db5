"""Lines as llm.c writes them, byte for byte, and reading them back."""

import math

import pytest

from gpt2edu.errors import Gpt2EduError
from gpt2edu.logger import MainLog, Throughput, read_log, step_line


def test_main_log_is_byte_for_byte_llmcs(tmp_path):
    log = MainLog(tmp_path / "new" / "run")
    log.log_validation(0, 11.00921)
    log.log_train(0, 11.009088, 8.571e-07, 15.3667)
    log.log_hellaswag(250, 0.29446)
    # the first and third line are those of llm.c's published run
    assert (tmp_path / "new" / "run" / "main.log").read_bytes() == (
        b"s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:250 eval:0.2945\n"
    )


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MainLog(None).log_validation(0, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_empties_the_log_and_a_resumed_one_appends(tmp_path):
    MainLog(tmp_path).log_validation(0, 1.0)
    MainLog(tmp_path, resume=True).log_validation(5, 2.0)
    assert read_log(tmp_path / "main.log").validation_loss == {0: 1.0, 5: 2.0}
    MainLog(tmp_path)
    assert (tmp_path / "main.log").read_bytes() == b""


def test_later_lines_overwrite_and_cut_lines_are_passed_over(tmp_path):
    path = tmp_path / "main.log"
    path.write_text("s:0 tel:9.0000\ns:1 trl:5.0000 lr:0.001000 norm:1.00\ns:2 trl:4.0000 lr:0.0")
    log = MainLog(tmp_path, resume=True)
    log.log_train(1, 6.0, 0.002, 2.0)
    log.log_train(3, math.nan, 0.002, math.inf)
    log.log_hellaswag(2, 0.25)
    history = read_log(path)
    assert history.validation_loss == {0: 9.0}
    assert history.hellaswag == {2: 0.25}
    assert history.train_loss == {1: 6.0, 3: pytest.approx(math.nan, nan_ok=True)}
    assert history.learning_rate == {1: 0.002, 3: 0.002}
    assert history.grad_norm == {1: 2.0, 3: math.inf}


def test_a_folder_that_cannot_be_made_and_a_log_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Gpt2EduError, match="-o .*file"):
        MainLog(tmp_path / "file")
    with pytest.raises(Gpt2EduError, match="main.log"):
        read_log(tmp_path / "main.log")


def test_the_step_line_is_llmcs():
    line = step_line(
        step=1,
        n_steps=18865,
        loss=11.0090881,
        loss_z=math.nan,
        grad_norm=15.36668,
        grad_norm_z=-0.5,
        learning_rate=8.571e-07,
        ms=300.456,
        mfu=0.5634,
        dtype="bf16",
        tokens_per_s=1747626.6,
    )
    assert line == (
        "step    1/18865 | loss 11.009088 (+nanz)| norm 15.3667 (-0.50z)| lr 8.57e-07 "
        "| 300.46 ms | 56.3% bf16 MFU | 1747627 tok/s"
    )


def test_an_unknown_mfu_is_not_a_number():
    line = step_line(
        step=2,
        n_steps=3,
        loss=1.0,
        loss_z=0.0,
        grad_norm=1.0,
        grad_norm_z=0.0,
        learning_rate=1.0,
        ms=1.0,
        mfu=None,
        dtype="fp32",
        tokens_per_s=1.0,
    )
    assert "| n/a fp32 MFU |" in line


def test_throughput_leaves_out_the_first_step_and_corrects_the_bias():
    throughput = Throughput()
    assert throughput.update(1000, 10.0) == 100.0
    assert math.isnan(throughput.mean_step_ms)
    assert throughput.update(1000, 1.0) == pytest.approx(1000.0)
    # (0.95 * 0.05 * 1000 + 0.05 * 2000) / (1 - 0.95^2)
    assert throughput.update(1000, 0.5) == pytest.approx(147.5 / 0.0975)
    assert throughput.mean_step_ms == pytest.approx(750.0)
