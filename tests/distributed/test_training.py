"""The number of ranks, ZeRO-1, and a resume on fewer ranks change nothing but rounding."""

from pathlib import Path

import numpy as np
import pytest

from gpt2edu.shards import write_shard


@pytest.fixture(scope="module")
def train(run_ranks, tmp_path_factory):
    """Return a function that trains a tiny model: (n ranks, output folder, arguments) -> (loss, norm) of each step."""
    data = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        write_shard(data / f"{name}.bin", random.integers(0, 10, 3000) ** 2)

    def run(n: int, folder: Path, *arguments: object, device: str = "cpu") -> np.ndarray:
        settings = f"-e d2,h2,c16,t16,v100 -i {data}/train.bin -j {data}/val.bin -o {folder} -b 2 -t 16 -d 128"
        settings += f" -k constant -l 0.01 -c 0.1 -v 0 -s 0 --device {device}"
        process = run_ranks(n, "train", folder, *settings.split(), *arguments)
        assert process.returncode == 0, process.stderr
        return np.load(folder / "outcomes.npy")

    return run


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    """Return (loss, norm) of 6 steps of one process."""
    return train(1, tmp_path_factory.mktemp("alone"), "-x", 6)


def test_ranks_sharding_and_resume(train, alone, tmp_path):
    plain, zero1 = tmp_path / "plain", tmp_path / "zero1"
    plain.mkdir()
    zero1.mkdir()
    plain_outcomes = train(4, plain, "-x", 4, "-n", 4, "-z", 0)
    zero1_outcomes = train(4, zero1, "-x", 4, "-n", 4, "-z", 1)
    assert np.array_equal(plain_outcomes, zero1_outcomes)
    models = [(folder / "model_00000004.bin").read_bytes() for folder in (plain, zero1)]
    assert models[0] == models[1]
    sizes = [(folder / "state_00000004_00003.bin").stat().st_size for folder in (plain, zero1)]
    assert sizes[1] < sizes[0] / 2  # each rank kept its shards only
    assert alone[5, 0] < alone[0, 0]
    np.testing.assert_allclose(plain_outcomes, alone[:4], rtol=1e-6)
    resumed = train(2, zero1, "-x", 6, "-y", 1, "-z", 1)
    np.testing.assert_allclose(resumed, alone[4:], rtol=1e-6)


@pytest.mark.multi_gpu
def test_two_gpus_agree_with_one(train, tmp_path):
    outcomes = {}
    for n_gpus, zero_stage in ((1, 0), (2, 0), (2, 1)):
        folder = tmp_path / f"{n_gpus}_{zero_stage}"
        folder.mkdir()
        precise = ("--dtype", "fp32", "-f", 0, "--compile", 0, "--deterministic")
        outcomes[n_gpus, zero_stage] = train(
            n_gpus, folder, "-x", 6, "-n", 6, "-z", zero_stage, *precise, device="cuda"
        )
    assert np.array_equal(outcomes[2, 0], outcomes[2, 1])
    np.testing.assert_allclose(outcomes[2, 0], outcomes[1, 0], rtol=1e-5)
