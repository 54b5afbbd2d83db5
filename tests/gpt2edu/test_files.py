"""Files are whole or absent, whatever happens while they are written."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import DATA_VARIABLE, atomic_write, data_dir, sha256_file


def test_atomic_write_replaces_at_the_end_only(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_atomic_write_in_text_mode_is_utf8(tmp_path):
    with atomic_write(tmp_path / "a.json", "w") as file:
        file.write("한국어")
    assert (tmp_path / "a.json").read_bytes() == "한국어".encode()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(Gpt2EduError, match="disk is full.*model.bin"), atomic_write(tmp_path / "model.bin") as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    program = textwrap.dedent(f"""
        import os, signal
        from gpt2edu.files import atomic_write
        with atomic_write({str(path)!r}) as file:
            file.write(b"half" * 1000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_sha256_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_data_dir_takes_the_flag_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_dir() == tmp_path / "cache" / "gpt2edu"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))
    assert data_dir() == tmp_path / "variable"
    assert data_dir(tmp_path / "flag") == tmp_path / "flag"
    assert (tmp_path / "flag").is_dir()


def test_data_dir_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Gpt2EduError, match=f"file/data.*--data-dir or {DATA_VARIABLE}"):
        data_dir(tmp_path / "file" / "data")
