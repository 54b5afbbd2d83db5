import json
import os

import numpy as np
import pytest

from gpt2edu import manifest as module
from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import sha256_file
from gpt2edu.manifest import Manifest, load_manifest, verify
from gpt2edu.shards import write_shard


@pytest.fixture
def folder(tmp_path):
    manifest = Manifest("t", "gpt2", 50257, "a test", {"shard_tokens": 100}, complete=True)
    for split, number, n in [("val", 0, 40), ("train", 1, 100), ("train", 2, 60)]:
        path = tmp_path / f"t_{split}_{number:06d}.bin"
        write_shard(path, np.arange(n))
        manifest.add(path, split)
    manifest.save(tmp_path)
    return tmp_path


def test_round_trip_and_counts(folder):
    manifest = load_manifest(folder)
    assert (manifest.tokens("train"), manifest.tokens("val"), manifest.tokens_total) == (160, 40, 200)
    assert (manifest.n_shards("train"), manifest.n_shards("val")) == (2, 1)
    assert manifest.pattern(folder, "train") == f"{folder}/t_train_*.bin"
    assert manifest.files["t_val_000000.bin"]["sha256"] == sha256_file(folder / "t_val_000000.bin")
    before = (folder / "manifest.json").read_bytes()
    manifest.save(folder)
    assert (folder / "manifest.json").read_bytes() == before


def test_no_manifest_is_no_error(tmp_path):
    assert load_manifest(tmp_path) is None and verify(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "colour": "red"}', "\0\1"])
def test_strange_manifest_is_one_sentence(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(Gpt2EduError, match="not a manifest of this program"):
        load_manifest(tmp_path)


def flip_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "damage, words",
    [
        (flip_a_byte, "does not match its checksum"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "bytes where"),
        (lambda path: write_shard(path, np.arange(99)), "does not match its checksum"),
    ],
)
def test_damage_is_found_and_named(folder, damage, words):
    verify(folder)
    damage(folder / "t_train_000001.bin")
    with pytest.raises(Gpt2EduError, match=f"t_train_000001.bin.*{words}"):
        verify(folder)


def test_damage_is_found_without_a_change_of_size_or_record(folder):
    flip_a_byte(folder / "t_val_000000.bin")
    with pytest.raises(Gpt2EduError, match="t_val_000000.bin: does not match"):
        verify(folder)


def test_a_verified_file_is_read_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr(module, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    assert verify(folder).tokens_total == 200
    assert len(read) == 3
    verify(folder)
    assert len(read) == 3
    os.utime(folder / "t_train_000002.bin", ns=(0, 12345))  # touched: looked at again
    verify(folder)
    assert read[3:] == ["t_train_000002.bin"]
    (folder / ".verified.json").write_text("nonsense")
    verify(folder)
    assert len(read) == 7


def test_unfinished_preparation(folder):
    manifest = load_manifest(folder)
    manifest.complete = False
    manifest.save(folder)
    with pytest.raises(Gpt2EduError, match="stopped after 3 shards; run the same gpt2edu.data command again"):
        verify(folder)


def test_manifest_is_plain_json(folder):
    content = json.loads((folder / "manifest.json").read_text())
    assert content["schema"] == 1 and list(content["files"]) == sorted(content["files"], key=lambda n: n[-10:])
