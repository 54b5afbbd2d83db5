"""Whole runs of a tiny model on the CPU: the loop, resuming, stopping, and what goes wrong."""

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2edu import train as trainer
from gpt2edu.checkpoint import find_checkpoint
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.hellaswag import Example, write_hellaswag
from gpt2edu.logger import read_log
from gpt2edu.shards import HEADER_BYTES, write_shard
from gpt2edu.torch_engine import TorchEngine
from gpt2edu.weights import load_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Shards of a text in which each of 120 tokens has four successors."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    successors = random.integers(0, 120, size=(120, 4))

    def write(name, n_tokens):
        tokens = [0]
        for choice in random.integers(0, 4, size=n_tokens - 1):
            tokens.append(successors[tokens[-1], choice])
        write_shard(folder / name, np.array(tokens))

    write("toy_train_000001.bin", 2_300)
    write("toy_train_000002.bin", 1_500)
    write("toy_val_000000.bin", 600)
    return folder


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def argv(corpus):
    """A function that returns a command line: 8 sequences of 16 tokens a step, in 2 micro-batches."""

    def build(*extra):
        flags = f"-i {corpus}/toy_train_*.bin -j {corpus}/toy_val_*.bin -e d1,h2,c32,t16,v120 -t 16 -b 4 -d 128"
        flags += " -l 0.01 -u 5 -q 0.1 -c 0.1 -v 0 -s 0 --device cpu"
        return [*flags.split(), *map(str, extra)]

    return build


@pytest.fixture
def outcomes(monkeypatch):
    """What each step found, by step, in all runs of a test."""
    seen = {}
    original = trainer.report_step

    def spy(run, step, outcome, seconds):
        seen[step] = outcome
        original(run, step, outcome, seconds)

    monkeypatch.setattr(trainer, "report_step", spy)
    return seen


def losses(outcomes):
    """The exact losses and gradient norms; z-scores may be NaN, which equals nothing."""
    return {step: (outcome.loss, outcome.grad_norm) for step, outcome in outcomes.items()}


def run(argv):
    return trainer.train(trainer.parse_settings(argv))


def parameters(folder, step):
    return (Path(folder) / f"model_{step:08d}.bin").read_bytes()


# --------------------------------------------------------------------------------------------------
# the loop


def test_a_run_learns_and_leaves_log_checkpoints_and_result(argv, tmp_path, capsys, outcomes):
    result = run(argv("-x", 40, "-v", 20, "-s", 20, "-g", 8, "-n", 20, "-o", tmp_path / "log"))
    assert result.steps == 40
    assert result.tokens == 40 * 128
    assert result.stopped_by is None
    assert result.train_loss == outcomes[39].loss < outcomes[0].loss - 1.0
    assert outcomes[0].loss == pytest.approx(math.log(120), abs=0.1)

    history = read_log(tmp_path / "log" / "main.log")
    assert list(history.validation_loss) == [0, 20, 40]
    assert history.validation_loss[40] == pytest.approx(result.val_loss, abs=1e-4)
    assert history.train_loss == {step: pytest.approx(loss, abs=1e-4) for step, (loss, _) in losses(outcomes).items()}
    assert history.learning_rate[0] == pytest.approx(0.01 / 5)
    assert history.learning_rate[4] == pytest.approx(0.01)

    out = capsys.readouterr().out
    assert len(re.findall(r"^step +\d+/40 \| loss \d+\.\d{6} \(\+nanz\)\| norm .* tok/s$", out, re.M)) == 40
    assert len(re.findall(r"^val loss \d+\.\d{6}$", out, re.M)) == 3
    assert out.count("generating:\n---\n") == 2
    assert "n/a fp32 MFU" in out
    assert "total average iteration time" in out
    assert [name for name in sorted(os.listdir(tmp_path / "log")) if name.startswith("DONE")] == [
        "DONE_00000020",
        "DONE_00000040",
    ]
    assert load_model(tmp_path / "log")[0].n_layers == 1


def test_two_runs_are_equal_bit_for_bit_and_the_micro_batch_changes_only_the_rounding(argv, tmp_path, outcomes):
    run(argv("-x", 6, "-n", 6, "-o", tmp_path / "a"))
    first = losses(outcomes)
    run(argv("-x", 6, "-n", 6, "-o", tmp_path / "b"))
    assert losses(outcomes) == first
    assert parameters(tmp_path / "a", 6) == parameters(tmp_path / "b", 6)
    run(argv("-x", 6, "-b", 1))
    assert losses(outcomes)[5] == pytest.approx(first[5], rel=1e-3)


def test_one_epoch_by_default(argv):
    assert run(argv()).steps == 3_800 // 128


