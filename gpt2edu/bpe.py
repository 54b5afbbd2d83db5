"""Byte-pair encoding: learn a vocabulary from text, turn text into token ids, and back.

A vocabulary starts with the 256 bytes. Training looks for the pair of neighbours that occurs most often,
makes it a new token, and repeats. The list of merges, in the order they were learned, is the whole result:
encoding replays it. `<|endoftext|>`, the sign between documents, is the last id and never comes out of text.

Source: Sennrich et al. 2016 (arXiv:1508.07909), algorithm 1; Radford et al. 2019 (GPT-2), section 2.2.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import regex

Pair = tuple[int, int]

END_OF_TEXT = "<|endoftext|>"
# GPT-2's cut into chunks: English endings, words, numbers and signs (each with the space before it), then white space
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CACHE_SIZE = 200_000  # chunks remembered by an encoder, tens of MB at most


def split(text: str) -> list[str]:
    """Cut text into chunks; no token may reach from one into the next.

    A lone surrogate, half of a character that UTF-8 cannot express, becomes U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return regex.findall(SPLIT_PATTERN, text)


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Return `ids` with each `pair`, from left to right, made one `new_id`."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def learn_merges(chunks: Iterable[str], n_merges: int) -> list[Pair]:
    """Return up to `n_merges` pairs in the order they were learned.

    Each time the most frequent pair wins; a tie goes to the smaller ids. It
    stops early when no pair occurs twice. Equal chunks are kept once, with their
    number as a weight, and a merge touches only words that hold its pair.
    """
    counted = Counter(chunks)
    words = [list(chunk.encode()) for chunk in counted]
    weights = list(counted.values())
    pair_counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += weights[w]
            words_with[pair].add(w)

    merges: list[Pair] = []
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(merges) < n_merges:
        count, best = heapq.heappop(heap)
        if -count != pair_counts[best]:  # an old count: some are used up
            heapq.heappush(heap, (-pair_counts[best], best))
            continue
        if -count < 2:
            break
        new_id = 256 + len(merges)
        merges.append(best)
        new_pairs = set()
        for w in words_with.pop(best):
            word, words[w] = words[w], merge(words[w], best, new_id)
            for pair in pairwise(word):
                pair_counts[pair] -= weights[w]
            for pair in pairwise(words[w]):
                pair_counts[pair] += weights[w]
                if new_id in pair:
                    words_with[pair].add(w)
                    new_pairs.add(pair)
        for pair in new_pairs:
            heapq.heappush(heap, (-pair_counts[pair], pair))
    return merges


class BytePairEncoder:
    """A vocabulary made of merges, and the two directions: text to ids, ids to text.

    Attributes:
        merges: pairs of ids; number i made the token 256 + i.
        vocab: the bytes of each id: 256 single bytes, the merges, then `<|endoftext|>`, whose id is `eot`.
    """

    def __init__(self, merges: Iterable[Pair], byte_order: Sequence[int] = range(256)):
        """Build the vocabulary; `byte_order[i]` is the byte that has id i (GPT-2's order is not 0, 1, 2...)."""
        self.merges = list(merges)
        self.vocab = [bytes([byte]) for byte in byte_order]
        for left, right in self.merges:
            self.vocab.append(self.vocab[left] + self.vocab[right])
        self.vocab.append(END_OF_TEXT.encode())
        self.eot = len(self.vocab) - 1
        self._id_of_byte = {byte: i for i, byte in enumerate(byte_order)}
        self._merged = {pair: 256 + i for i, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str | bytes, n_merges: int) -> BytePairEncoder:
        """Learn `n_merges` merges from a text, fewer when it is too short for them."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return cls(learn_merges(split(text), n_merges))

    def encode_chunk(self, chunk: bytes) -> list[int]:
        """Return the ids of one chunk: the oldest merge that fits goes first."""
        ids = [self._id_of_byte[byte] for byte in chunk]
        while len(ids) > 1:
            new_id = min(self._merged.get(pair, self.eot) for pair in pairwise(ids))
            if new_id == self.eot:  # no pair has a merge
                break
            ids = merge(ids, self.merges[new_id - 256], new_id)
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; special tokens written in it are plain text."""
        ids: list[int] = []
        for chunk in split(text):
            if chunk not in self._cache:
                if len(self._cache) >= CACHE_SIZE:
                    self._cache.clear()
                self._cache[chunk] = self.encode_chunk(chunk.encode())
            ids += self._cache[chunk]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that the ids stand for."""
        return b"".join(self.vocab[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are no UTF-8 (half of a letter) show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")
