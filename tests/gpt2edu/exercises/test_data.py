"""Chapter 2's checks pass the right answer and refuse the likely mistakes."""

import struct

import numpy as np
import pytest

from gpt2edu.exercises import data


def pairs(tokens, seq_len, stride=None, last=0):
    starts = range(0, len(tokens) - seq_len + last, stride or seq_len)
    return [(tokens[s : s + seq_len], tokens[s + 1 : s + seq_len + 1]) for s in starts]


def read(tokens_from, checked=True):
    def answer(raw):
        magic, version, n = struct.unpack_from("<3i", raw)
        if checked and ((magic, version) != (20240520, 1) or len(raw) != 1024 + 2 * n):
            raise ValueError
        return tokens_from(raw)

    return answer


def first(order):
    def answer(place, samples, ranks, batch, seq_len):
        return order(place, samples, ranks, batch) * seq_len

    return answer


def right_order(place, samples, ranks, batch):
    micro, row = divmod(place, batch)
    v, m = divmod(micro, len(samples[0]))
    return (samples[v][m] * ranks + v) * batch + row


def micro_steps_first(place, samples, ranks, batch):
    micro, row = divmod(place, batch)
    m, v = divmod(micro, ranks)
    return (samples[v][m] * ranks + v) * batch + row


GOOD = {
    data.check_count_samples: [lambda n, s: divmod(n - 1, s)],
    data.check_inputs_and_targets: [pairs, lambda tokens, n: [(np.array(a), tuple(b)) for a, b in pairs(tokens, n)]],
    data.check_read_tokens: [
        read(lambda raw: np.frombuffer(raw, "<u2", offset=1024)),
        read(lambda raw: list(memoryview(raw)[1024:].cast("H"))),
    ],
    data.check_first_token: [first(right_order)],
}
BAD = {
    data.check_count_samples: [lambda n, s: divmod(n, s), lambda n, s: ((n - 1) // s, n % s), lambda n, s: n // s],
    data.check_inputs_and_targets: [
        lambda tokens, n: pairs(tokens, n, stride=n + 1),
        lambda tokens, n: pairs(tokens, n, last=1),
        lambda tokens, n: [(a, a) for a, _ in pairs(tokens, n)],
    ],
    data.check_read_tokens: [
        read(lambda raw: np.frombuffer(raw, "<u2", offset=1024), checked=False),
        read(lambda raw: np.frombuffer(raw, ">u2", offset=1024)),
        read(lambda raw: np.frombuffer(raw, "<u2", offset=12)),
        lambda raw: [][0],
    ],
    data.check_first_token: [
        first(micro_steps_first),
        first(lambda place, *_: place),
        first(lambda place, samples, ranks, batch: right_order(place, samples, ranks, batch) // ranks),
    ],
}


def flat(table):
    return [
        pytest.param(check, answer, id=f"{check.__name__}-{i}")
        for check in table
        for i, answer in enumerate(table[check])
    ]


@pytest.mark.parametrize("check, answer", flat(GOOD))
def test_right_answers_pass(check, answer):
    assert check(answer)


@pytest.mark.parametrize("check, answer", flat(BAD))
def test_mistakes_are_refused(check, answer, capsys):
    assert not check(answer)
    printed = capsys.readouterr().out
    assert "✗" in printed and "not yet" not in printed
