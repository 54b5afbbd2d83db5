"""Our byte-pair encoder against tiktoken, against a slow trainer written from the definition, and by hand."""

import random
from collections import Counter

import pytest
import tiktoken

from gpt2edu.bpe import END_OF_TEXT, SPLIT_PATTERN, BytePairEncoder, learn_merges, merge, split
from gpt2edu.tokenizer import load_tokenizer

# OpenAI's published pattern, typed from its release: the check that ours is it
RELEASED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer().encoder


@pytest.fixture(scope="module")
def reference(gpt2):
    """Return tiktoken's encoder in Rust, over the same ranks."""
    ranks = {token: i for i, token in enumerate(gpt2.vocab[:-1])}
    return tiktoken.Encoding(
        "gpt2-reference", pat_str=RELEASED_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: gpt2.eot}
    )


def random_text(rng: random.Random) -> str:
    """Return a string of fragments that are hard for a tokenizer, and of random characters."""
    fragments = (
        [
            "the",
            " quick",
            " brown",
            "'s",
            "'re",
            "'LL",
            "'",
            "don't",
            " they'd've",
            "1234567",
            " 3.14",
            "\u0661\u0662",
            "x" * 40,
        ]
        + [
            " ",
            "  ",
            " " * 17,
            "\t",
            "\n",
            "\r\n",
            "\n\n \n",
            "\u00a0",
            "\u3000",
            "\u2028",
            "\x1c",
            "\x85",
            "\x00",
            "\ufeff",
        ]
        + ["안녕하세요", " 세계", "한글로 쓴", "日本語", "русский", " العربية", "ไทย", "é", "e\u0301", "ß", "\u1e9e"]
        + ["🙂", "👩\u200d👩\u200d👧", "🇰🇷", " 🤖🤖", "\U0010ffff", "\ufffd"]
        + ["\ud83d", "\ude42", "\ud800x", "\udfff"]
        + [END_OF_TEXT, "<|", "|>", "::", "---", "!!!", "{}[]", ' "', "https://a.b/c?d=e&f#g", " SolidGoldMagikarp"]
    )
    ranges = [(0x20, 0x7F), (0, 0x100), (0xAC00, 0xD7A4), (0, 0x3000), (0x1F300, 0x1FA00), (0, 0x110000)]
    parts = []
    for _ in range(rng.randrange(12)):
        if rng.random() < 0.6:
            parts.append(rng.choice(fragments))
        else:
            low, high = rng.choice(ranges)
            parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 8))))
    return "".join(parts)


def test_equal_to_tiktoken_on_a_fuzz_of_2000_strings(gpt2, reference):
    rng = random.Random(1)
    texts = ["", " ", "\n", "\ud800", "\ud83d\ude42"] + [random_text(rng) for _ in range(2000)]
    assert len(set(texts)) > 1700
    for text in texts:
        ids = gpt2.encode(text)
        assert ids == reference.encode_ordinary(text), repr(text)
        assert gpt2.decode_bytes(ids) == reference.decode_bytes(ids)


def test_the_fuzz_sees_what_it_should():
    texts = [random_text(random.Random(seed)) for seed in range(300)]
    for wanted in ("\ud83d", "안녕하세요", " " * 17, "🇰🇷", "\n", END_OF_TEXT):
        assert any(wanted in text for text in texts), repr(wanted)
    assert "" in texts


def test_known_gpt2_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.eot == 50256
    assert len(gpt2.vocab) == 50257


def test_a_lone_surrogate_becomes_the_replacement_character(gpt2):
    assert gpt2.decode(gpt2.encode("a\ud800b")) == "a\ufffdb"
    assert gpt2.decode(gpt2.encode("\ud83d\ude42")) == "🙂"  # two halves in order are the whole character


def test_split_keeps_every_character():
    assert SPLIT_PATTERN == RELEASED_PATTERN
    assert split("We're  42!\n\n ok") == ["We", "'re", " ", " 42", "!", "\n\n", " ok"]
    text = "".join(random_text(random.Random(seed)) for seed in range(100)).encode(errors="ignore").decode()
    assert "".join(split(text)) == text


