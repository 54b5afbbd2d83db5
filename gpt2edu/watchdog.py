"""A rank that is stuck ends the job: each rank tells the others how far it is, and all look whether one stays behind.

A rank that waits for another waits inside a collective operation, and nothing in MPI or NCCL says whom it waits for. So
each rank counts the operations that it has begun, and a thread of it writes the count to a store that rank 0 holds
(torch's TCPStore), again and again. When a rank has made no progress for the time allowed, it compares: who has begun
fewer operations than others is who they wait for, and who writes nothing any more has stopped altogether.

Time is counted in rounds of the threads, so a job that is paused as a whole and goes on is not taken for a stuck one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch.distributed as dist

SILENT_ROUNDS = 8  # without a word from a rank: its process has stopped
REPORTER_ROUNDS = 20  # that the other ranks leave to the one whose part it is to speak
WAY_ON = "start again with -y 1 to go on from the last checkpoint"


class Watchdog:
    """The threads of one rank.

    Args:
        rank: this one.
        names: what each rank is called in a message.
        store: a connection to the store, of this object alone.
        timeout_s: for which no rank may make another wait.
        end: is called with a message, from a thread, and ends all ranks.
    """

    def __init__(
        self, rank: int, names: Sequence[str], store: dist.Store, timeout_s: float, end: Callable[[str], object]
    ) -> None:
        self._rank, self._names, self._store, self._timeout_s, self._end = rank, names, store, timeout_s, end
        self._round_s = min(max(timeout_s / 50, 0.05), 5.0)
        self._keys = [f"rank {number}" for number in range(len(names))]
        self._begun = self._ended = 0  # operations
        self._talks = 0
        self._heard = [b""] * len(names)
        self._silence = [0] * len(names)  # rounds since each rank was heard of
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._watch)]
        store.set(self._keys[rank], "0 0")

    def start(self) -> None:
        """Begin; every rank has been made by now."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; one that waits for an answer of the store ends with the process."""
        self._stop.set()
        self._threads[1].join()

    def begin_operation(self) -> None:
        """Note that this rank begins a collective operation."""
        self._begun += 1

    def end_operation(self) -> None:
        """Note that one is over."""
        self._ended += 1

    def _talk(self) -> None:
        """Tell and listen; the store's answer may never come."""
        while not self._stop.wait(self._round_s):
            try:
                self._store.set(self._keys[self._rank], f"{self._begun} {self._talks}")
                heard = self._store.multi_get(self._keys)
            except RuntimeError:  # rank 0 is gone
                return
            pairs = zip(heard, self._heard, self._silence, strict=True)
            self._silence = [rounds + 1 if now == before else 0 for now, before, rounds in pairs]
            self._heard = heard
            self._talks += 1

    def _watch(self) -> None:
        """Look whether this rank makes progress, and end the job when it does not."""
        progress, idle_rounds, talks, unanswered_rounds = (0, 0), 0, 0, 0
        while not self._stop.wait(self._round_s):
            idle_rounds = idle_rounds + 1 if progress == (self._begun, self._ended) else 0
            unanswered_rounds = unanswered_rounds + 1 if talks == self._talks else 0
            progress, talks = (self._begun, self._ended), self._talks
            late_rounds = idle_rounds - self._timeout_s / self._round_s
            if late_rounds >= 0:
                stuck, how = self._find_stuck(answered=unanswered_rounds < SILENT_ROUNDS)
                reporter = min(set(range(len(self._names))) - set(stuck), default=self._rank)
                if self._rank == reporter or late_rounds > REPORTER_ROUNDS:
                    self._end(self._message(stuck, how))

    def _find_stuck(self, answered: bool) -> tuple[list[int], str]:
        """Return the ranks that the others wait for, none if all have come to the same operation, and what is known."""
        if not answered:
            return [0], "its process does not answer"
        silent = [rank for rank, rounds in enumerate(self._silence) if rounds >= SILENT_ROUNDS]
        if silent:
            return silent, "its process does not answer"
        begun = [int(heard.split()[0]) for heard in self._heard]
        behind = [rank for rank, number in enumerate(begun) if number < max(begun)]
        return behind, f"it has begun {min(begun)} operations of all ranks and others {max(begun)}"

    def _message(self, stuck: list[int], how: str) -> str:
        limit = f"for {self._timeout_s:g} s (--hang-timeout)"
        if not stuck:
            return (
                f"error: all ranks have waited in the same operation {limit}, so a GPU or the network is at fault; see "
                f"nvidia-smi -q and NCCL_DEBUG=INFO, and {WAY_ON}"
            )
        names = " and ".join(self._names[rank] for rank in stuck)
        return f"error: {names} is stuck: {how}, and the others have waited {limit}; {WAY_ON}"
