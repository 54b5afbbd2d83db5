"""Two GPUs, joined by NCCL: the losses of one, the same bits with ZeRO-1, and a run that goes on after a kill."""

import re
import sys

import numpy as np
import pytest
import rank_programs

from gpt2edu import supervisor
from gpt2edu.machine import find_mpiexec
from gpt2edu.shards import write_shard

pytestmark = pytest.mark.multi_gpu

MODEL = "d2,h2,c128,t64,v300"  # heads of 64 and whole tiles: the fastest kernels
LIMIT_S = 300  # kernels are compiled


@pytest.fixture
def settings(tmp_path):
    """Return training's flags, up to the precision."""
    write_shard(tmp_path / "tokens.bin", np.random.default_rng(0).integers(0, 17, 40_000) ** 2 % 300)
    files = f"-i {tmp_path}/tokens.bin -j {tmp_path}/tokens.bin -e {MODEL}"
    return f"{files} -t 64 -b 2 -d 512 -k constant -l 0.003 -c 0.1 -v 0 -s 0 -m 1 --device cuda --backend numba"


@pytest.mark.parametrize(("dtype", "near"), [("fp32", 1e-6), ("bf16", 2e-3)])
def test_the_kernels_compute_on_two_gpus_what_they_do_on_one(run_ranks, tmp_path, settings, dtype, near):
    outcomes = {}
    for n in (1, 2):
        runs = [f"{settings} -x 20 --dtype {dtype} -z {z}" for z in (0, 1)]
        process = run_ranks(n, "train", tmp_path, *runs, limit_s=LIMIT_S)
        assert process.returncode == 0, process.stderr
        plain, zero1 = np.split(np.load(tmp_path / "outcomes.npy"), 2)
        assert np.array_equal(plain, zero1)
        outcomes[n] = plain
    assert outcomes[1][-1, 0] < outcomes[1][0, 0]
    np.testing.assert_allclose(outcomes[2][:, 0], outcomes[1][:, 0], rtol=near)


def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bits(tmp_path, settings, capfd):
    flags = [*settings.split(), *"-x 8 -n 3 --dtype bf16 -z 1 -o".split()]
    ranks = [find_mpiexec(), "-n", "2", sys.executable]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert supervisor.supervise([*ranks, "-m", "gpt2edu.train"], [*flags, str(whole)], restarts=0).code == 0
    dying = [*ranks, rank_programs.__file__, "train_and_die", str(tmp_path), "step/1/5/SIGKILL"]
    assert supervisor.supervise(dying, [*flags, str(broken)], restarts=1).code == 0
    said = r"rank 1 \(process \d+ on \S+\) died of SIGKILL; restart 1 of 1"
    assert len(re.findall(said, capfd.readouterr().out)) == 1
    for name in ("model_00000008.bin", "state_00000008_00000.bin", "state_00000008_00001.bin"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
