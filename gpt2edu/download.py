"""Downloads that resume, retry, and are checked: files at a fixed revision, and ready-made token shards."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import requests
from tqdm import tqdm

from gpt2edu.config import GPT2_VOCAB_SIZE
from gpt2edu.errors import Gpt2EduError, UsageError, disk_full_message
from gpt2edu.files import sha256_file
from gpt2edu.manifest import Manifest, verify
from gpt2edu.shards import PathLike, check_token_ids, read_shard
from gpt2edu.tokenize_corpus import begin_or_resume, only_writer

HUB = "https://huggingface.co"
RETRIES = 5
TIMEOUT_S = 30
BLOCK_BYTES = 1 << 18
PARALLEL_DOWNLOADS = 4


@dataclass(frozen=True)
class TokenDataset:
    """Shards of GPT-2 tokens that somebody has made and published.

    Attributes:
        repository: data set on the hub.
        revision: the commit that is read.
        prefix: of the file names, `{prefix}_val_000000.bin`, `{prefix}_train_000001.bin`, ...
        n_train: how many training shards there are.
        sha256: the checksums that are known; the others are recorded at the first download.
    """

    repository: str
    revision: str
    prefix: str
    n_train: int
    sha256: dict[str, str] = field(default_factory=dict)


READY_MADE = {
    "fineweb10B": TokenDataset(
        "kjj0/fineweb10B-gpt2",
        "889765ea1f903759787add96995d81171b632d0c",
        "fineweb",
        103,
        {
            "fineweb_val_000000.bin": "5b95c8e0966f0861685b307b23dc5ae42b228ef74b28cb499784ae021f201640",
            "fineweb_train_000001.bin": "771fa4a99b9fe0946ffb6e848b4ba5c6a9b0fe87860ebf03bc2c1c7e45f8178e",
        },
    ),
    "edu_fineweb100B": TokenDataset(
        "karpathy/fineweb-edu-100B-gpt2-token-shards",
        "a33f75d78c7f74236fb03754ec1eb3cc77507d64",
        "edu_fineweb",
        1001,
        {"edu_fineweb_train_000001.bin": "6bb7ce7bcac8e11463433767ec3402311c7527c3d8d766e7d65ef86dc4546bb2"},
    ),
}


def download(
    url: str,
    path: PathLike,
    *,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    bar: tqdm | None = None,
) -> str:
    """Fetch a file, going on from what an earlier attempt left; it appears under its name only when whole.

    Args:
        url: where it is.
        path: where it goes; the part that is there already is a hidden neighbour ending in `.part`.
        sha256: what it must be. Where it is None, the checksum that the hub declares counts, if it does.
        check: looks at the whole file before it gets its name, and raises if it is wrong.
        bar: counts the bytes.

    Returns:
        The file's SHA-256.

    Raises:
        Gpt2EduError: no answer after several tries, the wrong checksum, or a full disk.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    for attempt in range(RETRIES):
        try:
            declared = _fetch(url, part, bar)
            break
        except requests.RequestException as problem:
            status = problem.response.status_code if problem.response is not None else None
            if attempt == RETRIES - 1 or status in (401, 403, 404):
                reason = f"status {status}" if status else type(problem).__name__
                raise Gpt2EduError(
                    f"{url} cannot be downloaded ({reason}); check the network and run the same command again, "
                    "what has arrived is kept"
                ) from problem
            time.sleep(2**attempt)
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                raise Gpt2EduError(disk_full_message(path)) from problem
            raise
    found, wanted = sha256_file(part), sha256 or declared
    if wanted and found != wanted:
        part.unlink()
        raise Gpt2EduError(f"{url}: arrived with SHA-256 {found}, not {wanted}; run the same command again")
    try:
        if check:
            check(part)
    except Gpt2EduError:
        part.unlink()
        raise
    os.replace(part, path)
    return found


def _fetch(url: str, part: Path, bar: tqdm | None) -> str | None:
    """Append to `part` what is missing; return the SHA-256 that the hub declares for a large file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    # "identity": a compressed answer would make byte ranges and lengths meaningless
    with requests.get(
        url, headers={**headers, "Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT_S
    ) as answer:
        if answer.status_code == 416:  # nothing is missing, or the part belongs to another file
            total = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
            if not total or int(total[1]) != have:
                part.unlink()
                raise requests.ConnectionError("the part on disk does not belong to this file", response=None)
            return _declared_sha256(answer)
        answer.raise_for_status()
        resumed = answer.status_code == 206
        expected = int(answer.headers.get("Content-Length", -1))
        received = 0
        if bar is not None and resumed:
            bar.update(have)
        with open(part, "ab" if resumed else "wb") as file:
            for block in answer.iter_content(BLOCK_BYTES):
                file.write(block)
                received += len(block)
                if bar is not None:
                    bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if 0 <= expected != received:
            raise requests.ConnectionError(f"the connection ended after {received} of {expected} bytes")
        return _declared_sha256(answer)


def _declared_sha256(answer: requests.Response) -> str | None:
    """Return the hub's own checksum of a large file, which it sends as an ETag with its redirect."""
    for response in (*answer.history, answer):
        etag = response.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return etag
    return None


def _check_shard(path: Path) -> None:
    check_token_ids(read_shard(path), GPT2_VOCAB_SIZE, path)


def download_shards(
    dataset: TokenDataset, out_dir: PathLike, *, n_train: int | None = None, hub: str = HUB
) -> Manifest:
    """Fetch ready-made shards: the validation shard and the first `n_train` training shards.

    Each is checked (checksum, header, size, token ids) and entered in the manifest as it arrives, so a later call
    fetches only what is missing.

    Raises:
        UsageError: more shards are asked for than there are, or the folder holds other data.
        Gpt2EduError: a download fails for good, or what arrives is wrong.
    """
    n_train = dataset.n_train if n_train is None else n_train
    if not 1 <= n_train <= dataset.n_train:
        raise UsageError(
            f"--shards {n_train}: {dataset.repository} has {dataset.n_train} training shards; choose 1 to that"
        )
    names = [f"{dataset.prefix}_val_000000.bin"] + [
        f"{dataset.prefix}_train_{number:06d}.bin" for number in range(1, n_train + 1)
    ]
    folder = Path(out_dir)
    source = f"{dataset.repository} at {dataset.revision}"
    with only_writer(folder):
        manifest = begin_or_resume(folder, Manifest(dataset.prefix, "gpt2", GPT2_VOCAB_SIZE, source))
        missing = [name for name in names if not (name in manifest.files and (folder / name).exists())]
        manifest.complete = not missing and bool(manifest.files)
        with (
            tqdm(desc=dataset.repository, unit="B", unit_scale=True, disable=None) as bar,
            ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool,
        ):
            bar.total = len(missing) * 200_001_024  # 1e8 tokens each, the last one fewer

            def fetch(name: str) -> tuple[str, str]:
                known = dataset.sha256.get(name) or manifest.files.get(name, {}).get("sha256")
                url = f"{hub}/datasets/{dataset.repository}/resolve/{dataset.revision}/{name}"
                return name, download(url, folder / name, sha256=known, check=_check_shard, bar=bar)

            jobs = [pool.submit(fetch, name) for name in missing]
            try:
                for job in as_completed(jobs):
                    name, found = job.result()
                    manifest.add(folder / name, "val" if name == names[0] else "train", found)
                    manifest.files = dict(sorted(manifest.files.items()))  # not in the order of arrival
                    manifest.complete = all(name in manifest.files for name in names)
                    manifest.save(folder)
            finally:
                pool.shutdown(cancel_futures=True)
        verify(folder)
    return manifest
