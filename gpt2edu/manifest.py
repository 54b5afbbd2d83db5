"""The manifest beside a folder of shards: what is in it, and whether it is still what was written.

`manifest.json` names every finished shard with its token count and SHA-256, the tokenizer, and where the text came
from. While a preparation is under way it also says where in the text the next shard begins.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write, sha256_file
from gpt2edu.shards import PathLike, read_shard

MANIFEST_NAME = "manifest.json"
VERIFIED_NAME = ".verified.json"
SCHEMA = 1


@dataclass
class Manifest:
    """What a folder of shards holds.

    Attributes:
        name: prefix of the shard files.
        tokenizer: "gpt2", or the name of a tokenizer file in the same folder.
        vocab_size: token ids are below it.
        source: where the text came from; a preparation goes on only from the same source.
        settings: the other settings that fix the shards' bytes.
        files: shard file name -> {"split", "tokens", "sha256"}, in the order they were finished.
        resume: where in the source the next shard begins; None when the source is used up.
        complete: the preparation reached its end (or the number of shards asked for).
    """

    name: str
    tokenizer: str
    vocab_size: int
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    resume: dict[str, Any] | None = None
    complete: bool = False

    def tokens(self, split: str | None = None) -> int:
        """Return the number of tokens in the split "train" or "val", or in both."""
        return sum(entry["tokens"] for entry in self.files.values() if split in (None, entry["split"]))

    @property
    def tokens_total(self) -> int:
        """Tokens in all shards."""
        return self.tokens()

    def n_shards(self, split: str) -> int:
        """Return how many shards of a split are finished."""
        return sum(entry["split"] == split for entry in self.files.values())

    def pattern(self, folder: PathLike, split: str) -> str:
        """Return the glob that names the shards of a split, for `-i` and `-j`."""
        return str(Path(folder) / f"{self.name}_{split}_*.bin")

    def add(self, path: Path, split: str, sha256: str | None = None) -> None:
        """Enter a finished shard; its checksum is taken from the disk when not given."""
        self.files[path.name] = {
            "split": split,
            "tokens": len(read_shard(path)),
            "sha256": sha256 or sha256_file(path),
        }

    def save(self, folder: PathLike) -> None:
        """Write `manifest.json` into the folder, atomically."""
        with atomic_write(Path(folder) / MANIFEST_NAME, "w") as file:
            json.dump({"schema": SCHEMA, **dataclasses.asdict(self)}, file, indent=1)
            file.write("\n")


def load_manifest(folder: PathLike) -> Manifest | None:
    """Return the folder's manifest, or None when it has none (shards that another program made).

    Raises:
        Gpt2EduError: the manifest cannot be understood.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError("unknown schema")
        return Manifest(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise Gpt2EduError(
            f"{path}: not a manifest of this program ({problem}); delete it and prepare again"
        ) from problem


def verify(folder: PathLike) -> Manifest | None:
    """Check every shard against the manifest; return it, or None when the folder has none.

    A checksum is taken once: a hidden `.verified.json` keeps size, modification time and SHA-256 of each file
    that passed, and a file whose three still agree is not read again.

    Raises:
        Gpt2EduError: the preparation was not finished, or a shard is missing, cut short or changed.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if manifest is None:
        return None
    if not manifest.complete:
        raise Gpt2EduError(
            f"{folder}: the preparation of {manifest.name} was stopped after {len(manifest.files)} shards; "
            "run the same gpt2edu.data command again and it goes on"
        )
    passed = _load_passed(folder)
    now = {}
    for name, entry in manifest.files.items():
        path = folder / name
        n_tokens = len(read_shard(path))
        state = path.stat()
        now[name] = [state.st_size, state.st_mtime_ns, entry["sha256"]]
        if n_tokens != entry["tokens"] or (now[name] != passed.get(name) and sha256_file(path) != entry["sha256"]):
            raise Gpt2EduError(
                f"{path}: does not match its checksum in {MANIFEST_NAME}; delete it and prepare the data again"
            )
    if now != passed:
        _save_passed(folder, now)
    return manifest


def _load_passed(folder: Path) -> dict[str, list[Any]]:
    try:
        passed = json.loads((folder / VERIFIED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return passed if isinstance(passed, dict) else {}


def _save_passed(folder: Path, passed: dict[str, list[Any]]) -> None:
    try:
        with atomic_write(folder / VERIFIED_NAME, "w") as file:
            json.dump(passed, file)
    except (OSError, Gpt2EduError):
        pass  # a read-only or full folder only costs the time to check again
