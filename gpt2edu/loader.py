"""Which sequences an optimizer step sees, and in what order: a pure function of the step number.

The order belongs to the run, not to the machine. It is that of llm.c's DataLoader on a virtual world of
`order_ranks` processes with micro-batches of `order_batch` sequences. A step's sequences form one list,
ordered (virtual rank, virtual micro-step, row); the real ranks take equal contiguous parts of it, and micro-batches
are runs of a part. So neither the number of GPUs nor the micro-batch changes what a step learns from, and a
resumed run needs nothing but its step number.

Source: llm.c llmc/dataloader.h and llmc/rand.h @ f1e2ace.
Shape suffix legend: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.shards import PathLike, check_token_ids, find_shards, read_shard

SHUFFLE_SEED = 42  # llm.c seeds rank r with 42 + r
MAX_ORDER_BATCH = 64
# the first 20 batches of 64 x 1024 tokens on 8 GPUs: what llm.c's 124M recipe validates on
VALIDATION_TOKENS = 20 * 64 * 1024 * 8


def largest_divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n that is at most `limit`."""
    return next(divisor for divisor in range(min(n, limit), 0, -1) if n % divisor == 0)


def fisher_yates(items: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return n items shuffled as llm.c's random_permutation does, with n - 1 random uint32."""
    last_to_second = range(len(items) - 1, 0, -1)
    partners = (draws % np.arange(len(items), 1, -1, dtype=np.uint32)).tolist()
    order = items.tolist()
    for i, j in zip(last_to_second, partners, strict=True):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int32)


@dataclass(frozen=True)
class LlmcPosition:
    """What llm.c's state file keeps of its DataLoader."""

    shard_index: int  # into shard_order
    sample_index: int  # into sample_order
    shard_order: np.ndarray  # int32 (n_shards,)
    sample_order: np.ndarray  # int32 (samples in this shard,)
    rng_state: bytes  # its mt19937_state struct, 2,520 bytes


class VirtualRank:
    """The endless stream of samples that one process of llm.c would read: (shard, sample) by its number.

    A sample is `order_ranks` x `order_batch` x T tokens of one shard. Each epoch shuffles the shards once more,
    and each shard shuffles its samples when its turn comes; the random numbers are drawn in that order.
    """

    def __init__(self, rank: int, samples_per_shard: np.ndarray, shuffle: bool) -> None:
        self.seed = SHUFFLE_SEED + rank
        self.samples_per_shard = samples_per_shard
        self.shuffle = shuffle
        self._restart()

    def _restart(self) -> None:
        self.random = np.random.RandomState(self.seed)  # its MT19937, so seeded, is llm.c's and PyTorch's
        self.shard_order = np.arange(len(self.samples_per_shard), dtype=np.int32)
        self.first_sample = 0  # the number of the first sample of the current shard
        self._begin_epoch()

    def _draw(self, n: int) -> np.ndarray:
        return self.random.randint(0, 2**32, size=max(n, 0), dtype=np.uint32)

    def _begin_epoch(self) -> None:
        if self.shuffle:
            self.shard_order = fisher_yates(self.shard_order, self._draw(len(self.shard_order) - 1))
        self._begin_shard(0)

    def _begin_shard(self, place: int) -> None:
        self.place = place  # index into shard_order
        self.n_samples = int(self.samples_per_shard[self.shard_order[place]])
        self._draws = self._draw(self.n_samples - 1) if self.shuffle else None
        self._sample_order: np.ndarray | None = None

    def _next_shard(self) -> None:
        self.first_sample += self.n_samples
        if self.place == len(self.shard_order) - 1:
            self._begin_epoch()
        else:
            self._begin_shard(self.place + 1)

    @property
    def sample_order(self) -> np.ndarray:
        """The current shard's samples in the order they are read; made when first asked for."""
        if self._sample_order is None:
            order = np.arange(self.n_samples, dtype=np.int32)
            self._sample_order = order if self._draws is None else fisher_yates(order, self._draws)
        return self._sample_order

    def seek(self, number: int) -> int:
        """Make the shard of sample `number` the current one; return the sample's place in `sample_order`."""
        if number < self.first_sample:
            self._restart()
        while number >= self.first_sample + self.n_samples:
            self._next_shard()
        return number - self.first_sample

    def locate(self, number: int) -> tuple[int, int]:
        """Return (shard, sample inside it) of this rank's sample `number`, counted from 0 over all epochs."""
        place = self.seek(number)
        return int(self.shard_order[self.place]), int(self.sample_order[place])

    def rng_state(self) -> bytes:
        """Return the generator as llm.c's mt19937_state struct: u64 seed, i32 left, u32 next, 624 words, matrix A."""
        _, words, position, *_ = self.random.get_state()
        untouched = position == 624 and words[0] == self.seed
        left, following = (1, 0) if untouched else (625 - position, position)
        return (
            struct.pack("<QiI", self.seed, left, following)
            + words.astype("<u4").tobytes()
            + struct.pack("<2I", 0, 0x9908B0DF)
        )


