"""A rank that fails ends all ranks, and what all ranks found is said once."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("early", 2, "error: -z 7 is wrong"),
        ("early one", 2, "error: rank 1: -z 7 is wrong"),
        ("all", 1, "error: the file is missing"),
        ("disagree", 1, "error: the ranks disagree on the step: rank 0 has 0 and rank 1 has 1"),
        ("one", 1, "error: rank 1: the disk of rank 1 is full"),
        ("abort", 5, "stop"),
        ("exit", 4, "no reason"),
    ],
)
def test_one_sentence_and_all_ranks_end(run_ranks, kind, code, message):
    process = run_ranks(2, "fail", kind)
    assert process.returncode == code
    said = [line for line in process.stderr.splitlines() if line and not line.startswith("Abort(")]  # that is MPI's
    assert len(said) == 1 and said[0].startswith(message), process.stderr


@pytest.mark.parametrize("program", [("fail", "defect"), ("uncaught",)], ids=["with", "hook"])
def test_a_defect_keeps_its_traceback_and_ends_all_ranks(run_ranks, program):
    process = run_ranks(2, *program)
    assert process.returncode == 1
    assert process.stderr.count("ZeroDivisionError: a defect") == 1
    assert process.stderr.startswith("rank 1: Traceback")


def test_more_ranks_than_gpus(run_ranks):
    process = run_ranks(2, "one_gpu")
    assert process.returncode == 1
    assert process.stderr.count("would share a GPU") == 1
    assert "start at most 1 ranks there" in process.stderr


def run_alone(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_alone_mpi_is_never_imported():
    code = "import sys; from gpt2edu.distributed import *; print(type(make_communicator('cpu')).__name__); "
    process = run_alone(code + "assert 'mpi4py' not in sys.modules")
    assert (process.returncode, process.stdout) == (0, "SingleProcess\n"), process.stderr


def test_the_launcher_of_another_mpi_is_named():
    code = "from gpt2edu.distributed import *; make_communicator('cpu')"
    process = run_alone(code, OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="4")
    assert process.returncode == 1
    assert "the launcher started 4 processes but mpi4py's MPI sees 1" in process.stderr
    assert "mpiexec" in process.stderr
