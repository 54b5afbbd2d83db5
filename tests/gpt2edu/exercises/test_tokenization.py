"""Chapter 1's checks refuse the mistakes that a reader is likely to make; the chapter's own solutions pass them."""

import pytest

from gpt2edu.bpe import merge
from gpt2edu.exercises import tokenization as exercises


def starter(*arguments):
    raise NotImplementedError


def last_pair_of_a_tie(ids):
    pairs = list(zip(ids, ids[1:], strict=False))
    return max(pairs, key=lambda pair: (pairs.count(pair), pair))


def youngest_first(chunk, merges):
    ids = list(chunk)
    for i in reversed(range(len(merges))):
        ids = merge(ids, merges[i], 256 + i)
    return ids


WRONG = [
    (exercises.check_bytes_per_token, lambda text, ids: len(text) / len(ids), "expected"),
    (exercises.check_bytes_per_token, lambda text, ids: len(ids) / len(text.encode()), "expected"),
    (exercises.check_most_frequent_pair, last_pair_of_a_tie, "expected"),
    (exercises.check_most_frequent_pair, lambda ids: (ids[0], ids[1]), "expected"),
    (exercises.check_encode_by_replay, youngest_first, "expected"),
    (exercises.check_encode_by_replay, lambda chunk, merges: list(chunk), "expected"),
    (exercises.check_stream_text, lambda pieces: [piece.decode() for piece in pieces], "raised UnicodeDecodeError"),
    (exercises.check_stream_text, lambda pieces: [piece.decode("utf-8", "ignore") for piece in pieces], "expected"),
]


@pytest.mark.parametrize(("check", "answer", "verdict"), WRONG)
def test_likely_mistakes_are_refused(check, answer, verdict, capsys):
    assert not check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("✗") and verdict in printed


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _, _ in WRONG))
def test_a_starter_is_not_yet_wrong(check, capsys):
    assert not check(starter)
    assert "not yet" in capsys.readouterr().out
