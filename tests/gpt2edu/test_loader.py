"""The loader against a plain re-telling of llm.c's DataLoader: one object a rank, one batch after the other."""

import itertools
import struct

import numpy as np
import pytest

from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.loader import VALIDATION_TOKENS, TrainLoader, ValLoader, largest_divisor
from gpt2edu.shards import write_shard

T = 4
VOCAB = 60000


class Mt19937:
    """Matsumoto and Nishimura's generator, word by word."""

    def __init__(self, seed):
        self.state = [seed]
        for j in range(1, 624):
            before = self.state[-1]
            self.state.append((1812433253 * (before ^ (before >> 30)) + j) % 2**32)
        self.left, self.next = 1, 0

    def randint32(self):
        self.left -= 1
        if self.left == 0:
            s = self.state
            for j in range(624):
                y = (s[j] & 0x80000000) | (s[(j + 1) % 624] & 0x7FFFFFFF)
                s[j] = s[(j + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
            self.left, self.next = 624, 0
        y = self.state[self.next]
        self.next += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def permute(self, items):
        for i in range(len(items) - 1, 0, -1):
            j = self.randint32() % (i + 1)
            items[i], items[j] = items[j], items[i]


class LlmcLoader:
    """llm.c's DataLoader of one process: `next_batch` gives the (shard, first token) of its B rows."""

    def __init__(self, lengths, B, rank, n_ranks, shuffle=True):
        self.lengths, self.B, self.rank, self.n_ranks, self.shuffle = lengths, B, rank, n_ranks, shuffle
        self.rng = Mt19937(42 + rank)
        self.shards = list(range(len(lengths)))
        self.reset()

    def reset(self):
        if self.shuffle:
            self.rng.permute(self.shards)
        self.load(0)

    def load(self, index):
        self.shard, self.sample = index, 0
        self.n_samples = (2 * self.lengths[self.shards[index]] - 2) // (2 * self.n_ranks * self.B * T)
        self.samples = list(range(self.n_samples))
        if self.shuffle:
            self.rng.permute(self.samples)

    def next_batch(self):
        if self.sample >= self.n_samples:
            if self.shard == len(self.lengths) - 1:
                self.reset()
            else:
                self.load(self.shard + 1)
        first = self.samples[self.sample] * self.n_ranks * self.B * T + self.rank * self.B * T
        self.sample += 1
        return [(self.shards[self.shard], first + b * T) for b in range(self.B)]


def llmc_steps(lengths, n_ranks, B, micro_steps, n_steps, shuffle=True):
    """For every step the list of sequences, ordered rank, micro-step, row."""
    loaders = [LlmcLoader(lengths, B, rank, n_ranks, shuffle) for rank in range(n_ranks)]
    return [
        [ids for loader in loaders for _ in range(micro_steps) for ids in loader.next_batch()] for _ in range(n_steps)
    ]


@pytest.fixture
def shards(tmp_path):
    """Three shards of different lengths; each token says where it is from: shard * 20,000 + place."""
    lengths = [3000, 2049, 5003]
    for i, length in enumerate(lengths):
        write_shard(tmp_path / f"t_train_{i + 1:06d}.bin", 20000 * i + np.arange(length))
    return str(tmp_path / "t_train_*.bin"), lengths


def ids(loader, step):
    return [tuple(row) for row in loader.sequence_ids(step).tolist()]


def test_mt19937_known_values():
    rng = Mt19937(137)
    # printed in llm.c's llmc/rand.h, made by PyTorch
    assert [rng.randint32() for _ in range(5)] == [4053805790, 2173880614, 380293709, 1237255315, 2986595568]


@pytest.mark.parametrize("n_ranks, B", list(itertools.product([1, 2, 4, 8], [1, 4, 16])))
def test_is_llmc_when_the_virtual_world_is_real(shards, n_ranks, B):
    pattern, lengths = shards
    micro_steps = 2
    n_steps = 2 * (sum(lengths) // (n_ranks * B * micro_steps * T)) + 2  # past the end of the second epoch
    expected = llmc_steps(lengths, n_ranks, B, micro_steps, n_steps)
    share = B * micro_steps
    for rank in range(n_ranks):
        loader = TrainLoader(
            pattern,
            T,
            n_ranks * share,
            order_ranks=n_ranks,
            order_batch=B,
            rank=rank,
            world_size=n_ranks,
            vocab_size=VOCAB,
        )
        for step in range(n_steps):
            assert ids(loader, step) == expected[step][rank * share : (rank + 1) * share]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("order_ranks", [1, 2, 8])
def test_same_sequences_for_any_ranks_and_micro_batch(shards, order_ranks, shuffle):
    pattern, lengths = shards
    n, n_steps = 128, 45  # 512 tokens a step, 10,052 in an epoch: two epoch ends, several shard ends
    options = {"order_ranks": order_ranks, "order_batch": 8, "vocab_size": VOCAB, "shuffle": shuffle}
    expected = llmc_steps(lengths, order_ranks, 8, n // order_ranks // 8, n_steps, shuffle)
    for world_size in (1, 2, 4, 8):
        loaders = [TrainLoader(pattern, T, n, rank=r, world_size=world_size, **options) for r in range(world_size)]
        for step in range(n_steps):
            assert [row for loader in loaders for row in ids(loader, step)] == expected[step]
            for micro_batch in (1, 4, 16):
                batches = [batch for loader in loaders for batch in loader.step_batches(step, micro_batch)]
                assert all(inputs.shape == (micro_batch, T) for inputs, _ in batches)
                inputs = np.concatenate([inputs for inputs, _ in batches])
                targets = np.concatenate([targets for _, targets in batches])
                first = [20000 * shard + start for shard, start in expected[step]]
                np.testing.assert_array_equal(inputs, np.add.outer(first, np.arange(T)))
                np.testing.assert_array_equal(targets, inputs + 1)


def test_golden_ids(shards):
    """Written down once from the plain loader above, so that the two cannot drift together."""
    loader = TrainLoader(shards[0], T, 8, order_ranks=2, order_batch=2, vocab_size=VOCAB)
    assert ids(loader, 0) == list(zip([2] * 8, [368, 372, 4960, 4964, 2248, 2252, 3016, 3020], strict=True))
    assert ids(loader, 700) == list(zip([0] * 4 + [2] * 4, [2144, 2148, 192, 196, 3464, 3468, 4296, 4300], strict=True))


def test_seek_in_any_order(shards):
    pattern, _ = shards
    forward = TrainLoader(pattern, T, 64, order_ranks=2, vocab_size=VOCAB)
    expected = [ids(forward, step) for step in range(100)]
    jumping = TrainLoader(pattern, T, 64, order_ranks=2, vocab_size=VOCAB)
    for step in np.random.default_rng(0).permutation(100).tolist():
        assert ids(jumping, step) == expected[step]


@pytest.mark.parametrize("n_steps", [0, 1, 77, 78, 79, 200])
@pytest.mark.parametrize("rank", [0, 1])
def test_llmc_position(shards, rank, n_steps):
    # an epoch is 46 + 32 + 78 samples, two of them a step: 78 steps end one
    pattern, lengths = shards
    plain = LlmcLoader(lengths, 8, rank, 2)
    for _ in range(2 * n_steps):
        plain.next_batch()
    position = TrainLoader(pattern, T, 32, order_ranks=2, order_batch=8, vocab_size=VOCAB).llmc_position(rank, n_steps)
    assert (position.shard_index, position.sample_index) == (plain.shard, plain.sample)
    assert position.shard_order.tolist() == plain.shards and position.shard_order.dtype == np.int32
    assert position.sample_order.tolist() == plain.samples and position.sample_order.dtype == np.int32
    seed, left, following, *words = struct.unpack("<QiI624I2I", position.rng_state)
    assert (seed, left, following) == (42 + rank, plain.rng.left, plain.rng.next)
    assert words == [*plain.rng.state, 0, 0x9908B0DF]


def test_counts(shards):
    loader = TrainLoader(shards[0], T, 128, order_ranks=8, order_batch=8, vocab_size=VOCAB)
    assert loader.n_tokens == 10052
    assert loader.steps_per_epoch == 10052 // 512
    # samples of 256 tokens and one token to look ahead: 11, 8 and 19 of them
    assert loader.dropped_tokens == (3000 - 11 * 256 - 1) + (2049 - 8 * 256 - 1) + (5003 - 19 * 256 - 1)


def test_shard_without_one_sample_is_passed_over(tmp_path):
    write_shard(tmp_path / "a_1.bin", np.arange(4))
    write_shard(tmp_path / "a_2.bin", np.arange(100, 117))
    loader = TrainLoader(tmp_path / "a_*.bin", T, 2, vocab_size=VOCAB)
    assert {shard for step in range(10) for shard, _ in ids(loader, step)} == {1}
    assert loader.dropped_tokens == 4


def test_default_order_batch(shards):
    assert largest_divisor(512, 64) == 64 and largest_divisor(66, 64) == 33 and largest_divisor(7, 64) == 7
    assert TrainLoader(shards[0], T, 96, order_ranks=2, vocab_size=VOCAB).order_batch == 48


@pytest.mark.parametrize(
    "options, words",
    [
        ({"order_ranks": 3}, "--order-ranks 3"),
        ({"world_size": 5}, "over 5 processes"),
        ({"order_batch": 7}, "--order-batch 7"),
    ],
)
def test_numbers_that_do_not_divide(shards, options, words):
    with pytest.raises(UsageError, match=words):
        TrainLoader(shards[0], T, 64, vocab_size=VOCAB, **options)


def test_micro_batch_must_divide(shards):
    with pytest.raises(UsageError, match="-b 3 does not divide"):
        next(TrainLoader(shards[0], T, 64, vocab_size=VOCAB).step_batches(0, 3))


def test_too_little_text(shards):
    with pytest.raises(Gpt2EduError, match="largest shard has 5,003 tokens.*takes 6,401"):
        TrainLoader(shards[0], 100, 64, order_batch=64, vocab_size=VOCAB)


def test_token_id_out_of_range_names_the_shard(shards):
    pattern, _ = shards
    loader = TrainLoader(pattern, T, 64, vocab_size=40001)
    with pytest.raises(Gpt2EduError, match="t_train_000003.bin: holds token id 4.*vocabulary has 40001"):
        for step in range(loader.steps_per_epoch):
            list(loader.step_batches(step, 64))
    with pytest.raises(Gpt2EduError, match="t_train_000001.bin: holds token id"):
        list(ValLoader(pattern, T, vocab_size=1000).batches(8))


@pytest.mark.parametrize("n_tokens, expected", [(None, 749 + 512 + 1250), (4000, 1000), (4003, 1000), (10**9, 2511)])
@pytest.mark.parametrize("world_size, micro_batch", [(1, 7), (2, 1), (4, 16), (8, 64)])
def test_validation_reads_the_same_tokens(shards, n_tokens, expected, world_size, micro_batch):
    pattern, lengths = shards
    whole = [(i, start) for i, length in enumerate(lengths) for start in range(0, length - T, T)][:expected]
    first = []
    for rank in range(world_size):
        loader = ValLoader(pattern, T, n_tokens=n_tokens, rank=rank, world_size=world_size, vocab_size=VOCAB)
        assert loader.n_tokens == expected * T
        for inputs, targets in loader.batches(micro_batch):
            assert inputs.shape[0] <= micro_batch and inputs.dtype == np.int64
            np.testing.assert_array_equal(targets, inputs + 1)
            first += inputs[:, 0].tolist()
    assert first == [20000 * i + start for i, start in whole]


def test_validation_bounds(shards):
    assert VALIDATION_TOKENS == 10485760
    with pytest.raises(Gpt2EduError, match="no validation sequence"):
        ValLoader(shards[0], 9000, vocab_size=VOCAB)
    few = [ValLoader(shards[0], 3000, n_tokens=3000, rank=r, world_size=4, vocab_size=VOCAB) for r in range(4)]
    assert sum(len(list(loader.batches(4))) for loader in few) == 1
