"""Collectives on real ranks, against sums that NumPy takes in rank order."""

import numpy as np
import pytest
import torch
from rank_programs import CONFIG, random_flat

from gpt2edu.checkpoint import find_checkpoint, load_checkpoint
from gpt2edu.parameters import parameter_layout
from gpt2edu.shards import write_shard


def layer_slices(flat: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return a rank's part of each layer of each tensor, cut by reshaping."""
    pieces = []
    for tensor in parameter_layout(CONFIG):
        layers = tensor.shape[0] if tensor.stacked else 1
        pieces.append(tensor.view(flat).reshape(layers, world_size, -1)[:, rank].ravel())
    return np.concatenate(pieces)


@pytest.fixture(scope="module", params=[3, 4])
def ranks(request, run_ranks, tmp_path_factory):
    """Return what each rank saved, and what rank 0 printed."""
    folder = tmp_path_factory.mktemp("collectives")
    process = run_ranks(request.param, "collectives", folder)
    assert process.returncode == 0, process.stderr
    return [np.load(folder / f"rank{rank}.npz") for rank in range(request.param)], process.stdout


def test_reduce_scatter_is_the_sum_in_rank_order(ranks):
    results, _ = ranks
    parts = [random_flat(rank).numpy() for rank in range(len(results))]
    mean = parts[0].copy()
    for part in parts[1:]:
        mean = mean + part
    mean = mean / np.float32(len(parts))
    backwards = parts[-1].copy()
    for part in parts[-2::-1]:
        backwards = backwards + part
    assert (backwards / np.float32(len(parts)) != mean).mean() > 0.05  # the order matters for these numbers
    for rank, result in enumerate(results):
        assert np.array_equal(result["own"], layer_slices(mean, rank, len(results)))
        assert np.array_equal(result["all"], mean)


def test_small_collectives(ranks):
    results, printed = ranks
    assert printed == "printed\n"
    for rank, result in enumerate(results):
        assert result["world_size"] == len(results) and result["local_rank"] == rank
        assert result["gathered"].tolist() == [10 * other for other in range(len(results))]
        assert result["broadcast"] == "from 2"


def test_a_checkpoint_of_4_ranks_is_read_by_2_and_by_1(run_ranks, tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(500) % 100)
    process = run_ranks(4, "checkpoint", tmp_path)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    assert len(list(run.glob("state_00000006_*.bin"))) == 4
    found = find_checkpoint(run)
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            restored = load_checkpoint(found, rank=rank, world_size=world_size)
            assert torch.equal(restored.flat_parameters, random_flat(0))
            for name, seed in (("m", 1), ("v", 2)):
                wanted = layer_slices(random_flat(seed).numpy(), rank, world_size)
                assert np.array_equal(restored.state_arrays[name].numpy(), wanted)
    last = run / "state_00000006_00003.bin"
    last.write_bytes(last.read_bytes()[:-4])
    with pytest.raises(Exception, match=r"state_00000006_00003.bin has .* bytes instead of"):
        find_checkpoint(run)
