"""Every way to average gradients gives the same bits, in the messages that it promises."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from averaging_programs import WAYS
from rank_programs import CONFIG, random_flat

import kernels
from gpt2edu import passes
from gpt2edu.averaging import LADDER, Overlapped, cut_into_buckets
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine
from gpt2edu.model import GPT2
from gpt2edu.parameters import n_parameters, parameter_layout, shards_of_rank
from gpt2edu.shards import write_shard
from gpt2edu.torch_engine import TorchEngine

sys.path.insert(0, str(Path(__file__).parents[1] / "gpt2edu"))
from host_operations import HOST_OPERATIONS

PROGRAMS = Path(__file__).with_name("averaging_programs.py")


def test_buckets_are_layers_from_the_last_to_the_first():
    shards = list(shards_of_rank(CONFIG, 1, 3))
    buckets = cut_into_buckets(shards)
    assert sorted(sum(buckets, []), key=lambda shard: shard.offset) == shards
    assert [{shard.layer for shard in bucket} for bucket in buckets] == [{1}, {0}, {None}]
    assert [shard.tensor.name for shard in buckets[-1]] == ["wte", "wpe", "lnfw", "lnfb"]
    one_layer = ModelConfig.from_descriptor("d1,h1,c8,t4,v61")
    assert [len(bucket) for bucket in cut_into_buckets(list(shards_of_rank(one_layer, 0, 1)))] == [12, 4]


def test_alone_nothing_changes():
    flat = random_flat(0)
    for way in LADDER.values():
        averaging = way(SingleProcess(), flat, list(shards_of_rank(CONFIG, 0, 1)))
        averaging.ready(0)
        averaging.finish()
    assert np.array_equal(flat, random_flat(0))


@pytest.mark.parametrize("n", [2, 4])
def test_all_ways_give_the_same_bits(run_ranks, tmp_path, n):
    process = run_ranks(n, "ladder", tmp_path, programs=PROGRAMS)
    assert process.returncode == 0, process.stderr
    n_slices = sum(tensor.n_slices for tensor in parameter_layout(CONFIG))
    buckets = CONFIG.n_layers + 1
    messages = {"all-reduce": 1, "reduce-scatter": n_slices, "one message": 1, "overlapped": buckets}
    for rank in range(n):
        found = np.load(tmp_path / f"rank{rank}.npz")
        for turn in range(2):
            for name in WAYS:
                whole = mean_of_ranks(turn, n, torch.bfloat16 if "bf16" in name else torch.float32)
                own = np.concatenate([whole[shard.own] for shard in shards_of_rank(CONFIG, rank, n)])
                assert np.array_equal(found[f"{name} {turn}"], own), name
                assert np.array_equal(found[f"{name} {turn} whole"], whole), name
        assert {name: found[f"{name} messages"] for name in WAYS} == messages | {"overlapped, bf16": buckets}


def mean_of_ranks(turn: int, n: int, dtype: torch.dtype) -> np.ndarray:
    """Return the mean of what the ranks have, each rounded to `dtype` first, and itself."""
    parts = [random_flat(10 * turn + rank).to(dtype).float().numpy() for rank in range(n)]
    return torch.from_numpy(sum(parts) / np.float32(n)).to(dtype).float().numpy()


def test_gradients_sent_in_bf16_train_too(run_ranks, tmp_path):
    write_shard(tmp_path / "tokens.bin", np.random.default_rng(0).integers(0, 10, 3000) ** 2)
    settings = f"-i {tmp_path}/tokens.bin -j {tmp_path}/tokens.bin -e d2,h2,c16,t16,v100 -t 16 -d 128 -b 2 -x 20"
    settings += " -k constant -l 0.01 -v 0 -s 0 -m 1 --device cpu"
    process = run_ranks(2, "train", tmp_path, settings, *(f"{settings} -z {z} --grad-dtype bf16" for z in (0, 1)))
    assert process.returncode == 0, process.stderr
    exact, plain, zero1 = np.split(np.load(tmp_path / "outcomes.npy"), 3)
    assert np.array_equal(plain, zero1)
    assert not np.array_equal(plain, exact)
    np.testing.assert_allclose(plain, exact, rtol=1e-2)
    assert plain[-1, 0] < plain[0, 0] - 0.5


def test_a_bucket_is_begun_once_and_before_it_is_waited_for():
    said = []

    class Noted(SingleProcess):
        def begin_reduce_scatter_mean(self, flat, shards):
            said.append(f"begin {shards[0].layer}")
            return lambda: said.append(f"complete {shards[0].layer}")

    averaging = Overlapped(Noted(), random_flat(0), list(shards_of_rank(CONFIG, 0, 1)))
    averaging.ready(0)
    averaging.ready(2)
    assert said == ["begin 1"]
    averaging.finish()
    assert said[1:] == ["begin 0", "begin None", "complete 1", "complete 0", "complete None"]


@pytest.mark.parametrize("kind", [TorchEngine, NumbaEngine])
def test_a_layer_is_sent_while_backward_goes_on(kind, monkeypatch):
    for name, operation in HOST_OPERATIONS.items() if kernels.SIMULATED else ():
        monkeypatch.setattr(passes, name, operation)
    begun = []  # of each bucket, the layers that had gradients then

    class OneOfTwo(SingleProcess):
        world_size = 2

        def begin_reduce_scatter_mean(self, flat, shards):
            begun.append([n for n, layer in enumerate(qkvw.view(flat)) if layer.any()])
            return lambda: None

    config = ModelConfig.from_descriptor("d2,h2,c16,t8,v61")
    (qkvw,) = (tensor for tensor in parameter_layout(config) if tensor.name == "qkvw")
    device = torch.device("cpu" if kernels.SIMULATED or kind is TorchEngine else "cuda")
    engine = kind(config, TrainConfig(dtype="fp32", seq_len=8, recompute=0), OneOfTwo(), device)
    model = GPT2(config)
    model.init_weights()
    engine.load_parameters(model.flat_parameters)
    tokens_BT = np.random.default_rng(0).integers(0, 61, (1, 9))
    for _ in range(2):
        engine.accumulate(tokens_BT[:, :-1].copy(), tokens_BT[:, 1:].copy(), 1)
        assert begun[:2] == [[1], [0, 1]]  # and at the end the embeddings
        engine.reduce()
        assert len(begun) == 3
        begun.clear()
    engine.accumulate(tokens_BT[:, :-1].copy(), tokens_BT[:, 1:].copy(), 2)
    assert not begun  # another micro-batch follows


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_two_ranks_on_one_gpu_compute_what_one_does(run_ranks, tmp_path, backend):
    model = "d2,h2,c128,t64,v300"
    write_shard(tmp_path / "tokens.bin", np.random.default_rng(0).integers(0, 17, 30_000) ** 2 % 300)
    settings = f"-i {tmp_path}/tokens.bin -j {tmp_path}/tokens.bin -e {model} -t 64 -b 2 -d 512 -x 20 -k constant"
    settings += f" -l 0.003 -c 0.1 -v 0 -s 0 -m 1 -f 0 --device cuda --dtype fp32 --backend {backend}"
    settings += " --compile 0 --deterministic" if backend == "torch" else ""
    outcomes = {}
    for n in (1, 2):
        process = run_ranks(
            n, "shared_gpu", tmp_path, f"{settings} -z 0", f"{settings} -z 1", programs=PROGRAMS, limit_s=200
        )
        assert process.returncode == 0, process.stderr
        plain, zero1 = np.split(np.load(tmp_path / "outcomes0.npy"), 2)
        assert np.array_equal(plain[:, :2], zero1[:, :2])  # loss and norm
        n_bytes = 2 * 4 * n_parameters(ModelConfig.from_descriptor(model))  # m and v
        assert (plain[0, 2], zero1[0, 2]) == (n_bytes, n_bytes / n)
        outcomes[n] = plain[:, :2]
    assert outcomes[1][-1, 0] < outcomes[1][0, 0]
    np.testing.assert_allclose(outcomes[2], outcomes[1], rtol=1e-6)
