import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt2edu import plan as plan_module
from gpt2edu import reproduce, reproduction
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.machine import Gpu, Machine
from gpt2edu.plan import make_plan
from gpt2edu.presets import PRESETS
from gpt2edu.reproduction import Reproduction, first_tokens
from gpt2edu.shards import write_shard
from gpt2edu.stages import RunFolder

NO_GPU = Machine((), None, None, "a processor", 2, 2**34)
EIGHT_GPUS = Machine(
    (Gpu("NVIDIA A100-SXM4-80GB", 80 * 2**30, (8, 0)),) * 8, "580.95", (13, 0), "a processor", 96, 2**40
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A data folder in which the smoke preset has been reproduced with the command."""
    folder = tmp_path_factory.mktemp("data")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = reproduce.main(["--preset", "smoke", "--data-dir", str(folder)])
    torch.set_num_threads(threads)
    assert code == 0
    return folder


def run_of(folder):
    return RunFolder(folder / "runs" / "smoke")


def test_smoke_run_beats_counting_and_leaves_a_report(smoke, capsys):
    result = run_of(smoke).read("evaluate").result
    baselines = {row["name"]: row["bits_per_byte"] for row in result["baselines"]}
    assert list(baselines) == ["unigram", "bigram", "gzip"]
    assert result["bits_per_byte"] < baselines["unigram"] - 0.5
    assert baselines["bigram"] < baselines["gzip"] < baselines["unigram"]
    texts = run_of(smoke).read("sample").result["texts"]
    assert [text["prompt"] for text in texts] == ["", "And it came to pass"]
    assert all(len(text["text"].split()) > 10 for text in texts)
    page = (run_of(smoke).path / "report.html").read_text()
    assert f"{result['bits_per_byte']:.4f}" in page and run_of(smoke).read("train").result["sha256"] in page
    logged = (run_of(smoke).train_folder / "main.log").read_text()
    assert f"s:400 tel:{result['nats_per_token']:.4f}" in logged  # the same validation as the trainer's


def test_same_command_does_nothing_again(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_of(smoke).train_folder.iterdir()}
    assert reproduce.main(["--preset", "smoke", "--data-dir", str(smoke)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("done already") == 4
    assert "this model" in printed and "unigram" in printed and "And it came to pass" in printed
    assert {path: path.stat().st_mtime_ns for path in run_of(smoke).train_folder.iterdir()} == before


def test_changed_settings_are_done_again(smoke, capsys):
    work = Reproduction(make_plan(NO_GPU, "smoke"), run_of(smoke), smoke)
    assert work.training_is_done() and work.start_arguments() == ["-y", "1"]
    other = dataclasses.replace(PRESETS["smoke"], flags=PRESETS["smoke"].flags.replace("0.005", "0.006"))
    work = Reproduction(dataclasses.replace(work.plan, preset=other), run_of(smoke), smoke)
    assert not work.training_is_done() and work.start_arguments() == ["--overwrite"]
    command = reproduce.before_training(work, yes=False)
    assert "0.006" in command and command[-1] == "--overwrite"
    assert "The settings have changed" in capsys.readouterr().out


def test_a_lost_checkpoint_is_made_again(smoke, tmp_path):
    work = Reproduction(make_plan(NO_GPU, "smoke"), run_of(smoke), smoke)
    done = work.final_checkpoint().done_path
    done.rename(tmp_path / "DONE")
    assert not work.training_is_done()
    (tmp_path / "DONE").rename(done)
    assert work.training_is_done()


def test_dry_run_starts_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "describe_machine", lambda: EIGHT_GPUS)
    assert reproduce.main(["--dry-run", "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("8 x NVIDIA A100") and "9,890,693,120" in printed and "$/h each" in printed
    assert printed.count("rojection to") == 1
    assert not list(tmp_path.iterdir())
    reproduce.main(["--dry-run", "--gpus", "0"])
    printed = capsys.readouterr().out
    assert "preset laptop" in printed and "rojection" not in printed


def consent_in(monkeypatch, *, terminal, answer=None):
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"isatty": lambda self: terminal})())
    monkeypatch.setattr("builtins.input", lambda _question: answer)


def test_large_work_is_not_started_without_consent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "describe_machine", lambda: EIGHT_GPUS)
    monkeypatch.setattr(reproduce.shutil, "disk_usage", lambda _: reproduce.shutil._ntuple_diskusage(1e13, 0, 1e13))
    started = []
    monkeypatch.setattr(Reproduction, "prepare_data", lambda self: started.append(self) or 1 / 0)
    for terminal, answer in ((False, None), (True, ""), (True, "no")):
        consent_in(monkeypatch, terminal=terminal, answer=answer)
        with pytest.raises(UsageError, match="--preset laptop") as caught:
            reproduce.main(["--data-dir", str(tmp_path)])
        assert caught.value.exit_code == 2
        assert ("--yes" in str(caught.value) and "FULL=1" in str(caught.value)) is not terminal
        assert "$/h each" in capsys.readouterr().out  # the plan is printed first
    assert not started
    for arguments, answer in ((["--yes"], None), ([], "y")):
        consent_in(monkeypatch, terminal=answer is not None, answer=answer)
        with pytest.raises(ZeroDivisionError):  # it goes on to the data
            reproduce.main(["--data-dir", str(tmp_path), *arguments])
    assert len(started) == 2


def test_a_small_disk_is_told_before_anything_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "describe_machine", lambda: EIGHT_GPUS)
    monkeypatch.setattr(reproduce.shutil, "disk_usage", lambda _: reproduce.shutil._ntuple_diskusage(1e9, 0, 1e9))
    with pytest.raises(Gpt2EduError, match=r"1.0 GB free and the token shards need 20.0 GB.*--data-dir"):
        reproduce.main(["--data-dir", str(tmp_path), "--yes"])


@pytest.mark.parametrize("arguments", [["--gpus", "-1"], ["--preset", "gpt5"], ["--restarts", "-1"]])
def test_wrong_flags(arguments, tmp_path):
    with pytest.raises(UsageError, match=arguments[0]):
        reproduce.main([*arguments, "--data-dir", str(tmp_path)])


def large_work(tmp_path):
    """The 124M recipe on 8 GPUs, with two tiny shards in place of FineWeb."""
    plan = make_plan(EIGHT_GPUS)
    work = Reproduction(plan, RunFolder(tmp_path / "run"), tmp_path)
    work.shards.mkdir()
    from gpt2edu.manifest import Manifest

    manifest = Manifest("fineweb", "gpt2", 50257, "made for a test", complete=True)
    for split in ("val", "train"):
        write_shard(work.shards / f"fineweb_{split}_000000.bin", torch.arange(5000).numpy().astype("uint16"))
        manifest.add(work.shards / f"fineweb_{split}_000000.bin", split)
    manifest.save(work.shards)
    return work


def test_the_training_command_of_the_recipe(tmp_path):
    work = large_work(tmp_path)
    command = work.train_command()
    values = dict(zip(command[::2], command[1::2], strict=True))
    assert values["-i"] == str(tmp_path / "fineweb10B" / "fineweb_train_*.bin")
    assert values["-e"] == "d12" and values["-x"] == "18865" and values["-z"] == "1" and values["-d"] == "524288"
    assert "--hellaswag" not in values
    work.hellaswag_path.parent.mkdir()
    work.hellaswag_path.touch()
    assert "--hellaswag" in work.train_command()
    assert work.data_command()[-2:] == ["--shards", "99"]
    assert not work.data_is_ready()  # 1 of 99 shards


@pytest.mark.parametrize("exit_code", [0, 3])
def test_mpiexec_is_started_with_one_process_a_gpu(tmp_path, monkeypatch, exit_code):
    work = large_work(tmp_path)
    launcher = tmp_path / "mpiexec"
    launcher.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nexit {exit_code}\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(reproduction, "find_mpiexec", lambda: str(launcher))
    assert work.starts_processes()
    if exit_code:
        with pytest.raises(Gpt2EduError, match="exit code 3"):
            work.train_processes(["-e", "d12"])
    else:
        assert work.train_processes(["-e", "d12"]) == 0
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["-n", "8", sys.executable, "-m", "gpt2edu.train", "-e", "d12"]


@pytest.mark.parametrize(("restarts", "n_starts"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_a_broken_training_is_started_again(tmp_path, monkeypatch, capsys, restarts, n_starts):
    """Two ranks die, the third time all is well."""
    launcher = tmp_path / "mpiexec"
    died = "error: rank 5 (process 77 on here) died of SIGKILL"
    launcher.write_text(
        f'#!/bin/sh\necho started "$@" >> {tmp_path}/starts\n'
        f'[ $(wc -l < {tmp_path}/starts) = 3 ] || {{ echo "{died}"; exit 9; }}\n'
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(reproduction, "find_mpiexec", lambda: str(launcher))
    work = Reproduction(make_plan(EIGHT_GPUS), RunFolder(tmp_path / "run"), tmp_path, restarts)
    if restarts < 2:
        with pytest.raises(
            Gpt2EduError, match=r"^rank 5 \(process 77 on here\) died of SIGKILL, .*run the same command again"
        ):
            work.train_processes(["-e", "d12", "--overwrite"])
    else:
        assert work.train_processes(["-e", "d12", "--overwrite"]) == 0
    starts = (tmp_path / "starts").read_text().splitlines()
    assert [line.split("gpt2edu.train ")[1] for line in starts] == [
        "-e d12 --overwrite",
        *["-e d12 -y 1"] * (n_starts - 1),
    ]
    assert capsys.readouterr().out.count("rank 5 (process 77 on here) died of SIGKILL; restart") == n_starts - 1


def test_a_single_process_is_supervised_too(tmp_path, monkeypatch):
    work = Reproduction(make_plan(NO_GPU, "smoke"), RunFolder(tmp_path / "run"), tmp_path, restarts=1)
    assert work.starts_processes()
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/starts\n[ $(wc -l < {tmp_path}/starts) = 2 ] || kill -9 $$\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(reproduction.sys, "executable", str(program))
    assert work.train_processes(["-x", "3"]) == 0
    assert (tmp_path / "starts").read_text() == "-m gpt2edu.train -x 3\n-m gpt2edu.train -x 3 -y 1\n"


def test_a_signal_is_passed_on_once(tmp_path, monkeypatch):
    work = large_work(tmp_path)
    launcher = tmp_path / "mpiexec"
    launcher.write_text(
        f"#!{sys.executable}\nimport os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'seen')!r}, 'a').write('x'), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n"
    )
    launcher.chmod(0o755)
    monkeypatch.setattr(reproduction, "find_mpiexec", lambda: str(launcher))
    assert work.train_processes([]) == 128 + signal.SIGTERM
    assert (tmp_path / "seen").read_text() == "x"


def test_first_tokens_of_several_shards(tmp_path):
    for number in range(3):
        tokens = torch.arange(10 * number, 10 * number + 10).numpy().astype("uint16")
        write_shard(tmp_path / f"t_{number:06d}.bin", tokens)
    assert first_tokens(str(tmp_path / "t_*.bin"), 15).tolist() == list(range(15))
    assert first_tokens(str(tmp_path / "t_*.bin"), 99).tolist() == list(range(30))


def command(folder, *arguments):
    return [*arguments, sys.executable, "-m", "gpt2edu.reproduce", "--preset", "smoke", "--data-dir", str(folder)]


@pytest.mark.slow
def test_stopped_and_run_again_gives_the_same_model(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # like the fixture: sums depend on the number of threads
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        log = run_of(tmp_path).train_folder / "main.log"
        while not (log.exists() and "s:150 " in log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert "go on" in process.stdout.read()
        assert process.wait() == 128 + signal.SIGTERM
    assert not run_of(tmp_path).read("train").done
    subprocess.run(command(tmp_path), check=True, stdout=subprocess.DEVNULL)
    trained = run_of(tmp_path).read("train")
    assert trained.result["sha256"] == run_of(smoke).read("train").result["sha256"]
    assert len(trained.attempts) == 2 and trained.attempts[1]["first_step"] >= 150


@pytest.mark.slow
def test_two_ranks_that_mpi_started_reach_the_same_loss(smoke, tmp_path):
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    answer = subprocess.run(command(tmp_path, mpiexec, "-n", "2"), check=True, capture_output=True, text=True).stdout
    assert answer.count("[1/5 data]") == answer.count("[5/5 report]") == 1
    alone, together = (run_of(folder).read("evaluate").result["nats_per_token"] for folder in (smoke, tmp_path))
    assert together == pytest.approx(alone, abs=2e-2)


@pytest.mark.slow
def test_it_starts_its_own_ranks(smoke, tmp_path):
    plan = dataclasses.replace(make_plan(NO_GPU, "smoke"), world_size=2, micro_batch=8)
    work = Reproduction(plan, RunFolder(tmp_path / "run"), smoke)
    assert reproduce.reproduce(work, yes=False) == 0
    assert json.loads((tmp_path / "run" / "stages" / "train.json").read_text())["done"]
    assert "-z" in plan.train_flags


def test_presets_that_are_large_are_those_with_a_price(monkeypatch):
    for name in PRESETS:
        large = plan_module.large_work(make_plan(EIGHT_GPUS, name), data_ready=False)
        assert bool(large) == name.startswith("gpt2")
