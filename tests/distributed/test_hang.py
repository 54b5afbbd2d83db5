"""A rank that is stuck ends the job and is named."""

import re
import time

import pytest

from gpt2edu.launcher import HANG_EXIT_CODE


@pytest.mark.parametrize(("kind", "rank"), [("stopped", 1), ("stopped", 0), ("asleep", 1)])
def test_the_stuck_rank_is_named(run_ranks, kind, rank):
    started = time.monotonic()
    process = run_ranks(2, "stuck", kind, rank)
    assert time.monotonic() - started < 30
    assert process.returncode == HANG_EXIT_CODE, process.stderr
    number, machine = re.search(rf"rank {rank} is process (\d+) on (\S+)", process.stdout).groups()
    how = (
        "its process does not answer"
        if kind == "stopped"
        else r"it has begun \d+ operations of all ranks and others \d+"
    )
    sentence = (
        rf"error: rank {rank} \(process {number} on {machine}\) is stuck: {how}, and the others have waited for 2 s"
    )
    assert len(re.findall(sentence, process.stderr)) == 1, process.stderr
