"""The newest token's embedding, and the choice of the next one, at a position that only the device knows."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import host
from kernels.next_token import choose_token, embed_token


def on_device(*values):
    return host.to_device(np.array(values, np.int32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("C", [1, 24, 300])
def test_embedding_of_the_newest_token(C, dtype, run_every_way):
    rng = np.random.default_rng(C)
    tokens, positions = (host.rounded(rng.standard_normal((n, C)), dtype) for n in (7, 4))
    out = host.to_device(np.full((1, C), np.nan), dtype)
    tables = host.to_device(tokens, dtype), host.to_device(positions, dtype)
    (result,) = run_every_way(embed_token.prepare(out, on_device(0, 5, 6, 1), on_device(2), *tables), out)
    expected = tokens[6] + positions[2]
    plain = tokens[6].astype(np.float32) + positions[2].astype(np.float32)
    assert host.max_error(result[0], expected) <= host.error_bound(plain, expected, dtype)


@pytest.mark.parametrize(
    ("V", "P", "dtype", "winners"),  # the first of them is wanted
    [
        (1, 8, "float32", [0]),
        (61, 64, "bfloat16", [60]),
        (50257, 50304, "bfloat16", [16752, 50256]),
        (50257, 50304, "float32", [32767, 32768, 40000]),
        (50257, 50304, "bfloat16", [40001, 40002, 40002 + 8192]),  # of one thread
    ],
)
def test_the_first_of_the_greatest_scores_is_chosen(V, P, dtype, winners):
    tokens, position, prepared = prepared_choice(V, P, dtype, winners)
    prepared()
    assert host.to_host(tokens).tolist() == [3, 4, winners[0]]
    assert host.to_host(position).tolist() == [2]


def test_the_choice_is_the_same_every_way(run_every_way):
    tokens, position, prepared = prepared_choice(61, 64, "bfloat16", [17, 40])
    run_every_way(prepared, tokens, position)
    assert host.to_host(tokens).tolist() == [3, 4, 17]


def prepared_choice(V, P, dtype, winners):
    scores = host.rounded(-2 - np.random.default_rng(V).random(P), dtype)  # all below zero
    scores[V:] = 9  # padding is never chosen
    scores[winners] = -1
    tokens, position = on_device(3, 4, 0), on_device(1)
    return tokens, position, choose_token.prepare(tokens, position, host.to_device(scores, dtype), V)


def test_a_full_text_stays_as_it_is():
    tokens, position = on_device(3, 4), on_device(1)
    choose_token(tokens, position, host.to_device(np.ones(8), "float32"), 8)
    assert host.to_host(tokens).tolist() == [3, 4]
    assert host.to_host(position).tolist() == [1]


def test_refusals():
    scores = host.to_device(np.ones(17), "float32")
    with pytest.raises(ValueError, match="a vocabulary of 9 tokens does not belong to 8 scores"):
        choose_token(on_device(0), on_device(0), scores[:8], 9)
    with pytest.raises(ValueError, match="17 scores are not whole packs of 8"):
        choose_token(on_device(0), on_device(0), scores, 9)
