import errno
import struct

import numpy as np
import pytest

from gpt2edu import files, shards
from gpt2edu.errors import Gpt2EduError


def test_golden_bytes(tmp_path):
    path = tmp_path / "a.bin"
    shards.write_shard(path, np.array([50256, 15496, 995, 1]))
    # 20240520 = 0x0134D888; token 50256 = 0xC450, 15496 = 0x3C88, 995 = 0x03E3
    header = bytes.fromhex("88d83401 01000000 04000000") + bytes(253 * 4)
    assert path.read_bytes() == header + bytes.fromhex("50c4 883c e303 0100")
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_reads_what_llmc_reads(tmp_path):
    tokens = np.arange(1, 1000, dtype=np.uint16)
    shards.write_shard(tmp_path / "a.bin", tokens)
    raw = (tmp_path / "a.bin").read_bytes()
    magic, version, n_tokens = struct.unpack_from("<3i", raw)
    assert (magic, version, n_tokens) == (20240520, 1, 999)
    assert len(raw) == 1024 + 2 * n_tokens
    assert struct.unpack_from("<999H", raw, 1024) == tuple(range(1, 1000))
    read = shards.read_shard(tmp_path / "a.bin")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, tokens)


def damaged(tmp_path, change):
    path = tmp_path / "bad.bin"
    shards.write_shard(path, np.arange(100))
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda raw: raw[:-2], "bytes where 100 tokens take 1,224"),
        (lambda raw: raw[:-1], "delete it and prepare the data again"),
        (lambda raw: raw + b"\0\0", "bytes where"),
        (lambda raw: raw[:600], "cut short inside its header"),
        (lambda raw: b"", "not a token shard"),
        (lambda raw: b"\1\2\3\4" + raw[4:], "magic"),
        (lambda raw: raw[:4] + struct.pack("<i", 7) + raw[8:], "version 7"),
        (lambda raw: raw[:8] + struct.pack("<i", 0) + raw[12:1024], "0 tokens"),
    ],
)
def test_broken_shard_is_one_sentence(tmp_path, change, words):
    path = damaged(tmp_path, change)
    with pytest.raises(Gpt2EduError) as problem:
        shards.read_shard(path)
    assert words in str(problem.value) and str(path) in str(problem.value)
    assert "\n" not in str(problem.value)


def test_missing_shard_and_missing_glob(tmp_path):
    with pytest.raises(Gpt2EduError, match="cannot be read"):
        shards.read_shard(tmp_path / "none.bin")
    with pytest.raises(Gpt2EduError, match=r"no file matches .*train_\*\.bin"):
        shards.find_shards(tmp_path / "train_*.bin")


def test_glob_is_sorted_by_byte_value(tmp_path):
    for name in ["b.bin", "a_000010.bin", "a_000009.bin", "B.bin", ".hidden.bin"]:
        (tmp_path / name).touch()
    assert [p.name for p in shards.find_shards(tmp_path / "*.bin")] == [
        "B.bin",
        "a_000009.bin",
        "a_000010.bin",
        "b.bin",
    ]


def test_token_ids_out_of_range(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "TOKENS_PER_READ", 8)
    tokens = np.full(30, 255, dtype=np.uint16)
    shards.check_token_ids(tokens, 256, "x.bin")
    tokens[29] = 256
    with pytest.raises(Gpt2EduError, match="x.bin: holds token id 256, but the vocabulary has 256 tokens"):
        shards.check_token_ids(tokens, 256, "x.bin")


def test_refuses_what_no_shard_can_hold(tmp_path):
    with pytest.raises(Gpt2EduError, match="1 to 2,147,483,647 tokens, not 0"):
        shards.write_shard(tmp_path / "a.bin", np.array([], dtype=np.uint16))
    for bad in (-1, 65536):
        with pytest.raises(ValueError, match="16 bits"):
            shards.write_shard(tmp_path / "a.bin", np.array([bad]))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_shard(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    shards.write_shard(path, np.arange(5))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(Gpt2EduError, match="the disk is full while writing"):
        shards.write_shard(path, np.arange(9))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
