"""Ranks of one machine share the kernels that are new to it; a single core or kernel needs no workers."""

from types import SimpleNamespace

import pytest

from gpt2edu import kernel_start


@pytest.fixture
def compiled(monkeypatch):
    """Return a function that compiles for a rank on a machine of 8 cores, and gives the jobs and workers started."""

    def run(jobs, rank=0, n_ranks=1, cores=8):
        started = []
        monkeypatch.setattr(kernel_start, "missing", lambda launches: list(launches))
        monkeypatch.setattr(kernel_start, "usable_cores", lambda: cores)
        monkeypatch.setattr(kernel_start, "current_capability", lambda: "9.0")
        monkeypatch.setattr(kernel_start, "compile_in_processes", lambda *given: started.append(given) or given[0])
        kernel_start.compile_ahead(jobs, SimpleNamespace(rank=rank, local_rank=rank, local_size=n_ranks))
        return started

    return run


def test_one_rank_uses_all_cores(compiled):
    assert compiled(["a", "b", "c"]) == [(["a", "b", "c"], 8, "9.0")]


def test_ranks_begin_at_different_places(compiled):
    assert compiled(["a", "b", "c", "d"], rank=0, n_ranks=2) == [(["a", "b", "c", "d"], 4, "9.0")]
    assert compiled(["a", "b", "c", "d"], rank=1, n_ranks=2) == [(["c", "d", "a", "b"], 4, "9.0")]
    assert compiled(["a", "b"], rank=1, n_ranks=2, cores=1) == [(["b", "a"], 1, "9.0")]


def test_nothing_is_started_for_one_kernel_or_on_one_core(compiled):
    assert compiled([]) == compiled(["a"]) == compiled(["a", "b"], cores=1) == []
