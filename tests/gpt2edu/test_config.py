"""Descriptors name the models that llm.c names, and impossible shapes are refused."""

import pytest

from gpt2edu.config import ModelConfig
from gpt2edu.errors import UsageError


def shape(descriptor):
    c = ModelConfig.from_descriptor(descriptor)
    return c.n_layers, c.channels, c.n_heads, c.max_seq_len, c.vocab_size, c.padded_vocab_size


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        ("d6", (6, 384, 6, 1024, 50257, 50304)),
        ("d12", (12, 768, 12, 1024, 50257, 50304)),
        ("gpt2:d12", (12, 768, 12, 1024, 50257, 50304)),
        ("d24", (24, 1024, 16, 1024, 50257, 50304)),
        ("d36", (36, 1280, 20, 1024, 50257, 50304)),
        ("d48", (48, 1600, 25, 1024, 50257, 50304)),
        ("d60", (60, 1920, 30, 1024, 50257, 50304)),
        ("d72", (72, 2880, 30, 1024, 50257, 50304)),
        ("d84", (84, 3456, 36, 1024, 50257, 50304)),
        ("gpt3:c384", (6, 384, 6, 2048, 50257, 50304)),
        ("gpt3:c768", (12, 768, 12, 2048, 50257, 50304)),
        ("gpt3:c1024", (24, 1024, 16, 2048, 50257, 50304)),
        ("gpt3:c1536", (24, 1536, 16, 2048, 50257, 50304)),
        ("gpt3:c2048", (24, 2048, 16, 2048, 50257, 50304)),
        ("gpt3:c2560", (32, 2560, 32, 2048, 50257, 50304)),
        ("gpt3:c4096", (32, 4096, 32, 2048, 50257, 50304)),
        ("gpt3:c12288", (96, 12288, 96, 2048, 50257, 50304)),
        ("d4,h4,c256,t256,v1024", (4, 256, 4, 256, 1024, 1024)),
        ("d3,h1,c8,v1025", (3, 8, 1, 1024, 1025, 1152)),
        ("d12,t64", (12, 768, 12, 64, 50257, 50304)),
    ],
)
def test_descriptors(descriptor, expected):
    assert shape(descriptor) == expected


@pytest.mark.parametrize(
    ("descriptor", "words"),
    [
        ("", "is neither"),
        ("12", "is neither"),
        ("d", "is neither"),
        ("d12,", "is neither"),
        ("d12,x3", "is neither"),
        ("gpt3:d12", "is neither"),
        ("d13", "no such size"),
        ("d0", "no such size"),
        ("gpt3:c100", "no such size"),
        ("d4,h3,c256", "256 channels cannot be split over 3 heads"),
        ("d4,h4,c256,v0", "vocab_size is 0"),
    ],
)
def test_impossible_descriptors_are_usage_errors(descriptor, words):
    with pytest.raises(UsageError, match=words):
        ModelConfig.from_descriptor(descriptor)


def test_padding_below_the_vocabulary_is_refused():
    with pytest.raises(UsageError, match="padded vocabulary 100 is below the vocabulary 101"):
        ModelConfig(vocab_size=101, padded_vocab_size=100)
