"""Three predictors that any model must beat: unigram, bigram and gzip, on the very bytes that validation reads.

A loss says little alone. 1.8 bits a byte means something beside what counting tokens, counting pairs of
tokens, and a compressor from 1992 reach on the same text.

Shape suffix legend: N tokens of training text, M tokens of validation text.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Baseline:
    """What one predictor reaches; nats a token is None for gzip, which knows no tokens."""

    name: str
    bits_per_byte: float
    nats_per_token: float | None


def unigram_nats(train_N: np.ndarray, val_M: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return -log p(token) for each validation token but the first, p being its share of the training text.

    One is added to each count (Laplace), so that a token never seen costs much but not infinitely much.

    Returns:
        float64 (M - 1,): nats a token, for the same targets as a language model has.
    """
    counts_V = np.bincount(train_N, minlength=vocab_size) + 1.0
    return -np.log(counts_V / counts_V.sum())[val_M[1:]]


def bigram_nats(train_N: np.ndarray, val_M: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return -log p(token | the one before), smoothed towards the unigram distribution (Witten-Bell).

    p(b | a) = (count(a, b) + kinds(a) p(b)) / (count(a) + kinds(a)), where kinds(a) is the number of different
    tokens seen after a: the more kinds followed a, the more a new one is expected.

    Returns:
        float64 (M - 1,): nats a token.

    Source: Chen and Goodman 1998, section 2.5.
    """
    pairs, pair_counts = np.unique(_pairs(train_N, vocab_size), return_counts=True)
    first = pairs // vocab_size
    kinds_V = np.bincount(first, minlength=vocab_size)
    counts_V = np.bincount(first, weights=pair_counts, minlength=vocab_size)

    wanted = _pairs(val_M, vocab_size)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, pair_counts[place], 0)
    unigram = np.exp(-unigram_nats(train_N, val_M, vocab_size))
    kinds, counts = kinds_V[val_M[:-1]], counts_V[val_M[:-1]]
    weight = np.maximum(kinds, 1)  # after a token never seen before, only the unigram is left
    return -np.log((seen + weight * unigram) / (counts + weight))


def gzip_bits_per_byte(text: bytes) -> float:
    """Return the bits that gzip at its best level needs for a byte of `text`."""
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def measure_baselines(
    train_N: np.ndarray, val_M: np.ndarray, token_byte_lengths_V: np.ndarray, val_text: bytes
) -> list[Baseline]:
    """Fit unigram and bigram on the training tokens and score all three on the validation text.

    Args:
        train_N: training tokens, integers.
        val_M: validation tokens, as the model's validation reads them.
        token_byte_lengths_V: bytes of each token, 0 for <|endoftext|>.
        val_text: the bytes that `val_M` stands for.
    """
    train_N, val_M = train_N.astype(np.int64), val_M.astype(np.int64)
    vocab_size = len(token_byte_lengths_V)
    n_bytes = int(token_byte_lengths_V[val_M[1:]].sum())
    baselines = []
    for name, nats in (("unigram", unigram_nats), ("bigram", bigram_nats)):
        losses = nats(train_N, val_M, vocab_size)
        baselines.append(Baseline(name, float(losses.sum()) / math.log(2) / n_bytes, float(losses.mean())))
    return [*baselines, Baseline("gzip", gzip_bits_per_byte(val_text), None)]


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    return tokens[:-1] * vocab_size + tokens[1:]
