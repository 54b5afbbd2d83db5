"""Checkpoints: llm.c's bytes, resuming on any number of ranks, and what happens to broken ones."""

import errno
import json
import struct

import numpy as np
import pytest
import torch

from gpt2edu import checkpoint as checkpoint_module
from gpt2edu.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, prune, save_checkpoint
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import Gpt2EduError
from gpt2edu.loader import LlmcPosition, TrainLoader
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.shards import write_shard
from gpt2edu.state_file import write_state_file
from gpt2edu.weights import write_model_file

CONFIG = ModelConfig.from_descriptor("d2,h2,c16,t8,v100")
N = n_parameters(CONFIG)
POSITION = LlmcPosition(1, 2, np.array([1, 0], np.int32), np.array([2, 0, 1], np.int32), bytes(range(252)) * 10)


@pytest.fixture
def loader(tmp_path):
    """Return a loader over two small shards in the order of two virtual ranks."""
    for name, n_tokens in (("a", 400), ("b", 300)):
        write_shard(tmp_path / f"{name}.bin", np.arange(n_tokens) % 100)
    return TrainLoader(tmp_path / "?.bin", 8, 8, order_ranks=2, order_batch=2, vocab_size=100)


@pytest.fixture
def save(tmp_path, loader):
    """Return a function that saves the checkpoint of a step in `tmp_path / "run"` and returns what it saved."""

    def save_step(step: int, extra=None):
        arrays = {name: random_flat(step + i) for i, name in enumerate(("flat_parameters", "m", "v"))}
        save_checkpoint(
            tmp_path / "run",
            step,
            config=CONFIG,
            flat_parameters=arrays["flat_parameters"],
            state_arrays={"m": arrays["m"], "v": arrays["v"]},
            settings=TrainConfig(),
            loader=loader,
            extra=extra or {},
            communicator=SingleProcess(),
        )
        return arrays

    return save_step


@pytest.fixture
def run(tmp_path):
    """Return the folder of the run."""
    return tmp_path / "run"


def random_flat(seed: int) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed))


