"""The number of ranks, ZeRO-1, and a resume on fewer ranks change nothing but rounding."""

import shutil

import numpy as np
import pytest

from gpt2edu.shards import write_shard

N_SAVED, N_STEPS = 6, 26  # steps


@pytest.fixture(scope="module")
def train(run_ranks, tmp_path_factory):
    """Return a function that trains a tiny model on `n` ranks, once for each line of arguments.

    It returns (loss, norm) of each step of all runs, and the tokens that all ranks read in each step.
    """
    data = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("train", "val"):
        write_shard(data / f"{name}.bin", random.integers(0, 10, 3000) ** 2)
    settings = f"-e d2,h2,c16,t16,v100 -i {data}/train.bin -j {data}/val.bin -t 16 -d 128"
    settings += " -k constant -l 0.01 -c 0.1 -v 0 -s 0"

    def run(n: int, *runs: str, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
        folder = tmp_path_factory.mktemp("outcomes")
        process = run_ranks(n, "train", folder, *(f"{settings} --device {device} {line}" for line in runs))
        assert process.returncode == 0, process.stderr
        tokens = [np.load(folder / f"tokens{rank}.npy") for rank in range(n)]
        return np.load(folder / "outcomes.npy"), np.concatenate(tokens, axis=1)

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    """Return the folder of all runs, and what 1, 2, 4 and 8 ranks found and read in all of theirs.

    Each number of ranks does -z 0 and -z 1; 4 ranks save a third run, with which 2 and 1 go on. One start does it all,
    for starting takes longer than training.
    """
    folder, outcomes, tokens = tmp_path_factory.mktemp("runs"), {}, {}
    third = {4: f"-x {N_SAVED} -n {N_SAVED}", 2: f"-x {N_STEPS} -y 1", 1: f"-x {N_STEPS} -y 1"}
    for n in (4, 2, 1, 8):
        runs = [f"-x {N_STEPS} -n {N_STEPS} -b 1 -z {z} -o {folder}/{n}_{z}" for z in (0, 1)]
        if n in third:
            runs.append(f"{third[n]} -b 2 -z 1 -o {folder}/third_{n}")
        outcomes[n], tokens[n] = train(n, *runs)
        if n == 4:
            shutil.copytree(folder / "third_4", folder / "third_2")
            shutil.copytree(folder / "third_4", folder / "third_1")
    return folder, outcomes, tokens


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_ranks_and_sharding(trained, n):
    folder, outcomes, tokens = trained
    plain, zero1 = np.split(outcomes[n][: 2 * N_STEPS], 2)
    assert np.array_equal(plain, zero1)
    models = [(folder / f"{n}_{z}" / f"model_{N_STEPS:08d}.bin").read_bytes() for z in (0, 1)]
    assert models[0] == models[1]
    sizes = [(folder / f"{n}_{z}" / f"state_{N_STEPS:08d}_{n - 1:05d}.bin").stat().st_size for z in (0, 1)]
    assert sizes[1] < sizes[0] / n + 5000  # each rank kept its shards only, and the loader's position
    assert plain[-1, 0] < plain[0, 0]
    np.testing.assert_allclose(plain, outcomes[1][:N_STEPS], rtol=1e-6)
    assert np.array_equal(tokens[n][:N_STEPS], tokens[1][:N_STEPS])


@pytest.mark.parametrize("n", [2, 1])
def test_4_ranks_save_and_others_go_on(trained, n):
    _, outcomes, tokens = trained
    whole, whole_tokens = outcomes[1][:N_STEPS], tokens[1][:N_STEPS]
    assert len(np.unique(whole_tokens.reshape(-1, 16), axis=0)) > 100  # so one that is skipped is seen
    together = [np.concatenate([part[4][2 * N_STEPS :], part[n][2 * N_STEPS :]]) for part in (outcomes, tokens)]
    np.testing.assert_allclose(together[0], whole, rtol=1e-6)
    assert np.array_equal(together[1], whole_tokens)  # none skipped, none repeated


@pytest.mark.multi_gpu
def test_two_gpus_agree_with_one(train, tmp_path):
    precise = "-x 6 -n 6 -b 2 --dtype fp32 -f 0 --compile 0 --deterministic"
    one, _ = train(1, precise, device="cuda")
    two, _ = train(2, *(f"{precise} -z {z} -o {tmp_path}/{z}" for z in (0, 1)), device="cuda")
    assert np.array_equal(*np.split(two, 2))
    np.testing.assert_allclose(two[:6], one, rtol=1e-5)
