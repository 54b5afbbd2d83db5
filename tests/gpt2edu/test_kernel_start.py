"""Ranks of one machine share the kernels that are new to it; what a run says of tuning."""

from types import SimpleNamespace

import pytest
import torch

from gpt2edu import kernel_start
from gpt2edu.errors import Gpt2EduError
from kernels.matmul import tuning


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


def test_a_run_says_whether_the_products_were_tuned(monkeypatch, tmp_path):
    gpu = "NVIDIA Test 9000"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    assert "untuned on NVIDIA Test 9000" in kernel_start.tuning_note(torch.device("cuda"))
    file = tuning.file_in(tuning.user_folder(), gpu)
    file.parent.mkdir()
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(Gpt2EduError, match="is no file of choices"):
        kernel_start.tuning_note(torch.device("cuda"))
