"""The numba engine on several ranks, in the simulator: neither their number nor ZeRO-1 changes more than rounding."""

import re
import shutil

import numpy as np
import pytest

from gpt2edu.config import ModelConfig
from gpt2edu.parameters import n_parameters
from gpt2edu.shards import write_shard

MODEL = "d1,h1,c8,t4,v61"
N_PARAMETERS = n_parameters(ModelConfig.from_descriptor(MODEL))


@pytest.fixture(scope="module")
def train(run_ranks, tmp_path_factory):
    """Return a function that trains tiny models: (n ranks, lines of arguments) -> (loss, norm)s, bytes of state."""
    data = tmp_path_factory.mktemp("data")
    write_shard(data / "tokens.bin", np.random.default_rng(0).integers(0, 8, 500) ** 2)
    settings = f"-i {data}/tokens.bin -j {data}/tokens.bin -e {MODEL} -t 4 -b 1 -d 16 -k constant -l 0.01 -c 0.1"
    settings += " -v 0 -s 0 -m 1 --device cpu"

    def run(n: int, *runs: str) -> tuple[np.ndarray, list[int]]:
        folder = tmp_path_factory.mktemp("outcomes")
        lines = [f"{settings} {line}" for line in runs]
        process = run_ranks(n, "kernels", folder, *lines, NUMBA_ENABLE_CUDASIM="1", limit_s=150)
        assert process.returncode == 0, process.stderr
        n_bytes = [int(n) for n in re.findall(r"rank \d+ has (\d+) bytes", process.stderr)]
        return np.load(folder / "outcomes.npy"), n_bytes

    return run


@pytest.fixture(scope="module")
def four(train, tmp_path_factory):
    """Return the outcomes of 3 steps of 4 ranks, by (dtype, -z), and the folder that has their runs."""
    folder = tmp_path_factory.mktemp("four")
    kinds = [("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1)]
    outcomes, n_bytes = train(4, *(f"-x 3 -n 2 --dtype {kind} -z {z} -o {folder}/{kind}_{z}" for kind, z in kinds))
    arrays = {"fp32": 2, "bf16": 3}
    expected = [4 * arrays[kind] * N_PARAMETERS // (4 if z else 1) for kind, z in kinds]
    assert sorted(n_bytes) == sorted(4 * expected)
    return dict(zip(kinds, outcomes.reshape(4, 3, 2), strict=True)), folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sharding_changes_no_bit(four, dtype):
    outcomes, folder = four
    assert np.array_equal(outcomes[dtype, 0], outcomes[dtype, 1])
    for step in (2, 3):
        models = [(folder / f"{dtype}_{z}" / f"model_{step:08d}.bin").read_bytes() for z in (0, 1)]
        assert models[0] == models[1]


def test_other_numbers_of_ranks_and_resumes_on_them(four, train):
    outcomes, folder = four
    wanted = outcomes["fp32", 1]
    assert wanted[2, 0] < wanted[0, 0]
    for n in (2, 1):
        at_step_2 = shutil.ignore_patterns("*_00000003*")
        shutil.copytree(folder / "fp32_1", folder / f"resumed_by_{n}", ignore=at_step_2)
        always = f"-x 3 --dtype fp32 -z 1 -o {folder}"
        (*whole, resumed), _ = train(n, f"{always}/whole_of_{n}", f"{always}/resumed_by_{n} -y 1")
        np.testing.assert_allclose(whole, wanted, rtol=1e-6)
        np.testing.assert_allclose(resumed, wanted[2], rtol=1e-6)
