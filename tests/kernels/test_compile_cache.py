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
WANTED = ["8.0,2,float32", "8.0,3,float32", "8.0,2,int32", "9.0,2,float32"]


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen]:
    """Start the program with a folder of its own for what it keeps."""

    def run(*arguments: str, **variables: str) -> subprocess.Popen:
        own = {"NUMBA_ENABLE_CUDASIM": "0", "GPT2EDU_DATA": str(tmp_path), "PYTHONPATH": str(PROGRAM.parents[2])}
        command = [sys.executable, str(PROGRAM), *arguments]
        return subprocess.Popen(command, env=os.environ | own | variables, stdout=subprocess.PIPE, text=True)

    return run


def result(process: subprocess.Popen):
    printed, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(printed)


def test_a_fingerprint_is_that_of_everything_a_kernel_comes_from(start):
    one, other = (start("fingerprints", PYTHONHASHSEED=seed) for seed in ("1", "2"))
    found, again = result(one), result(other)
    for why, kind in zip(found.pop("none"), ("list_iterator", "CPUDispatcher", "partial"), strict=True):
        assert why.startswith(kind)
    again.pop("none")
    assert found == again  # in every process the same
    assert found["same 1"] == found.pop("same 2")
    assert not [name for name, n in Counter(found.values()).items() if n > 1], found


def test_what_is_kept_is_found_by_what_it_comes_from_and_only_if_it_is_whole(start, tmp_path):
    one, other = map(result, [start("keep", *WANTED) for _ in range(2)])  # both write the same files
    names = [kernel["file"] for kernel in one]
    assert len(set(names)) == len(WANTED)
    assert sorted(names) == sorted(file.name for file in (tmp_path / "kernels").iterdir())
    assert len({kernel["code"] for kernel in one}) == len(WANTED)
    assert [kernel["file"] for kernel in other] == names
    assert not one[0]["loaded"]
    assert all("scale_kernel" in kernel["entry"] for kernel in one)

    cut, a_bit, empty = (tmp_path / "kernels" / name for name in names[:3])
    cut.write_bytes(cut.read_bytes()[:-1])
    content = bytearray(a_bit.read_bytes())
    content[-100] ^= 1
    a_bit.write_bytes(content)
    empty.write_bytes(b"")
    mended = result(start("keep", *WANTED))
    assert [kernel["loaded"] for kernel in mended] == [False, False, False, True]
    assert result(start("keep", *WANTED)) == [kernel | {"loaded": True} for kernel in mended]

    elsewhere = result(start("keep", *WANTED[:1], NUMBA_OPT="0"))
    assert not elsewhere[0]["loaded"]


MISSING = ["memory.zero_kernel float32", "memory.zero_kernel bfloat16", "memory.cast_kernel 2"]


def test_workers_compile_what_launches_miss(start, tmp_path):
    found = result(start("ahead", "2"))
    assert found["missing"] == MISSING
    assert found["done"] == dict.fromkeys(MISSING, "")  # the worker that was asked for another kernel has ended
    assert found["still"] == []
    assert len(list((tmp_path / "kernels").iterdir())) == 3


def test_where_nothing_can_be_written_nothing_is_kept(start, tmp_path):
    (tmp_path / "file").touch()
    found = result(start("ahead", "1", GPT2EDU_DATA=str(tmp_path / "file")))
    assert found["still"] == list(found["done"]) == MISSING
    assert all("it cannot be written to" in problem for problem in found["done"].values())


def test_the_command_tells_what_it_could_not_compile(tmp_path):
    command = [sys.executable, "-m", "kernels.precompile", "memory.zero", "--workers", "1"]
    environment = os.environ | {"GPT2EDU_DATA": str(tmp_path), "NUMBA_ENABLE_CUDASIM": "1"}

    def run(*options: str) -> subprocess.CompletedProcess:
        root = PROGRAM.parents[2]
        return subprocess.run([*command, *options], env=environment, cwd=root, capture_output=True, text=True)

    assert "say for which one with --capability" in run().stderr
    assert run("--capability", "8.0").returncode == 0
    assert len(list((tmp_path / "kernels").iterdir())) == 2
    failed = run("--capability", "1.0")
    assert failed.returncode == 1
    assert "memory.zero_kernel float32: " in failed.stderr
