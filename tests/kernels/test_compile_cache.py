"""A kept kernel is found by what it was compiled from, and by nothing less; damage and races do no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compile_cache_program.py")


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the program with a folder of its own for what it keeps."""

    def run(*arguments: str, **variables: str) -> subprocess.Popen:
        own = {"NUMBA_ENABLE_CUDASIM": "0", "GPT2EDU_DATA": str(tmp_path), "PYTHONPATH": str(PROGRAM.parents[2])}
        command = [sys.executable, str(PROGRAM), *arguments]
        return subprocess.Popen(command, env=os.environ | own | variables, stdout=subprocess.PIPE, text=True)

    return run


def result(process: subprocess.Popen) -> dict:
    printed, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(printed)


@pytest.fixture
def keep(start) -> Callable[..., dict]:
    """Compile or load the program's kernel in a new process."""

    def run(capability: str = "8.0", factor: str = "2", held: str = "float32", **variables: str) -> dict:
        return result(start("keep", capability, factor, held, **variables))

    return run


def test_a_fingerprint_is_that_of_everything_a_kernel_comes_from(start):
    one, other = (start("fingerprints", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    found = result(one)
    assert "list_iterator" in found.pop("what has none")
    again = result(other)
    again.pop("what has none")
    assert found == again  # in every process the same
    assert found["same 1"] == found.pop("same 2")
    assert not [name for name, n in Counter(found.values()).items() if n > 1], found


def test_a_second_process_loads_what_the_first_compiled(keep, tmp_path):
    first, second = keep(), keep()
    assert not first.pop("loaded")
    assert second.pop("loaded")
    assert first == second
    assert "matmul" not in first["entry"] and "scale_kernel" in first["entry"]
    assert [file.name for file in (tmp_path / "kernels").iterdir()] == [first["file"]]


def test_what_differs_is_kept_apart(keep, tmp_path):
    made = [keep(), keep(factor="3"), keep(held="int32"), keep(capability="9.0"), keep(NUMBA_OPT="0")]
    assert not any(one["loaded"] for one in made)
    assert len({one["file"] for one in made}) == len(made) == len(list((tmp_path / "kernels").iterdir()))
    again = keep(factor="3")
    assert again["loaded"] and again["code"] == made[1]["code"] != made[0]["code"]


@pytest.mark.parametrize("damage", ["cut", "a bit", "empty"])
def test_a_damaged_file_is_compiled_anew(keep, tmp_path, damage):
    first = keep()
    file = tmp_path / "kernels" / first["file"]
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes({"cut": file.read_bytes()[:-1], "a bit": bytes(content), "empty": b""}[damage])
    again = keep()
    assert not again.pop("loaded")
    assert keep() == again | {"loaded": True}


def test_processes_may_compile_the_same_at_once(start, keep, tmp_path):
    both = [result(process) for process in [start("keep", "8.0", "2", "float32") for _ in range(2)]]
    assert both[0]["code"] == both[1]["code"]
    assert [file.name for file in (tmp_path / "kernels").iterdir()] == [both[0]["file"]]
    assert keep()["loaded"]


def test_without_a_folder_nothing_is_kept(keep, tmp_path):
    (tmp_path / "file").touch()
    assert not any(keep(GPT2EDU_DATA=str(tmp_path / "file"))["loaded"] for _ in range(2))
