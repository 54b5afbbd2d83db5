"""What the chapter on many GPUs shows: programs on ranks, tables by hand, and measurements that may be missing."""

from types import SimpleNamespace

import pytest

from gpt2edu import mpi_lessons, show_ranks
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError


def test_ranks_answer_in_their_order():
    assert show_ranks.run_mpi(3, mpi_lessons.hello) == [f"I am rank {rank} of 3" for rank in range(3)]
    assert show_ranks.run_mpi(3, mpi_lessons.together)[1] == ["hello", [0, 10, 20], 30]


def test_a_rank_that_fails_is_told():
    with pytest.raises(Gpt2EduError, match="a rank failed(.|\n)*hello"):
        show_ranks.run_mpi(2, mpi_lessons.hello, "too many arguments")


def test_rounds_of_a_ring():
    reduced, gathered = zip(*show_ranks.run_mpi(2, mpi_lessons.ring), strict=True)
    rows = show_ranks.show_rounds(list(reduced)).rows
    assert rows == [["rank 0", "01  02", "11  02"], ["rank 1", "10  20", "10  22"]]
    assert [state[-1] for state in gathered] == [[11, 22], [11, 22]]


def test_memory_of_124m_by_hand():
    table = show_ranks.show_zero_memory(ModelConfig.from_descriptor("d12"))
    assert table.rows[3] == ["8", "0.75", "1.49", "2.24", "0.19", "0.93"]  # 124.5 M x 6, 12, 18, 12/8, 6 + 12/8 bytes


@pytest.mark.slow  # the chapter does so in every run of its cells
def test_a_killed_rank(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said, same = show_ranks.train_and_kill(2, rank=0, step=3, checkpoint_every=2, n_steps=4)
    assert said == [
        "error: rank 0 (process ...) died of SIGKILL",
        "rank 0 (process ...) died of SIGKILL; restart 1 of 1, from the last complete checkpoint",
        "resuming at step 2, saved by 2 ranks",
    ]
    assert same


def test_measured_steps(monkeypatch):
    row = {"op": "step", "variant": "numba", "dtype": "bf16", "shape": {"ranks": 2, "z": 1}, "median_ms": 437.0}
    row |= {"efficiency": 0.987, "exposed_ms": 3.21, "after_backward_ms": 4.5, "predicted_ms": 435.5}
    alone = {"op": "step", "variant": "numba", "dtype": "bf16", "shape": {"ranks": 1, "z": 0}, "median_ms": 868.0}
    sending = {"op": "sending", "variant": "one message", "dtype": "fp32", "shape": {"ranks": 2}, "median_ms": 3.17}
    sending |= {"predicted_ms": 0.7, "bus_gb_per_s": 78.5}
    results = SimpleNamespace(gpu="NVIDIA X", rows=[sending, alone, row])
    monkeypatch.setattr(show_ranks, "load_results", lambda name: [results])
    assert show_ranks.show_measured_steps().rows == [
        ["1 NVIDIA X", "numba", "0", "868.0", "", "", "", ""],
        ["2 NVIDIA X", "numba", "1", "437.0", "435.5", "98.7%", "3.2", "4.5"],
    ]
    assert show_ranks.show_measured_sending().rows == [["2 NVIDIA X", "one message", "fp32", "3.2", "0.7", "78"]]
    monkeypatch.setattr(show_ranks, "load_results", lambda name: [])
    for show in (show_ranks.show_measured_steps, show_ranks.show_measured_sending):
        assert show().rows == [["ranks: not measured yet"]]
