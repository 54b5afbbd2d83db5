"""Running a function of rank_programs.py on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2edu.machine import find_mpiexec

sys.path.insert(0, str(Path(__file__).parent))  # the tests import rank_programs
PROGRAMS = Path(__file__).with_name("rank_programs.py")
LIMIT_S = 60  # a rank that waits forever must not stop the tests


@pytest.fixture(scope="session")
def run_ranks():
    """Return a function that runs a program on `n` ranks: (n, name, arguments, variables) -> finished process."""

    def run(
        n: int, name: str, *arguments: object, programs: Path = PROGRAMS, limit_s: float = LIMIT_S, **variables: str
    ) -> subprocess.CompletedProcess:
        command = [find_mpiexec(), "-n", n, sys.executable, programs, name, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        return subprocess.run(map(str, command), capture_output=True, text=True, timeout=limit_s, env=environment)

    return run
