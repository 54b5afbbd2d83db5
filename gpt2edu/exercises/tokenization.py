"""Checks of chapter 1's exercises."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from gpt2edu.bpe import BytePairEncoder, Pair
from gpt2edu.exercises import check_cases
from gpt2edu.show import Verdict
from gpt2edu.tokenizer import load_tokenizer

_TEXT = "low lower lowest slow"
_MIXED = "안녕, 세계! 🙂 café"


def check_bytes_per_token(answer: Callable[[str, Sequence[int]], float]) -> Verdict:
    """Exercise 1: `answer(text, ids)` is the mean number of UTF-8 bytes in a token."""
    gpt2 = load_tokenizer("gpt2")
    texts = (_TEXT, _MIXED, " Hello" * 4)
    cases = [((text, ids), len(text.encode()) / len(ids)) for text in texts for ids in [gpt2.encode(text)]]
    return check_cases("bytes_per_token", answer, cases, same=lambda got, expected: abs(got - expected) < 1e-9)


def check_most_frequent_pair(answer: Callable[[Sequence[int]], Pair]) -> Verdict:
    """Exercise 2: `answer(ids)` is the neighbouring pair that occurs most often; a tie goes to the smaller ids."""
    lists = ([1, 2, 3, 1, 2], [5, 4, 3, 2, 1], [7, 7, 7, 1, 2, 1, 2], [2, 1, 9, 2, 0, 9, 2], list(b"the cat, the hat"))
    cases = []
    for ids in lists:
        counts = Counter(pairwise(ids))
        cases.append(((ids,), min(counts, key=lambda pair: (-counts[pair], pair))))
    return check_cases("most_frequent_pair", answer, cases, same=lambda got, expected: tuple(got) == expected)


def check_encode_by_replay(answer: Callable[[bytes, Sequence[Pair]], Sequence[int]]) -> Verdict:
    """Exercise 3: `answer(chunk, merges)` are the ids of a chunk, each merge applied once in the order learned."""
    encoder = BytePairEncoder.train(_TEXT, 10)
    words = ("low", "slowest", " lowest", "owl", "", "한")
    cases = [((word.encode(), encoder.merges), encoder.encode_chunk(word.encode())) for word in words]
    by_age = BytePairEncoder([(98, 99), (97, 98), (257, 99)])  # in `abc` the older pair `bc` wins over `ab`
    cases.append(((b"abc", by_age.merges), by_age.encode_chunk(b"abc")))
    return check_cases("encode_by_replay", answer, cases, same=lambda got, expected: list(got) == expected)


def check_stream_text(answer: Callable[[Sequence[bytes]], Sequence[str]]) -> Verdict:
    """Exercise 4: `answer(pieces)` gives for each token's bytes the characters that they complete."""
    gpt2 = load_tokenizer("gpt2")
    cases = []
    for text in ("low", _MIXED, "🙂🙂", "한"):
        pieces = [gpt2.vocab[i] for i in gpt2.encode(text)]
        decoder = codecs.getincrementaldecoder("utf-8")()
        cases.append(((pieces,), [decoder.decode(piece) for piece in pieces]))
    return check_cases("stream_text", answer, cases, same=lambda got, expected: list(got) == expected)