@pytest.mark.parametrize("first_step_only", [False, True])
def test_zero_switches_things_off(argv, tmp_path, capsys, first_step_only):
    result = run(argv("-x", 0 if first_step_only else 2, "-v", 0, "-s", 0, "-n", 0, "-o", tmp_path / "log"))
    out = capsys.readouterr().out
    assert result.steps == (0 if first_step_only else 2)
    assert out.count("val loss") == 1  # at the end
    assert "generating" not in out
    assert sorted(os.listdir(tmp_path / "log")) == ["main.log"]


def test_overfitting_one_batch_sees_the_same_batch_each_step(argv, outcomes):
    run(argv("-a", 1, "-x", 3, "-l", 0.0))
    assert losses(outcomes)[0] == losses(outcomes)[1] == losses(outcomes)[2]
    run(argv("-a", 1, "-x", 60, "-l", 0.02, "-q", 1, "-c", 0))
    assert outcomes[59].loss < 1.0


def test_validation_tokens(argv, capsys):
    for flags, n_tokens in (((), 592), (("-m", -1), 592), (("-m", 3), 3 * 4 * 16)):
        run(argv("-x", 0, *flags))
        assert re.search(rf"\| val tokens +\| {n_tokens} ", capsys.readouterr().out)


def test_hellaswag_is_evaluated_when_validation_is_but_not_before_the_first_step(argv, corpus, tmp_path, capsys):
    random = np.random.default_rng(0)
    examples = [Example(random.integers(0, 120, 5), random.integers(0, 120, (4, 3)), n % 4) for n in range(8)]
    write_hellaswag(tmp_path / "hellaswag.bin", examples)
    flags = ("-e", "d1,h1,c8,t16", "-h", 1, "--hellaswag", tmp_path / "hellaswag.bin", "--tokenizer", "gpt2")
    result = run(argv("-x", 5, "-v", 2, *flags, "-o", tmp_path / "log"))
    history = read_log(tmp_path / "log" / "main.log")
    assert list(history.hellaswag) == [2, 4, 5]
    assert history.hellaswag[5] == pytest.approx(result.hellaswag, abs=1e-4)
    assert re.search(r"^HellaSwag: \d/8 = 0\.\d{6}$", capsys.readouterr().out, re.M)
    assert result.val_bits_per_byte > 0


def test_the_progress_bar_shows_on_a_terminal_only(argv, monkeypatch, capsys):
    run(argv("-x", 2))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(argv("-x", 2))
    assert "2/2" in capsys.readouterr().err


def test_outliers_are_skipped(argv, monkeypatch, capsys, outcomes):
    original = TorchEngine.reduce
    calls = []

    def reduce(self):
        loss, norm = original(self)
        calls.append(1)
        return (loss + 50.0, norm) if len(calls) == 135 else (loss, norm)

    updates = []
    update = TorchEngine.update
    monkeypatch.setattr(TorchEngine, "reduce", reduce)
    monkeypatch.setattr(TorchEngine, "update", lambda self, *a: (updates.append(a[3]), update(self, *a)))
    run(argv("-x", 140, "-sl", 7))
    assert "skipping update due to loss z-score of" in capsys.readouterr().out
    assert sorted(set(range(1, 141)) - set(updates)) == [135]


# --------------------------------------------------------------------------------------------------
# going on


def test_the_next_20_losses_of_a_resumed_run_are_those_of_the_run_that_never_stopped(argv, tmp_path, outcomes):
    run(argv("-x", 150, "-n", 130, "-o", tmp_path / "a", "-sl", 3, "-sg", 3))  # past the outlier window
    never_stopped, log = dict(outcomes), (tmp_path / "a" / "main.log").read_text().splitlines()
    final = parameters(tmp_path / "a", 150)
    for path in (tmp_path / "a").glob("*_00000150*"):
        path.unlink()
    outcomes.clear()
    run(argv("-x", 150, "-n", 50, "-o", tmp_path / "a", "-y", 1, "-sl", 3, "-sg", 3))
    assert sorted(outcomes) == list(range(130, 150))
    assert outcomes == {step: never_stopped[step] for step in range(130, 150)}  # z-scores too
    assert parameters(tmp_path / "a", 150) == final
    assert (tmp_path / "a" / "main.log").read_text().splitlines()[len(log) :] == log[-21:]


def test_resuming_without_a_checkpoint_begins_and_resuming_a_finished_run_only_evaluates(argv, tmp_path, capsys):
    assert run(argv("-x", 4, "-n", 4, "-o", tmp_path / "a", "-y", 1)).steps == 4
    assert "starting at step 0" in capsys.readouterr().out
    result = run(argv("-x", 4, "-n", 4, "-o", tmp_path / "a", "-y", 1))
    assert (result.steps, result.tokens) == (4, 0)
    assert math.isfinite(result.val_loss)


