"""Checks of chapter 2's exercises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from gpt2edu.exercises import check_cases
from gpt2edu.shards import shard_header
from gpt2edu.show import Verdict, show_check


def check_count_samples(answer: Callable[[int, int], tuple[int, int]]) -> Verdict:
    """Exercise 1: `answer(n_tokens, sample_tokens)` is (whole samples in a shard, tokens never read)."""
    cases = []
    for n_tokens, sample_tokens in ((100_000_000, 524_288), (1000, 100), (1001, 100), (1099, 100), (101, 100)):
        n_samples = (n_tokens - 1) // sample_tokens
        cases.append(((n_tokens, sample_tokens), (n_samples, n_tokens - n_samples * sample_tokens - 1)))
    return check_cases("count_samples", answer, cases, same=lambda got, expected: tuple(got) == expected)


Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]


def check_inputs_and_targets(answer: Callable[[Sequence[int], int], Pairs]) -> Verdict:
    """Exercise 2: `answer(tokens, seq_len)` lists (inputs, targets) of every whole sequence."""
    cases = []
    for n_tokens, seq_len in ((9, 4), (8, 4), (12, 4), (5, 4), (7, 1), (20, 6)):
        tokens = [(7 * i + 3) % 50 for i in range(n_tokens)]
        starts = range(0, n_tokens - seq_len, seq_len)
        expected = [(tokens[s : s + seq_len], tokens[s + 1 : s + seq_len + 1]) for s in starts]
        cases.append(((tokens, seq_len), expected))

    def same(got: Pairs, expected: Pairs) -> bool:
        return [(list(inputs), list(targets)) for inputs, targets in got] == expected

    return check_cases("inputs_and_targets", answer, cases, same)


def check_read_tokens(answer: Callable[[bytes], Sequence[int]]) -> Verdict:
    """Exercise 3: `answer(data)` are the tokens of a shard's bytes; a damaged shard raises ValueError."""
    shards = [np.array(tokens, dtype="<u2") for tokens in ([50256, 15496, 995], [0], [65535, 256, 1, 50000])]
    whole = [shard_header(len(tokens)) + tokens.tobytes() for tokens in shards]
    cases = [((data,), tokens.tolist()) for data, tokens in zip(whole, shards, strict=True)]
    verdict = check_cases("read_tokens", answer, cases, same=lambda got, expected: list(got) == expected)
    if not verdict:
        return verdict
    damaged = {
        "a shard cut short": whole[0][:-2],
        "a shard with bytes behind its end": whole[0] + b"\0\0",
        "a file with another magic number": b"\1" + whole[0][1:],
        "a file of version 2": whole[0][:4] + b"\2" + whole[0][5:],
    }
    for name, data in damaged.items():
        try:
            answer(data)
        except ValueError:
            continue
        except Exception as problem:  # whatever the reader's code raises is a verdict, not a crash
            return show_check("read_tokens", False, f"{name} raised {type(problem).__name__}, not ValueError")
        return show_check("read_tokens", False, f"{name} was read without a word")
    return show_check("read_tokens on damaged shards", True, f"all {len(damaged)} are refused")


def check_first_token(answer: Callable[..., int]) -> Verdict:
    """Exercise 4: `answer(place, samples, ranks, batch, seq_len)` is where the sequence at a place of the list begins.

    `samples[v][m]` is the sample that virtual rank v reads in its micro-step m.
    """
    cases = []
    for ranks, batch, micro_steps in ((1, 4, 1), (2, 2, 2), (4, 3, 1), (3, 2, 3)):
        samples = [[(5 * v + 3 * m + 2) % 7 for m in range(micro_steps)] for v in range(ranks)]
        seq_len = 16 * batch
        for place, (v, m, b) in enumerate(product(range(ranks), range(micro_steps), range(batch))):
            expected = ((samples[v][m] * ranks + v) * batch + b) * seq_len
            cases.append(((place, samples, ranks, batch, seq_len), expected))
    return check_cases("first_token", answer, cases)