class _Shards:
    """The mapped shards of a glob pattern, and the reading of sequences from them."""

    def __init__(self, pattern: PathLike, seq_len: int, vocab_size: int) -> None:
        self.paths = find_shards(pattern)
        self.shards = [read_shard(path) for path in self.paths]
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.lengths = np.array([len(shard) for shard in self.shards], dtype=np.int64)

    def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs_BT and targets_BT, int64, of the sequences (shard, first token)."""
        tokens_BT1 = np.empty((len(ids), self.seq_len + 1), dtype=np.int64)
        for row, (shard, start) in enumerate(ids):
            tokens_BT1[row] = self.shards[shard][start : start + self.seq_len + 1]
        if tokens_BT1.max(initial=0) >= self.vocab_size:
            row = int((tokens_BT1.max(axis=1) >= self.vocab_size).argmax())
            check_token_ids(tokens_BT1[row], self.vocab_size, self.paths[ids[row][0]])
        return tokens_BT1[:, :-1].copy(), tokens_BT1[:, 1:].copy()


class TrainLoader:
    """The training sequences of every optimizer step, for one real rank.

    Args:
        pattern: glob of the training shards.
        seq_len: T.
        sequences_per_step: sequences of one optimizer step over all ranks (total batch / T).
        order_ranks: processes of the virtual world that fixes the order.
        order_batch: its micro-batch; None is the largest divisor of its ranks' share that is at most 64.
        rank: this real process.
        world_size: real processes.
        vocab_size: token ids must be below it.
        shuffle: False reads the shards in order (llm.c's way to overfit one batch).

    Raises:
        UsageError: the numbers do not divide.
        Gpt2EduError: no shard, a broken shard, or none that holds one sample.
    """

    def __init__(
        self,
        pattern: PathLike,
        seq_len: int,
        sequences_per_step: int,
        *,
        order_ranks: int = 1,
        order_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        vocab_size: int,
        shuffle: bool = True,
    ) -> None:
        self.files = _Shards(pattern, seq_len, vocab_size)
        self.seq_len = seq_len
        self.sequences_per_step = sequences_per_step
        self.order_ranks = order_ranks
        self.shuffle = shuffle
        if sequences_per_step % order_ranks or sequences_per_step % world_size:
            raise UsageError(
                f"-d: {sequences_per_step} sequences of {seq_len} tokens a step cannot be split evenly over "
                f"{world_size} processes in the order of --order-ranks {order_ranks}; choose a -d that both divide"
            )
        share = sequences_per_step // order_ranks
        self.order_batch = order_batch or largest_divisor(share, MAX_ORDER_BATCH)
        if share % self.order_batch:
            raise UsageError(
                f"--order-batch {self.order_batch} does not divide the {share} sequences of a virtual rank"
            )
        self.order_micro_steps = share // self.order_batch
        self.n_local = sequences_per_step // world_size
        self.rank = rank
        sample_tokens = order_ranks * self.order_batch * seq_len
        samples_per_shard = np.maximum(self.files.lengths - 1, 0) // sample_tokens
        if not samples_per_shard.any():
            raise Gpt2EduError(
                f"{pattern}: the largest shard has {self.files.lengths.max():,} tokens, but one sample of the order "
                f"takes {sample_tokens + 1:,} (--order-ranks x --order-batch x -t, + 1); lower one or use more text"
            )
        self.n_tokens = int(self.files.lengths.sum())
        self.steps_per_epoch = self.n_tokens // (sequences_per_step * seq_len)
        used = samples_per_shard * sample_tokens
        # the token after the last sample of a shard is read as a target
        self.dropped_tokens = int((self.files.lengths - used - (used > 0)).sum())
        self._virtual = [VirtualRank(v, samples_per_shard, shuffle) for v in range(order_ranks)]

    def sequence_ids(self, step: int) -> np.ndarray:
        """Return this rank's sequences of a step: int64 (n_local, 2), shard and first token."""
        first = self.rank * self.n_local
        ids = np.empty((self.n_local, 2), dtype=np.int64)
        for row in range(self.n_local):
            micro, b = divmod(first + row, self.order_batch)
            v, micro = divmod(micro, self.order_micro_steps)
            shard, sample = self._virtual[v].locate(step * self.order_micro_steps + micro)
            ids[row] = shard, ((sample * self.order_ranks + v) * self.order_batch + b) * self.seq_len
        return ids

    def step_batches(self, step: int, micro_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield inputs_BT and targets_BT (int64) of each micro-batch of this rank in optimizer step `step`."""
        if self.n_local % micro_batch:
            raise UsageError(
                f"-b {micro_batch} does not divide the {self.n_local} sequences that a process has in a step"
            )
        ids = self.sequence_ids(step)
        for start in range(0, self.n_local, micro_batch):
            yield self.files.read(ids[start : start + micro_batch])

    def llmc_position(self, virtual_rank: int, step: int) -> LlmcPosition:
        """Return the DataLoader state that llm.c would save for this process after `step` finished steps."""
        stream = self._virtual[virtual_rank]
        done = step * self.order_micro_steps
        # llm.c goes to the next shard when it needs a batch, not when a shard is used up
        sample_index = stream.seek(done - 1) + 1 if done else stream.seek(0)
        return LlmcPosition(
            stream.place, sample_index, stream.shard_order.copy(), stream.sample_order.copy(), stream.rng_state()
        )


class ValLoader:
    """The validation sequences in file order: the same tokens for any number of ranks and any micro-batch.

    Args:
        pattern: glob of the validation shards.
        seq_len: T.
        n_tokens: how many tokens to read, rounded down to whole sequences; None is 10,485,760. A smaller split is
            read whole.
        rank: this real process.
        world_size: real processes.
        vocab_size: token ids must be below it.

    Raises:
        Gpt2EduError: no shard, a broken shard, or not one whole sequence.
    """

    def __init__(
        self,
        pattern: PathLike,
        seq_len: int,
        *,
        n_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        vocab_size: int,
    ) -> None:
        self.files = _Shards(pattern, seq_len, vocab_size)
        per_shard = (self.files.lengths - 1) // seq_len
        wanted = (VALIDATION_TOKENS if n_tokens is None else n_tokens) // seq_len
        n_sequences = int(min(wanted, per_shard.sum()))
        if not n_sequences:
            raise Gpt2EduError(
                f"{pattern}: no validation sequence of {seq_len} + 1 tokens to read; "
                "use a shorter -t or more validation text"
            )
        self.n_tokens = n_sequences * seq_len
        shard = np.repeat(np.arange(len(per_shard)), per_shard)[:n_sequences]
        start = np.concatenate([np.arange(n) for n in per_shard])[:n_sequences] * seq_len
        first, end = n_sequences * rank // world_size, n_sequences * (rank + 1) // world_size
        self.sequence_ids = np.stack([shard, start], axis=1)[first:end]

    def batches(self, micro_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield inputs_BT and targets_BT (int64) of this rank's part; the last batch may have fewer rows."""
        for start in range(0, len(self.sequence_ids), micro_batch):
            yield self.files.read(self.sequence_ids[start : start + micro_batch])