def test_beginning_again_over_a_checkpoint_needs_overwrite(argv, tmp_path):
    run(argv("-x", 6, "-n", 2, "-o", tmp_path / "a"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    with pytest.raises(UsageError, match="DONE_00000006.*-y 1.*--overwrite"):
        run(argv("-x", 3, "-n", 3, "-o", tmp_path / "a"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    run(argv("-x", 3, "-n", 3, "-o", tmp_path / "a", "--overwrite"))
    assert find_checkpoint(tmp_path / "a").step == 3
    assert not list((tmp_path / "a").glob("*_00000006*"))
    assert max(read_log(tmp_path / "a" / "main.log").train_loss) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-d", 256), "-d 128 is now 256"),
        (("-t", 8), "-t 16 is now 8"),
        (("--order-ranks", 2), "--order-ranks 1 is now 2"),
        (("--order-batch", 4), "--order-batch 8 is now 4"),
        (("-a", 1), "-a 0 is now 1"),
        (("-e", "d2,h2,c32,t16,v120"), "-e .*n_layers 1, not 2"),
        (("-x", 3), "-x 3.*step 4 already"),
    ],
)
def test_resuming_as_another_run_is_refused_and_says_what_differs(argv, tmp_path, flags, message):
    run(argv("-x", 4, "-n", 4, "-o", tmp_path / "a"))
    with pytest.raises(Gpt2EduError, match=message):
        run(argv("-x", 8, "-n", 4, "-o", tmp_path / "a", "-y", 1, *flags))


def test_resuming_with_other_text_is_refused(argv, corpus, tmp_path):
    run(argv("-x", 4, "-n", 4, "-o", tmp_path / "a"))
    with pytest.raises(UsageError, match="-i had 3,800 tokens and has 2,300"):
        run(argv("-x", 8, "-o", tmp_path / "a", "-y", 1, "-i", corpus / "toy_train_000001.bin"))


def test_harmless_settings_may_change_and_others_are_told(argv, tmp_path, capsys):
    run(argv("-x", 4, "-n", 4, "-o", tmp_path / "a"))
    capsys.readouterr()
    run(argv("-x", 4, "-n", 2, "-b", 2, "-v", 1, "-s", 3, "-r", 0, "-o", tmp_path / "a", "-y", 1))
    assert "note:" not in capsys.readouterr().out
    run(argv("-x", 6, "-l", 0.5, "-o", tmp_path / "a", "-y", 1))
    out = capsys.readouterr().out
    assert "note: -x was 4 and is now 6" in out
    assert "note: -l was 0.01 and is now 0.5" in out


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(argv, tmp_path, outcomes, capsys):
    run(argv("-x", 6, "-n", 2, "-o", tmp_path / "a"))
    never_stopped = losses(outcomes)
    path = tmp_path / "a" / "model_00000006.bin"
    path.write_bytes(path.read_bytes()[:-4])
    outcomes.clear()
    run(argv("-x", 6, "-n", 2, "-o", tmp_path / "a", "-y", 1))
    assert losses(outcomes) == {step: never_stopped[step] for step in (4, 5)}
    assert "model_00000006.bin" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# stopping


@pytest.fixture
def signal_after(monkeypatch):
    """A function that has a signal sent to this process inside a step."""

    def plan(step, *numbers):
        original = TorchEngine.update

        def update(self, learning_rate, weight_decay, grad_scale, t):
            if t == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
            original(self, learning_rate, weight_decay, grad_scale, t)

        monkeypatch.setattr(TorchEngine, "update", update)

    return plan


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    argv, tmp_path, outcomes, capsys, signal_after, monkeypatch, number, code
):
    run(argv("-x", 8))
    never_stopped = losses(outcomes)
    outcomes.clear()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signal_after(5, number)
    assert trainer.main(argv("-x", 8, "-n", 100, "-o", tmp_path / "a")) == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert find_checkpoint(tmp_path / "a").step == 5
    assert f"stopped by {number.name} after step 5; go on with the same command and -y 1" in capsys.readouterr().out
    signal_after(99, number)
    assert trainer.main(argv("-x", 8, "-n", 100, "-o", tmp_path / "a", "-y", 1)) == 0
    assert losses(outcomes) == never_stopped


def test_without_a_folder_a_signal_says_that_nothing_was_saved(argv, capsys, signal_after):
    signal_after(2, signal.SIGTERM)
    assert run(argv("-x", 8)).stopped_by == signal.SIGTERM
    assert "nothing was saved" in capsys.readouterr().out


def test_a_second_ctrl_c_stops_at_once(argv, signal_after):
    signal_after(2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(argv("-x", 8))


def spoil(monkeypatch, steps, value=(math.nan, math.nan)):
    """Let the steps (from 1) report a loss and norm that are not finite."""
    original = TorchEngine.reduce
    calls = []

    def reduce(self):
        calls.append(1)
        good = original(self)
        return value if len(calls) in steps else good

    monkeypatch.setattr(TorchEngine, "reduce", reduce)


def test_three_bad_losses_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(argv, tmp_path, monkeypatch):
    spoil(monkeypatch, {5, 6, 7})
    with pytest.raises(Gpt2EduError, match=f"3 steps in a row.*step 7.*{tmp_path / 'a'}.*-y 1.*-l"):
        run(argv("-x", 9, "-n", 2, "-nk", 1, "-o", tmp_path / "a"))
    checkpoint = find_checkpoint(tmp_path / "a")
    assert checkpoint.step == 4
    assert np.isfinite(load_model(str(checkpoint.model_path))[1].numpy()).all()


def test_fewer_bad_losses_are_skipped_and_the_weights_stay_good(argv, monkeypatch, capsys):
    spoil(monkeypatch, {2, 3, 5, 6})
    assert math.isfinite(run(argv("-x", 8)).train_loss)
    assert capsys.readouterr().out.count("skipping update due to loss nan and gradient norm nan") == 4
    spoil(monkeypatch, {3}, (2.0, math.inf))
    with pytest.raises(Gpt2EduError, match="1 steps in a row"):
        run(argv("-x", 8, "--max-bad-steps", 1))


def test_an_fp16_overflow_is_no_bad_step(argv, monkeypatch, capsys):
    engine_init = TorchEngine.__init__

    def init(self, *arguments):
        engine_init(self, *arguments)
        self.scaler.scale = 2.0**30

    monkeypatch.setattr(TorchEngine, "__init__", init)
    result = run(argv("-x", 20, "--dtype", "fp16"))
    assert math.isfinite(result.train_loss)
    assert capsys.readouterr().out.count("skipping update due to an fp16 overflow") > 3


def test_out_of_memory_names_the_micro_batch(argv, monkeypatch):
    def accumulate(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TorchEngine, "accumulate", accumulate)
    with pytest.raises(Gpt2EduError, match="^-b 4: .*largest that fits is -b 2$"):
        run(argv("-x", 2))


# --------------------------------------------------------------------------------------------------
# bad input


def test_bad_shards_are_named(argv, tmp_path):
    good = np.arange(3000) % 120
    path = tmp_path / "bad_train.bin"
    for spoil_it, message in (
        (lambda: path.write_bytes(path.read_bytes()[:-2]), "bytes"),
        (lambda: path.write_bytes(b"\0\0\0\0" + path.read_bytes()[4:]), "magic"),
        (lambda: write_shard(path, np.where(good == 7, 120, good)), "token id 120"),
        (lambda: write_shard(path, good[:50]), "bad_train.bin"),
        (lambda: path.write_bytes(path.read_bytes()[:HEADER_BYTES]), "bad_train.bin"),
    ):
        write_shard(path, good)
        spoil_it()
        with pytest.raises(Gpt2EduError, match=message) as problem:
            run(argv("-x", 30, "-i", path))
        assert "bad_train.bin" in str(problem.value)
        assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-t", 32, "-d", 256), "-t 32 is longer than the model's context of 16"),
        (("-d", 100), "-d 100 .*nearest.*-d 64 or 128"),
        (("-d", 8192), "-d 8192.*3,800 tokens"),
        (("-e", "no_such.bin"), "-e no_such.bin.*-e d12"),
        (("-e", "d13"), "-e: .*'d13'.*d4,h4,c256"),
        (("-pn", 2), "-pn 2.*mpirun -np 2"),
        (("--tokenizer", "gpt2"), "--tokenizer gpt2"),
        (("-h", 1, "--hellaswag", "no_such"), "--hellaswag no_such"),
    ],
)
def test_impossible_settings_name_the_flag(argv, flags, message):
    with pytest.raises(Gpt2EduError, match=message):
        run(argv("-x", -1 if 8192 in flags else 1, *flags))


def test_a_full_disk_is_one_sentence(argv, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "main.log").symlink_to("/dev/full")
    with pytest.raises(Gpt2EduError, match="disk is full while writing .*main.log"):
        run(argv("-x", 2, "-o", tmp_path / "a"))


def test_from_the_shell_errors_are_one_line_and_an_exit_code(argv):
    def shell(*flags):
        command = [sys.executable, "-m", "gpt2edu.train", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    without_flags = shell()
    assert (without_flags.returncode, without_flags.stdout) == (1, "")
    assert re.fullmatch(r"error: -i .*python -m gpt2edu\.data tinyshakespeare.*\n", without_flags.stderr)
    wrong = shell(*argv("-z", 2))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert re.fullmatch(r"error: -z 2 .*\n", wrong.stderr)
