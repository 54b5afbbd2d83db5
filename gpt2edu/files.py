"""Files that are whole or absent: atomic writes, checksums, and where data lives."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gpt2edu.errors import Gpt2EduError, disk_full_message

DATA_VARIABLE = "GPT2EDU_DATA"


def data_dir(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder for data sets, weights and caches; created when missing.

    The first of: `chosen` (a `--data-dir` flag), the variable GPT2EDU_DATA, the user's cache folder.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen or os.environ.get(DATA_VARIABLE) or cache_home / "gpt2edu").expanduser()
    return make_folder(folder, f"choose another data folder with --data-dir or {DATA_VARIABLE}")


def make_folder(path: str | os.PathLike[str], remedy: str) -> Path:
    """Make a folder and those above it where they are missing, and return it.

    Raises:
        Gpt2EduError: it cannot be made; the sentence ends in `remedy`.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Gpt2EduError(f"the folder {folder} cannot be made ({problem.strerror}); {remedy}") from problem
    return folder


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing; on success it becomes `path`.

    The data reach the disk (fsync) before the rename, so a crash or a kill at any moment leaves either
    the old file or the new one, never a part. The temporary name starts with a dot and ends in
    `.<pid>.tmp`; on an error it is removed.

    Raises:
        Gpt2EduError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise Gpt2EduError(disk_full_message(path)) from problem
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable, where the system allows a folder to be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the rename itself is still atomic
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
