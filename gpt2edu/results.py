"""The results files: measured numbers that the book, the README and the tests read; nobody types one.

`book/results/<name>.<gpu>.json` holds what one `python -m gpt2edu.bench` run measured on one named GPU:
where, when, at which commit and by which command, the machine's ceilings, and one row a variant.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIR = ROOT / "book" / "results"

Row = dict[str, Any]
ROW_REQUIRED = {
    "op": str,
    "variant": str,
    "dtype": str,
    "shape": dict,
    "median_ms": float,
    "min_ms": float,
    "max_ms": float,
}
ROW_OPTIONAL = {
    "gb_per_s": float,
    "tflop_per_s": float,
    "n_runs": int,
    "tokens_per_s": float,
    "ceiling_share": float,
    "torch_ms": float,
    "torch_ratio": float,
    "floor_ms": float,  # the least possible, at the ceilings
    "sustained_ms": float,  # of a call in one long burst, at the clocks that the GPU can keep up
    "peak_bytes": int,  # of a call, its buffers among it
    "max_error": float,
    "baseline_error": float,
    "predicted_ms": float,  # by gpt2edu.communication
    "bus_gb_per_s": float,  # that a rank sends
    "mfu": float,  # of each GPU
    "efficiency": float,  # tokens a second of N GPUs over N times those of one
    "exposed_ms": float,  # of a step, more than without anything sent
    "after_backward_ms": float,  # the same when nothing is sent before backward is over
    "exposed_share": float,  # of `exposed_ms` in what sending takes on idle GPUs
    "train_loss": list,  # nats a token, one a step
    "validation_loss": list,  # [step, nats a token]
}
ABSOLUTE_FOLDER = re.compile(r"(?<![\w.~*])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])")  # of this machine, no one else's
SOURCE_FOLDERS = ("gpt2edu", "kernels")
COMMITS_SEARCHED = 200
PACKAGES = ("torch", "numba", "numba-cuda", "numpy")
CEILINGS = {"copy_gb_per_s", "matmul_tflop_per_s"}


@dataclass
class Results:
    """One results file."""

    schema: int
    name: str
    gpu: str
    driver: str
    versions: dict[str, str]  # of packages; `source` is a hash of gpt2edu and kernels
    date: str  # YYYY-MM-DD
    commit: str
    dirty: bool  # the tree differed from the commit
    command: str
    ceilings: dict[str, float]
    rows: list[Row]

    def validate(self) -> None:
        """Refuse anything that is not schema 1.

        Raises:
            ValueError: says which field is wrong.
        """
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema}, this program reads {SCHEMA}")
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"name {self.name!r} is not lower case letters, digits and underscores")
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise ValueError(f"date {self.date!r} is not YYYY-MM-DD")
        if set(self.ceilings) - CEILINGS:
            raise ValueError(f"unknown ceilings {sorted(set(self.ceilings) - CEILINGS)}")
        if not self.rows:
            raise ValueError("there are no rows")
        for number, row in enumerate(self.rows):
            _validate_row(number, row)


def _validate_row(number: int, row: Row) -> None:
    unknown = set(row) - set(ROW_REQUIRED) - set(ROW_OPTIONAL)
    if unknown:
        raise ValueError(f"row {number} has unknown fields {sorted(unknown)}")
    for field, kind in (ROW_REQUIRED | ROW_OPTIONAL).items():
        if field not in row:
            if field in ROW_REQUIRED:
                raise ValueError(f"row {number} has no {field}")
            continue
        allowed = (int, float) if kind is float else kind
        if not isinstance(row[field], allowed):
            raise ValueError(f"row {number}: {field} is {row[field]!r}, not a {kind.__name__}")
    if not row["min_ms"] <= row["median_ms"] <= row["max_ms"]:
        raise ValueError(f"row {number}: the median lies outside min and max")


def load_results(name: str | None = None, folder: Path = RESULTS_DIR) -> list[Results]:
    """Return the results files of `name` (of every name when None), validated, in the order of their file names.

    Raises:
        Gpt2EduError: a file is not valid; the message names it.
    """
    loaded = []
    for path in sorted(folder.glob(f"{name or '*'}.*.json")):
        results = read_results(path)
        if path.name != f"{results.name}.{gpu_slug(results.gpu)}.json":
            raise Gpt2EduError(f"{path}: it holds {results.name} on {results.gpu}, which belongs in another file")
        loaded.append(results)
    return loaded


def read_results(path: Path) -> Results:
    """Return one results file, validated.

    Raises:
        Gpt2EduError: it is missing or not valid; the message names it.
    """
    try:
        results = Results(**json.loads(path.read_text(encoding="utf-8")))
        results.validate()
    except (OSError, ValueError, TypeError) as problem:
        raise Gpt2EduError(f"{path}: not a results file ({problem}); measure again with gpt2edu.bench") from problem
    return results


def write_results(
    name: str,
    rows: Iterable[Row],
    ceilings: dict[str, float],
    *,
    gpu: str,
    driver: str,
    command: str,
    folder: Path = RESULTS_DIR,
) -> Path:
    """Write `<name>.<gpu>.json`, stamped with today's date, the versions and the commit; return its path.

    Raises:
        ValueError: a row breaks the schema; nothing is written then.
    """
    commit, dirty = repository_state()
    results = Results(
        schema=SCHEMA,
        name=name,
        gpu=gpu,
        driver=driver,
        versions={"source": source_fingerprint()} | {package: _version(package) for package in PACKAGES},
        date=datetime.date.today().isoformat(),
        commit=commit,
        dirty=dirty,
        command=ABSOLUTE_FOLDER.sub("", command),
        ceilings=ceilings,
        rows=[{field: _rounded(value) for field, value in row.items()} for row in rows],
    )
    return _store(results, folder)


def stamp_results(path: Path, folder: Path = RESULTS_DIR) -> Path:
    """Take over a file that was measured on a copy of this source without git: give it the commit of that source.

    Raises:
        Gpt2EduError: none of the last commits has the source that was measured.
    """
    results = read_results(path)
    for commit in _git("rev-list", f"--max-count={COMMITS_SEARCHED}", "HEAD").split():
        entries = [line.split(maxsplit=3) for line in _git("ls-tree", "-r", commit, *SOURCE_FOLDERS).splitlines()]
        if results.versions["source"] == _fingerprint({name: blob for _, _, blob, name in entries}):
            return _store(dataclasses.replace(results, commit=commit, dirty=False), folder)
    raise Gpt2EduError(f"{path}: measured on source that is in none of the last commits; commit it and measure again")


def _store(results: Results, folder: Path) -> Path:
    results.validate()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results.name}.{gpu_slug(results.gpu)}.json"
    with atomic_write(path, "w") as file:
        json.dump(dataclasses.asdict(results), file, indent=1, ensure_ascii=False)
        file.write("\n")
    return path


def gpu_slug(gpu: str) -> str:
    """Return a GPU's name as a part of a file name: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def repository_state() -> tuple[str, bool]:
    """Return the commit of the source tree and whether the packages differ from it; ("unknown", True) without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", *SOURCE_FOLDERS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return commit, bool(changed)


def source_fingerprint() -> str:
    """Return a hash of the Python files of both packages: what a measurement measured."""
    paths = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return _fingerprint({path.relative_to(ROOT).as_posix(): _git_blob(path.read_bytes()) for path in paths})


def _fingerprint(blobs: dict[str, str]) -> str:
    """Hash the names and git's blob ids of the Python files among `blobs`."""
    lines = sorted(f"{name} {blob}" for name, blob in blobs.items() if name.endswith(".py"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _git_blob(content: bytes) -> str:
    """Return the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _rounded(value: Any) -> Any:
    """Return a float with six significant digits, anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
