"""A rank that dies or hangs at any moment is named, the job ends soon, and goes on as if nothing had happened."""

import random
import re
import sys
import time

import numpy as np
import pytest
import rank_programs

from gpt2edu import launch, supervisor
from gpt2edu.errors import UsageError
from gpt2edu.logger import read_log
from gpt2edu.machine import find_mpiexec
from gpt2edu.shards import write_shard

END_S = 30  # a broken job must have ended by then
HANG_TIMEOUT_S = 20
N_STEPS, CHECKPOINT_EVERY = 40, 3
CALLS = {"step": (1, 5), "collective": (20, 70), "checkpoint": (1, 2)}  # of a start, in which a rank may die


def seeded_deaths(seed: int, ranks: list[int], places: list[str], signal_name: str) -> list[str]:
    """Return a death of each of `ranks` in the place beside it, in a call that `seed` decides."""
    chosen = random.Random(seed)
    return [
        f"{place}/{rank}/{chosen.randint(*CALLS[place])}/{signal_name}"
        for rank, place in zip(ranks, places, strict=True)
    ]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Return training's flags, up to its output folder."""
    tokens = tmp_path_factory.mktemp("data") / "tokens.bin"
    write_shard(tokens, np.random.default_rng(0).integers(0, 10, 3000) ** 2)
    settings = f"-i {tokens} -j {tokens} -e d1,h2,c16,t16,v100 -b 2 -t 16 -d 128 -x {N_STEPS} -n {CHECKPOINT_EVERY}"
    settings += f" -nk 2 -l 0.01 -v 0 -s 0 -z 1 --device cpu --hang-timeout {HANG_TIMEOUT_S}"
    return settings.split()


def start_ranks(n: int, *program: str) -> list[str]:
    return [find_mpiexec(), "-n", str(n), sys.executable, *program]


def outcome(folder, n):
    """Return the bytes of the last checkpoint and the losses of all steps."""
    names = [f"model_{N_STEPS:08d}.bin", *(f"state_{N_STEPS:08d}_{rank:05d}.bin" for rank in range(n))]
    return [(folder / name).read_bytes() for name in names], read_log(folder / "main.log").train_loss


def train_through(deaths, n, flags, folder, monkeypatch) -> list[float]:
    """Train on `n` ranks through all `deaths`, compare with a run that had none; return how long each start lived on.

    That is from the death, in seconds.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ends = []

    def run_and_note(job, stopped_by, run=supervisor.Job.run):
        result = run(job, stopped_by)
        ends.append(time.time())
        return result

    monkeypatch.setattr(supervisor.Job, "run", run_and_note)
    whole = start_ranks(n, "-m", "gpt2edu.train")
    assert supervisor.supervise(whole, [*flags, "-o", f"{folder}/whole"], restarts=0).code == 0
    dying = start_ranks(n, rank_programs.__file__, "train_and_die", str(folder), ",".join(deaths))
    assert supervisor.supervise(dying, [*flags, "-o", f"{folder}/broken"], restarts=len(deaths)).code == 0
    came = [float(rank_programs.mark_of(folder, death).read_text()) for death in deaths]
    assert outcome(folder / "broken", n) == outcome(folder / "whole", n)
    return [end - start for start, end in zip(came, ends[1:-1], strict=True)]


def check_kills(deaths, n, flags, folder, monkeypatch, capfd):
    lived_on = train_through(deaths, n, flags, folder, monkeypatch)
    assert max(lived_on) < END_S
    said = re.findall(r"rank (\d) \(process \d+ on \S+\) died of SIGKILL; restart (\d+) of", capfd.readouterr().out)
    assert said == [(death.split("/")[1], str(number)) for number, death in enumerate(deaths, 1)]


def test_kills_at_3_seeded_moments(flags, tmp_path, monkeypatch, capfd):
    deaths = seeded_deaths(0, [1, 0, 1], list(CALLS), "SIGKILL")
    check_kills(deaths, 2, flags, tmp_path, monkeypatch, capfd)


@pytest.mark.slow
def test_kills_of_each_rank_in_each_place(flags, tmp_path, monkeypatch, capfd):
    ranks, places = zip(*[(rank, place) for rank in range(4) for place in CALLS], strict=True)
    deaths = seeded_deaths(1, list(ranks), list(places), "SIGKILL")
    check_kills(deaths, 4, flags, tmp_path, monkeypatch, capfd)


@pytest.mark.slow
def test_a_stop_of_each_rank(flags, tmp_path, monkeypatch, capfd):
    deaths = seeded_deaths(2, [0, 1, 0, 1], ["step", "step", "collective", "checkpoint"], "SIGSTOP")
    lived_on = train_through(deaths, 2, flags, tmp_path, monkeypatch)
    assert min(lived_on) > HANG_TIMEOUT_S and max(lived_on) < HANG_TIMEOUT_S + END_S
    said = capfd.readouterr().out
    stuck = re.findall(r"error: rank (\d) \(process \d+ on \S+\) is stuck: its process does not answer", said)
    assert stuck == [death.split("/")[1] for death in deaths]
    assert said.count(" is stuck; restart") == len(deaths)


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