def test_merge_goes_from_left_to_right():
    assert merge([1, 1, 1, 2], (1, 1), 9) == [9, 1, 2]
    assert merge([1, 2, 3, 1, 2], (1, 2), 9) == [9, 3, 9]
    assert merge([], (1, 2), 9) == []


def test_training_by_hand():
    """Train on low, lower, lowest: `lo` and `ow` occur 3 times, `lo` has the smaller ids; then `low`, then `lowe`."""
    encoder = BytePairEncoder.train("low\nlower\nlowest", 3)
    assert encoder.merges == [(ord("l"), ord("o")), (256, ord("w")), (257, ord("e"))]
    assert encoder.vocab[256:] == [b"lo", b"low", b"lowe", b"<|endoftext|>"]
    assert encoder.encode("lowest lot") == [258, ord("s"), ord("t"), ord(" "), 256, ord("t")]


def test_merges_by_hand():
    """The oldest merge goes first, even when a younger one would make a longer token."""
    a, b, c = b"abc"
    encoder = BytePairEncoder([(b, c), (a, b), (257, c)])
    assert encoder.encode("abc") == [a, 256]
    assert encoder.encode("ab") == [257]
    assert encoder.encode("abab") == [257, 257]


def slow_merges(chunks: list[str], n_merges: int) -> list[tuple[int, int]]:
    """Algorithm 1 of Sennrich et al. as written: count all pairs anew for each merge."""
    words = [list(chunk.encode()) for chunk in chunks]
    merges = []
    for new_id in range(256, 256 + n_merges):
        counts = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        words = [merge(word, best, new_id) for word in words]
    return merges


@pytest.mark.parametrize("alphabet", ["ab", "aab ", "abcdefgh   ", "aé한🙂 \n"])
@pytest.mark.parametrize("seed", range(5))
def test_training_equals_the_slow_algorithm(alphabet, seed):
    rng = random.Random(seed)
    chunks = split("".join(rng.choice(alphabet) for _ in range(600)))
    merges = learn_merges(chunks, 80)
    assert len(merges) > 30
    assert merges == slow_merges(chunks, 80)


def test_training_is_deterministic_and_ignores_the_order_of_words():
    rng = random.Random(3)
    words = [" " + "".join(rng.choice("abcde") for _ in range(rng.randrange(1, 8))) for _ in range(2000)]
    first = BytePairEncoder.train("".join(words), 200).merges
    assert len(first) == 200
    rng.shuffle(words)
    assert learn_merges(words, 200) == first


def test_training_stops_when_no_pair_occurs_twice():
    assert BytePairEncoder.train("abcd", 10).merges == []
    assert BytePairEncoder.train("", 10).merges == []
    assert BytePairEncoder.train("abab", 10).merges == [(97, 98)]


def test_training_takes_bytes():
    text = "한 한 한국 korea korea"
    assert BytePairEncoder.train(text.encode(), 20).merges == BytePairEncoder.train(text, 20).merges
    assert BytePairEncoder.train(b"\xff\xff \xff\xff", 2).merges  # bytes that are no UTF-8 do not stop it


def test_any_bytes_survive_a_round_trip(gpt2):
    rng = random.Random(5)
    for encoder in (gpt2, BytePairEncoder.train("the cat and the hat", 5)):
        assert encoder.decode_bytes(encoder.encode_chunk(bytes(range(256)))) == bytes(range(256))
        for _ in range(300):
            data = rng.randbytes(rng.randrange(50))
            assert encoder.decode_bytes(encoder.encode_chunk(data)) == data


def test_half_a_letter_decodes_to_the_replacement_character(gpt2):
    ids = gpt2.encode("한")
    assert len(ids) > 1
    assert gpt2.decode(ids[:1]) == "\ufffd"
    assert gpt2.decode(ids) == "한"


def test_the_cache_is_bounded_and_does_not_change_the_ids(monkeypatch):
    monkeypatch.setattr("gpt2edu.bpe.CACHE_SIZE", 3)
    encoder = BytePairEncoder.train("the cat and the hat and the bat", 12)
    text = "the cat and the hat and the bat " * 3
    expected = [i for chunk in split(text) for i in encoder.encode_chunk(chunk.encode())]
    assert encoder.encode(text) == expected
    assert len(encoder._cache) <= 3
