"""kill -9 at seeded moments of a training run: resumed until it ends, it leaves the same weights and losses."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2edu.logger import read_log
from gpt2edu.shards import write_shard

N_STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    tokens = np.random.default_rng(0).integers(0, 120, size=4_000)
    write_shard(folder / "toy_train_000001.bin", tokens)
    write_shard(folder / "toy_val_000000.bin", tokens[:600])
    return folder


def start(folder, name):
    """Start the run `name`; it writes a checkpoint every third step and goes on from the last."""
    flags = f"-i {folder}/toy_train_*.bin -j {folder}/toy_val_*.bin -e d1,h2,c32,t16,v120 -t 16 -b 4 -d 128"
    flags += f" -x {N_STEPS} -l 0.01 -v 10 -s 0 -n 3 -nk 2 -y 1 -o {folder}/{name} --device cpu"
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2edu.train", *flags.split()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GPT2EDU_DATA": str(folder / "data")},
    )


def outcome(folder, name):
    weights = (folder / name / f"model_{N_STEPS:08d}.bin").read_bytes()
    history = read_log(folder / name / "main.log")
    return weights, history.train_loss, history.validation_loss


def run_and_kill(folder, name, moments):
    """Run to the end, killed after each (lines seen, seconds more) of `moments`; return how often a kill hit."""
    kills = 0
    for n_lines, delay_s in moments:
        process = start(folder, name)
        for _ in zip(range(n_lines), process.stdout, strict=False):
            pass
        time.sleep(delay_s)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(folder, name)
    process.communicate()
    assert process.returncode == 0
    return kills


@pytest.fixture(scope="module")
def never_killed(folder):
    run_and_kill(folder, "whole", [])
    return outcome(folder, "whole")


def moments(seed, n):
    """Moments between the table of settings (38 lines) and 25 lines later, with a delay inside the step or save."""
    chosen = random.Random(seed)
    return [(38 + chosen.randrange(25), chosen.uniform(0, 0.03)) for _ in range(n)]


def test_a_run_killed_at_3_moments_ends_like_the_one_never_killed(folder, never_killed):
    assert run_and_kill(folder, "killed", moments(0, 3)) >= 2
    assert outcome(folder, "killed") == never_killed
    assert not list((folder / "killed").glob(".*.tmp"))


@pytest.mark.slow
def test_a_run_killed_at_20_moments_ends_like_the_one_never_killed(folder, never_killed):
    assert run_and_kill(folder, "killed_often", moments(1, 20)) >= 5
    assert outcome(folder, "killed_often") == never_killed
