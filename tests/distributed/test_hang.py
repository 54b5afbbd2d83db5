"""A rank that is stuck ends the job and is named; one that is killed is named, and the job goes on where it was."""

import re
import sys
import time

import numpy as np
import pytest
import rank_programs

from gpt2edu import launch
from gpt2edu.errors import UsageError
from gpt2edu.launcher import HANG_EXIT_CODE
from gpt2edu.machine import find_mpiexec
from gpt2edu.shards import write_shard


@pytest.mark.parametrize(("kind", "rank"), [("stopped", 1), ("stopped", 0), ("asleep", 1)])
def test_the_stuck_rank_is_named(run_ranks, kind, rank):
    started = time.monotonic()
    process = run_ranks(2, "stuck", kind, rank)
    assert time.monotonic() - started < 30
    assert process.returncode == HANG_EXIT_CODE, process.stderr
    number, machine = re.search(rf"rank {rank} is process (\d+) on (\S+)", process.stdout).groups()
    how = (
        "its process does not answer"
        if kind == "stopped"
        else r"it has begun \d+ operations of all ranks and others \d+"
    )
    sentence = (
        rf"error: rank {rank} \(process {number} on {machine}\) is stuck: {how}, and the others have waited for 2 s"
    )
    assert len(re.findall(sentence, process.stderr)) == 1, process.stderr


def test_a_killed_job_goes_on_from_its_checkpoints(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tokens = np.random.default_rng(0).integers(0, 10, 3000) ** 2
    write_shard(tmp_path / "tokens.bin", tokens)
    flags = f"-i {tmp_path}/tokens.bin -j {tmp_path}/tokens.bin -e d1,h2,c16,t16,v100 -b 2 -t 16 -d 128 -x 12 -n 2"
    flags += " -l 0.01 -v 0 -s 0 -z 1 --device cpu"
    ranks = [find_mpiexec(), "-n", "2", sys.executable]
    whole = [*ranks, "-m", "gpt2edu.train"]
    assert launch.supervise(whole, [*flags.split(), "-o", f"{tmp_path}/whole"], restarts=0) == 0
    capfd.readouterr()
    dying = [*ranks, rank_programs.__file__, "train_and_die", str(tmp_path)]
    assert launch.supervise(dying, [*flags.split(), "-o", f"{tmp_path}/killed"], restarts=3) == 0
    said = capfd.readouterr().out
    for attempt in (1, 2, 3):
        sentence = rf"rank 1 \(process \d+ on \S+\) died; restart {attempt} of 3, from the last complete checkpoint"
        assert len(re.findall(sentence, said)) == 1, said
    assert {path.name for path in tmp_path.glob("died_in_*")} == {
        f"died_in_{x}" for x in ("step", "collective", "checkpoint")
    }
    for name in ("model_00000012.bin", "state_00000012_00000.bin", "state_00000012_00001.bin"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-n 2 --restarts 1 -- -o run", "--restarts goes on from checkpoints"),
        ("-n 0 -- -o run", "-n is at least 1"),
        ("-n 2 -- -z 9", "-z"),
    ],
)
def test_wrong_commands_start_nothing(monkeypatch, arguments, message):
    monkeypatch.setattr(launch, "supervise", lambda *_: pytest.fail("started"))
    with pytest.raises(UsageError, match=message):
        launch.main(arguments.split())