def layer_slices(flat: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """Cut what llm.c's ZeRO-1 gives to a rank, written independently: reshape to (layers, ranks, rest)."""
    pieces = []
    for tensor in parameter_layout(CONFIG):
        layers = tensor.shape[0] if tensor.stacked else 1
        pieces.append(tensor.view(flat).reshape(layers, world_size, -1)[:, rank].flatten())
    return torch.cat(pieces)


def write_sharded(folder, step: int, world_size: int, *, sharded: bool, master: bool = False):
    """Write a checkpoint as `world_size` ranks of llm.c do; return its parameters and arrays."""
    folder.mkdir(exist_ok=True)
    checkpoint = Checkpoint(folder, step)
    names = ("m", "v", "master") if master else ("m", "v")
    full = {name: random_flat(10 * step + i) for i, name in enumerate(names)}
    flat = full["master"] if master else random_flat(99)
    write_model_file(checkpoint.model_path, CONFIG, flat, "bf16" if master else "fp32")
    for rank in range(world_size):
        arrays = {name: layer_slices(a, rank, world_size) if sharded else a for name, a in full.items()}
        write_state_file(
            checkpoint.state_path(rank),
            step=step,
            rank=rank,
            world_size=world_size,
            arrays=arrays,
            position=POSITION,
            shuffle=True,
        )
    checkpoint.done_path.touch()
    return flat, full


def test_state_file_bytes_are_llmc(tmp_path):
    """Compare with bytes packed by hand after llm.c's save_state."""
    arrays = {"v": torch.tensor([3.0, 4.0]), "m": torch.tensor([1.0, -2.0]), "master": torch.tensor([0.5, 8.0])}
    path = tmp_path / "state.bin"
    write_state_file(path, step=7, rank=3, world_size=4, arrays=arrays, position=POSITION, shuffle=True)
    header = bytearray(1024)
    struct.pack_into("<6i", header, 0, 20240527, 1, 4, 3, 1, 1)
    struct.pack_into("<i", header, 40, 7)
    struct.pack_into("<2Q", header, 80, 13371340, 13371340)
    struct.pack_into("<2Q", header, 120, 1, 2)
    body = struct.pack("<6f", 1, -2, 3, 4, 0.5, 8)
    tail = struct.pack("<Q2i", 2, 1, 0) + struct.pack("<Q3i", 3, 2, 0, 1) + POSITION.rng_state
    assert path.read_bytes() == bytes(header) + body + tail
    write_state_file(path, step=7, rank=3, world_size=4, arrays=arrays, position=POSITION, shuffle=False)
    struct.pack_into("<i", header, 20, 0)
    assert path.read_bytes() == bytes(header) + body


def test_round_trip(run, save):
    extra = {"loss_scale": 1024.0, "losses": [3.5, float("nan")]}
    saved = save(20, extra)
    restored = load_checkpoint(find_checkpoint(run), expected=CONFIG)
    assert (restored.step, restored.config, restored.saved_ranks, restored.lost) == (20, CONFIG, 1, None)
    assert torch.equal(restored.flat_parameters, saved["flat_parameters"])
    assert list(restored.state_arrays) == ["m", "v"]
    assert all(torch.equal(restored.state_arrays[name], saved[name]) for name in ("m", "v"))
    assert restored.extra["losses"][0] == 3.5 and np.isnan(restored.extra["losses"][1])
    assert restored.extra["order_ranks"] == 2 and restored.extra["order_batch"] == 2
    assert restored.extra["settings"]["seq_len"] == 1024


def test_files_and_done(run, save):
    save(20)
    names = {"model_00000020.bin", "state_00000020_00000.bin", "extra_00000020.json", "DONE_00000020"}
    assert {path.name for path in run.iterdir()} == names
    done = json.loads((run / "DONE_00000020").read_text())
    assert set(done["files"]) == names - {"DONE_00000020"}
    assert all((run / name).stat().st_size == entry["size"] for name, entry in done["files"].items())


def test_loader_position_is_in_the_state_file(run, save, loader):
    save(5)
    position = loader.llmc_position(0, 5)
    data = (run / "state_00000005_00000.bin").read_bytes()
    assert struct.unpack_from("<2Q", data, 120) == (position.shard_index, position.sample_index)
    assert data.endswith(position.rng_state)


@pytest.mark.parametrize("sharded", [True, False], ids=["zero1", "zero0"])
@pytest.mark.parametrize("saved_ranks", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_any_number_of_ranks_reads(tmp_path, saved_ranks, world_size, sharded):
    flat, full = write_sharded(tmp_path, 3, saved_ranks, sharded=sharded)
    for rank in range(world_size):
        restored = load_checkpoint(find_checkpoint(tmp_path), rank=rank, world_size=world_size)
        assert restored.saved_ranks == saved_ranks
        assert torch.equal(restored.flat_parameters, flat)
        for name, array in full.items():
            assert torch.equal(restored.state_arrays[name], layer_slices(array, rank, world_size))


def test_master_weights_are_the_parameters(tmp_path):
    flat, full = write_sharded(tmp_path, 3, 2, sharded=True, master=True)
    restored = load_checkpoint(find_checkpoint(tmp_path), rank=1, world_size=4)
    assert torch.equal(restored.flat_parameters, flat)
    assert torch.equal(restored.state_arrays["master"], layer_slices(full["master"], 1, 4))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("break_file", [cut_short, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["model_00000030.bin", "state_00000030_00000.bin"])
def test_broken_checkpoint_is_passed_over(run, save, capsys, name, break_file):
    saved = save(20)
    save(30)
    break_file(run / name)
    found = find_checkpoint(run)
    assert found.step == 20
    message = capsys.readouterr().err
    assert "checkpoint 30" in message and name in message and "the one before" in message
    assert torch.equal(load_checkpoint(found).flat_parameters, saved["flat_parameters"])


def test_damaged_done_or_extra_is_passed_over(run, save, capsys):
    save(20)
    save(30)
    save(40)
    (run / "DONE_00000040").write_text('{"files": ')
    flip_a_bit(run / "extra_00000030.json")
    assert find_checkpoint(run).step == 20
    message = capsys.readouterr().err
    assert "DONE_00000040" in message and "extra_00000030.json" in message


def test_nothing_and_nothing_that_verifies(run, save):
    assert find_checkpoint(run) is None
    save(20)
    cut_short(run / "model_00000020.bin")
    with pytest.raises(Gpt2EduError, match=r"model_00000020.bin has .* bytes instead of .*--overwrite"):
        find_checkpoint(run)


def test_empty_done_is_taken_unverified_unless_a_file_is_cut(tmp_path, capsys):
    write_sharded(tmp_path, 3, 2, sharded=True)
    write_sharded(tmp_path, 4, 2, sharded=True)
    assert find_checkpoint(tmp_path).step == 4
    assert "without checksums" in capsys.readouterr().err
    cut_short(tmp_path / "state_00000004_00001.bin")
    assert find_checkpoint(tmp_path).step == 3


def test_without_extra_the_loss_is_named(run, save):
    saved = save(20, {"loss_scale": 2.0})
    (run / "extra_00000020.json").unlink()
    restored = load_checkpoint(find_checkpoint(run))
    assert restored.extra is None
    assert "loss scaler" in restored.lost and "--order-ranks" in restored.lost
    assert torch.equal(restored.state_arrays["m"], saved["m"])


def test_another_model_is_refused(run, save):
    save(20)
    other = ModelConfig.from_descriptor("d3,h2,c16,t8,v100")
    with pytest.raises(Gpt2EduError, match=r"model_00000020.bin is another model than -e names \(n_layers 2, not 3\)"):
        load_checkpoint(find_checkpoint(run), expected=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no state"), "is no state file"),
        (cut_short, "cut short"),
        (
            lambda path: path.write_bytes(path.with_name("state_00000003_00001.bin").read_bytes()),
            "says it is of rank 1",
        ),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_wrong_state_file_names_file_and_remedy(tmp_path, change, message):
    write_sharded(tmp_path, 3, 2, sharded=True)
    change(tmp_path / "state_00000003_00000.bin")
    with pytest.raises(Gpt2EduError, match=f"state_00000003_00000.bin.*{message}.*delete that step's DONE"):
        load_checkpoint(Checkpoint(tmp_path, 3))


def test_full_disk_leaves_the_last_checkpoint(run, save, monkeypatch):
    save(20)

    def no_space(*_arguments, **_options):
        raise Gpt2EduError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_state_file", no_space)
    with pytest.raises(Gpt2EduError, match="the disk is full"):
        save(30)
    assert not (run / "DONE_00000030").exists()
    assert find_checkpoint(run).step == 20


def test_a_step_saved_again_is_no_checkpoint_until_it_is_whole(run, save, monkeypatch):
    save(20)
    monkeypatch.setattr(checkpoint_module, "write_model_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(20)
    assert find_checkpoint(run) is None


def test_prune_keeps_the_newest_and_the_major(run, save):
    for step in (10, 20, 30, 40):
        save(step)
    (run / ".model_00000015.bin.123.tmp").touch()
    prune(run, 0)
    assert len(list(run.glob("DONE_*"))) == 4 and not list(run.glob(".*.tmp"))
    prune(run, 1, major_every=20)
    assert {path.name for path in run.glob("DONE_*")} == {"DONE_00000020", "DONE_00000040"}
    assert len(list(run.iterdir())) == 8
    assert find_checkpoint(run).step == 40
