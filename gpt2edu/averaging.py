"""Averaging the gradients over ranks: from the simplest way, step by step, to the one that training uses.

After the backward pass each rank has the gradients of its own sequences, and the update needs their mean over all
ranks. Each class here is one more idea for fewer bytes, fewer messages, or less waiting. All of them compute the same:
after `finish` each rank has the mean of its own slices, which is all that ZeRO-1 needs; after `gather` of everything.

Backward finishes the last layer first. So gradients are cut into one bucket for each layer, last layer first, and one
for what belongs to no layer: the embeddings, whose gradients are complete at the very end, and the final norm.

Sources: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, sections 3.2 and 4.2
(arXiv:2006.15704); compare llm.c train_gpt2.cu, gpt2_backward_and_reduce @ f1e2ace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2edu.distributed import Communicator
from gpt2edu.parameters import Shard


def cut_into_buckets(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Return the shards by layer, the last layer first; behind them those of no layer."""
    layers = [shard.layer for shard in shards if shard.layer is not None]
    order = [*reversed(range(1 + max(layers, default=-1))), None]
    return [[shard for shard in shards if shard.layer == layer] for layer in order]


class AllReduce:
    """Step 1: when backward is over, every rank gets the mean of everything.

    Also the base of the other ways.

    Args:
        communicator: the ranks.
        gradients: (n,) of this rank's sequences.
        shards: what this rank owns of them.
    """

    def __init__(self, communicator: Communicator, gradients: Tensor, shards: Sequence[Shard]) -> None:
        self.communicator, self.gradients, self.shards = communicator, gradients, list(shards)
        self.buckets = cut_into_buckets(self.shards)

    def ready(self, bucket: int) -> None:
        """Take note that the gradients of a bucket are complete; training calls it for one after another."""

    def finish(self) -> None:
        """Let this rank's shards of the gradients be the mean over ranks; all gradients are complete by now."""
        self.communicator.all_reduce_mean(self.gradients)

    def gather(self) -> None:
        """Let all gradients be the mean: here they are."""


class ReduceScatter(AllReduce):
    """Step 2: a rank only gets the mean of what it owns, a message for each slice of each layer of each tensor."""

    def finish(self) -> None:
        """Reduce one slice after another."""
        for shard in self.shards:
            self.communicator.reduce_scatter_mean(self.gradients, [shard])

    def gather(self) -> None:
        """Get the mean of the other slices from the ranks that own them."""
        for shard in self.shards:
            self.communicator.all_gather(self.gradients, [shard])


class Grouped(AllReduce):
    """Step 3: the same, all slices in one message."""

    def finish(self) -> None:
        """Reduce all slices at once."""
        self.communicator.reduce_scatter_mean(self.gradients, self.shards)

    def gather(self) -> None:
        """Get all of the other slices at once."""
        self.communicator.all_gather(self.gradients, self.shards)


class Overlapped(Grouped):
    """Step 4: a message for each bucket, on its way while backward still computes the others. Training uses this.

    All ranks begin the buckets in one order, whatever the order in which their gradients are complete: a rank that
    began another one first would wait for the others, and they for it, forever.

    Between two H100s, whose links are fast, this was measured to gain nothing over step 3; on a slow network it should.

    Args:
        communicator: the ranks.
        gradients: (n,) of this rank's sequences.
        shards: what this rank owns of them.
        dtype: of what is sent: bfloat16 halves the bytes, and rounds each rank's gradients and their mean.
    """

    def __init__(
        self,
        communicator: Communicator,
        gradients: Tensor,
        shards: Sequence[Shard],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(communicator, gradients, shards)
        self._ready: set[int] = set()
        self._begun: list[Callable[[], object]] = []  # what completes each bucket that is on its way
        self._rounds = dtype != gradients.dtype and communicator.world_size > 1
        self._sent = torch.empty_like(gradients, dtype=dtype) if self._rounds else gradients

    def ready(self, bucket: int) -> None:
        """Begin this bucket and those that have waited for it, unless one before it is not complete yet."""
        self._ready.add(bucket)
        while len(self._begun) in self._ready:
            shards = self.buckets[len(self._begun)]
            if self._rounds:
                _copy(self._sent, self.gradients, [shard.all_ranks for shard in shards])
            self._begun.append(self.communicator.begin_reduce_scatter_mean(self._sent, shards))

    def finish(self) -> None:
        """Begin what has not been begun, and complete all."""
        for bucket in range(len(self.buckets)):
            self.ready(bucket)
        for complete in self._begun:
            complete()
        self._ready.clear()
        self._begun.clear()
        if self._rounds:
            _copy(self.gradients, self._sent, [shard.own for shard in self.shards])

    def gather(self) -> None:
        """Get all of the other slices at once."""
        self.communicator.all_gather(self._sent, self.shards)
        if self._rounds:
            self.gradients.copy_(self._sent)


def _copy(target: Tensor, source: Tensor, slices: Sequence[slice]) -> None:
    torch._foreach_copy_([target[s] for s in slices], [source[s] for s in slices])


LADDER = {"all-reduce": AllReduce, "reduce-scatter": ReduceScatter, "one message": Grouped, "overlapped": Overlapped}
