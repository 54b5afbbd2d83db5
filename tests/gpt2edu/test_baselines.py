import gzip
import math

import numpy as np
import pytest

from gpt2edu.baselines import bigram_nats, gzip_bits_per_byte, measure_baselines, unigram_nats

TRAIN = np.array([0, 1, 0, 1, 0, 2, 0, 1])  # 0 is followed by 1 three times and by 2 once


def test_unigram_by_hand():
    # counts with one added: 0: 5, 1: 4, 2: 2, 3: 1, of 12
    nats = unigram_nats(TRAIN, np.array([3, 0, 1, 2, 3]), vocab_size=4)
    np.testing.assert_allclose(nats, -np.log(np.array([5, 4, 2, 1]) / 12))


def test_bigram_by_hand():
    # after 0: 4 pairs of 2 kinds; after 1: 2 pairs of 1 kind; after 3: nothing, so the unigram alone
    nats = bigram_nats(TRAIN, np.array([0, 1, 2, 3, 0, 3]), vocab_size=4)
    p = [(3 + 2 * 4 / 12) / 6, (0 + 1 * 2 / 12) / 3, (0 + 1 * 1 / 12) / 2, 5 / 12, (0 + 2 * 1 / 12) / 6]
    np.testing.assert_allclose(nats, -np.log(p))


def test_bigram_probabilities_sum_to_one():
    train = np.random.default_rng(0).integers(0, 5, 200)
    for before in range(6):  # token 5 never occurs in the training text
        total = sum(math.exp(-bigram_nats(train, np.array([before, token]), 6)[0]) for token in range(6))
        assert total == pytest.approx(1)


def test_gzip_is_the_real_gzip():
    text = b"in the beginning " * 100
    assert gzip_bits_per_byte(text) == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text))


def test_bits_a_byte_and_order_on_a_markov_text():
    rng = np.random.default_rng(1)
    tokens = [0]
    for _ in range(20_000):  # the next token is the next number nine times out of ten
        tokens.append((tokens[-1] + 1) % 4 if rng.random() < 0.9 else int(rng.integers(4)))
    train, val = np.array(tokens[:16_000], np.uint16), np.array(tokens[16_000:], np.uint16)
    lengths = np.array([1, 2, 3, 2])
    text = b"".join([b"a", b"bc", b"def", b"gh"][token] for token in val)
    unigram, bigram, gzipped = measure_baselines(train, val, lengths, text)
    n_bytes = lengths[val[1:]].sum()
    assert unigram.bits_per_byte == pytest.approx(unigram.nats_per_token * (len(val) - 1) / math.log(2) / n_bytes)
    assert unigram.nats_per_token == pytest.approx(math.log(4), abs=0.01)
    entropy = -(0.925 * math.log(0.925) + 3 * 0.025 * math.log(0.025))
    assert bigram.nats_per_token == pytest.approx(entropy, abs=0.03)
    assert gzipped.name == "gzip" and gzipped.nats_per_token is None
    assert bigram.bits_per_byte < gzipped.bits_per_byte
