"""The doctor under mpirun: who is where, a correct sum, its speed, and what to mend."""

import dataclasses
import re

import pytest

from gpt2edu.doctor import main
from gpt2edu.doctor_ranks import Seat, check_gpus, check_versions, judge_bandwidth
from gpt2edu.errors import UsageError

SEAT = Seat("a", 0, "NVIDIA X", "GPU-1", "torch 2")


def test_three_ranks_on_processors(run_ranks):
    process = run_ranks(3, "doctor")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].split() == ["OK", "ranks", "3", "on", "1", "machines"]
    for rank in range(3):
        pattern = rf" +rank {rank} is process \d+ on \S+, its number {rank} there: no GPU"
        assert re.fullmatch(pattern, lines[1 + rank])
    assert [line[5:23].strip() for line in lines[4:]] == ["software", "GPUs", "all-reduce", "bus bandwidth"]
    assert "correct on all 3 ranks" in lines[6]
    assert re.search(r"\d+\.\d\d GB/s for 4 MB in", lines[7])


def test_a_wrong_sum_is_found(run_ranks):
    process = run_ranks(2, "doctor", "wrong")
    assert process.returncode == 1
    assert re.search(r"FIX  all-reduce +MPI through host memory: ranks \[1\] got wrong sums", process.stdout)


def test_alone_it_says_how_to_start_it():
    with pytest.raises(UsageError, match="mpiexec -n 2 python -m gpt2edu.doctor --mpi"):
        main(["--mpi"])


@pytest.mark.parametrize(
    ("other", "ok", "found"),
    [
        ({"gpu_id": "GPU-2"}, True, "one each: NVIDIA X"),
        ({"machine": "b"}, True, "one each: NVIDIA X"),
        ({}, False, "ranks 0 and 1 would share a GPU of a"),
        ({"gpu_id": None}, False, "rank 1 finds no GPU on a"),
        ({"gpu_id": "GPU-2", "gpu": "NVIDIA Y"}, True, "1 x NVIDIA X and 1 x NVIDIA Y"),
    ],
)
def test_gpus(other, ok, found):
    check = check_gpus([SEAT, dataclasses.replace(SEAT, **other)])
    assert (check.ok, check.remedy is None) == (ok, ok)
    assert found in check.found


def test_versions():
    check = check_versions([SEAT, dataclasses.replace(SEAT, machine="b", versions="torch 1")])
    assert not check.ok and "rank 1 on b has torch 1" in check.found and "make environment" in check.remedy


def test_bandwidth_by_hand():
    check = judge_bandwidth(1_000_000_000, 0.01, 8, "cuda")  # 2 x 7/8 x 1 GB in 10 ms
    assert check.ok and check.found == "175.00 GB/s for 1000 MB in 10.00 ms"
    slow = judge_bandwidth(1_000_000_000, 1.0, 8, "cuda")
    assert not slow.ok and "nvidia-smi topo -m" in slow.remedy
    assert judge_bandwidth(1_000_000_000, 1.0, 8, "cpu").ok
