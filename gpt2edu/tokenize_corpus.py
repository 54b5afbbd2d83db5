"""From documents to token shards: tokenized in parallel, written one by one, and resumable after a kill at any moment.

The shards are a pure function of the corpus, the tokenizer and the settings. After each shard the manifest says where
in the corpus the next one begins (the position of a document, and how many of its tokens are already written), so a
preparation that goes on after a kill writes the same bytes as one that was never stopped.

Source: llm.c dev/data/fineweb.py @ f1e2ace for the placing of <|endoftext|> and the cutting into shards.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt2edu.corpora import Corpus, ListCorpus, utf8
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.files import make_folder
from gpt2edu.manifest import Manifest, load_manifest, verify
from gpt2edu.shards import MAX_TOKENS, TOKEN_DTYPE, PathLike, write_shard
from gpt2edu.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

SHARD_TOKENS = 10**8
CHUNK_CHARACTERS = 1 << 18  # of text, one task of a worker
CHUNKS_AHEAD = 4  # tasks in flight per worker; bounds the memory
SMALL_CORPUS_BYTES = 1 << 23  # below this, starting workers takes longer than the work
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Document:
    """A document's text, its split (None: decided by counting tokens), and where to read from to get it again."""

    position: Any
    split: str | None
    text: str


# --------------------------------------------------------------------------------------------------
# which split a document belongs to


def split_documents(corpus: Corpus, val_fraction: float | None, position: Any = None) -> Iterator[Document]:
    """Yield the documents with their split: the last `val_fraction` of the text's bytes is "val", the rest "train".

    The document in which the border falls is cut in two after a line. Without a fraction the split is None.
    A position is the corpus's own, or with a fraction [its own, bytes before it, 1 for the second half of a cut].
    """
    if val_fraction is None:
        for inner, text in corpus.documents(position):
            yield Document(inner, None, text)
        return
    train_bytes = int(corpus.text_bytes() * (1 - val_fraction))
    first, seen, second_half = position or (None, 0, 0)
    for inner, text in corpus.documents(first):
        raw = utf8(text)
        if seen < train_bytes < seen + len(raw):
            cut = _line_end(raw, train_bytes - seen)
            parts = [("train", raw[:cut]), ("val", raw[cut:])]
        else:
            parts = [("train" if seen < train_bytes else "val", raw)]
        for half, (split, part) in enumerate(parts):
            if half >= second_half and (part or len(parts) == 1):
                yield Document([inner, seen, half], split, part.decode("utf-8", "surrogatepass"))
        seen += len(raw)
        second_half = 0


def _line_end(raw: bytes, wanted: int) -> int:
    """Return the place after the first line end at or behind `wanted`; where no line ends, after a character."""
    end = raw.find(b"\n", wanted - 1) + 1 or wanted
    while end < len(raw) and raw[end] & 0xC0 == 0x80:
        end += 1
    return end


# --------------------------------------------------------------------------------------------------
# tokenizing in parallel, in order

_worker_tokenizer: Tokenizer


def _start_worker(spec: str) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _worker_tokenizer = load_tokenizer(spec)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the main process was killed: a worker would otherwise wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _tokenize_in_worker(texts: list[str]) -> list[np.ndarray]:
    return tokenize(_worker_tokenizer, texts)


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Return each document's tokens, uint16, <|endoftext|> first."""
    eot = np.array([tokenizer.eot], dtype=TOKEN_DTYPE)
    return [np.concatenate([eot, tokenizer.encode_array(text)]) for text in texts]


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


Tokenized = Iterator[tuple[Document, np.ndarray]]


@contextmanager
def _tokenizing(tokenizer: Tokenizer, spec: str, workers: int) -> Iterator[Callable[[Iterable[Document]], Tokenized]]:
    """Give a function that maps documents to (document, tokens) in order, with `workers` processes."""
    if workers == 1:
        yield lambda documents: ((document, tokenize(tokenizer, [document.text])[0]) for document in documents)
        return
    # "spawn": a fork could copy a lock that some library's thread holds
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (spec,))

    def tokenized(documents: Iterable[Document]) -> Tokenized:
        running: deque = deque()
        chunks = _chunks(documents)
        while True:
            while len(running) < workers * CHUNKS_AHEAD and (chunk := next(chunks, None)):
                running.append((chunk, pool.submit(_tokenize_in_worker, [document.text for document in chunk])))
            if not running:
                return
            chunk, result = running.popleft()
            yield from zip(chunk, result.result(), strict=True)

    try:
        yield tokenized
    except BrokenProcessPool as problem:
        raise Gpt2EduError(
            "a tokenizing process was killed (out of memory?); run the same command again with fewer --workers"
        ) from problem
    finally:
        pool.shutdown(cancel_futures=True)


# --------------------------------------------------------------------------------------------------
# writing shards


class _ShardWriter:
    """Fills shards with the token stream; after each one the manifest on disk is up to date.

    Without a split on the documents, the first `val_tokens` tokens are the validation shard 0.
    """

    def __init__(self, folder: Path, manifest: Manifest, shard_tokens: int, val_tokens: int, max_train: int | None):
        self.folder, self.manifest = folder, manifest
        self.shard_tokens, self.val_tokens, self.max_train = shard_tokens, val_tokens, max_train
        self.filled, self.split = 0, ""

    @property
    def full(self) -> bool:
        """As many training shards as asked for are written."""
        return self.max_train is not None and self.manifest.n_shards("train") >= self.max_train

    def _begin(self, split: str | None) -> None:
        counted = "train" if self.manifest.n_shards("val") else "val"
        self.split = split or counted
        room = self.shard_tokens if split or counted == "train" else self.val_tokens
        self.buffer = np.empty(room, dtype=TOKEN_DTYPE)

    def add(self, document: Document, tokens: np.ndarray, skip: int) -> None:
        """Append a document's tokens from `skip` on."""
        if self.filled and document.split not in (None, self.split):
            self.finish({"position": document.position, "skip": 0})
        while skip < len(tokens) and not self.full:
            if not self.filled:
                self._begin(document.split)
            taken = min(len(self.buffer) - self.filled, len(tokens) - skip)
            self.buffer[self.filled : self.filled + taken] = tokens[skip : skip + taken]
            self.filled += taken
            skip += taken
            if self.filled == len(self.buffer):
                self.finish({"position": document.position, "skip": skip})

    def finish(self, resume: dict[str, Any] | None) -> None:
        """Write what is buffered as a shard; `resume` is where the next one begins."""
        if self.filled:
            # validation shards count from 0, training shards from 1
            number = self.manifest.n_shards(self.split) + (self.split == "train")
            path = self.folder / f"{self.manifest.name}_{self.split}_{number:06d}.bin"
            write_shard(path, self.buffer[: self.filled])
            self.manifest.add(path, self.split)
            self.filled = 0
        self.manifest.resume = resume
        self.manifest.complete = resume is None or self.full
        self.manifest.save(self.folder)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a second preparation out of the folder, and clear away what a killed one left half-written."""
    remedy = "choose another --out or --data-dir"
    make_folder(folder, remedy)
    if not os.access(folder, os.W_OK):
        raise Gpt2EduError(f"the folder {folder} is read-only; {remedy}")
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise Gpt2EduError(f"{folder}: another process is preparing data there; wait for it") from problem
        for leftover in [*folder.glob(".*.bin.*.tmp"), *folder.glob(".*.json.*.tmp")]:
            leftover.unlink(missing_ok=True)
        yield


def begin_or_resume(folder: Path, wanted: Manifest) -> Manifest:
    """Return the folder's manifest if it is of the same preparation, `wanted` if there is none.

    Raises:
        UsageError: the folder holds something else.
    """
    found = load_manifest(folder)
    if found is None:
        return wanted
    for name in ("name", "tokenizer", "vocab_size", "source", "settings"):
        there, here = getattr(found, name), getattr(wanted, name)
        if there != here:
            raise UsageError(
                f"{folder} holds data prepared with another {name} ({there} there, {here} now); "
                "choose another --out, or delete that folder"
            )
    return found


def _tokenizer_reference(folder: Path, tokenizer: Tokenizer) -> str:
    """Return what `load_tokenizer` finds it by in the folder; our own vocabulary is saved there first."""
    if tokenizer.name == "gpt2":
        return "gpt2"
    path = folder / TOKENIZER_FILE
    if not path.exists():
        save_tokenizer(tokenizer, path)
    elif load_tokenizer(path).vocab != tokenizer.vocab:
        raise UsageError(f"{path} is another vocabulary; choose another --out, or delete that folder")
    return TOKENIZER_FILE


def prepare_text(
    documents: Corpus | Iterable[str],
    out_dir: PathLike,
    tokenizer: Tokenizer,
    *,
    name: str,
    shard_tokens: int = SHARD_TOKENS,
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    max_train_shards: int | None = None,
    workers: int | None = None,
) -> Manifest:
    """Tokenize documents into `{name}_val_000000.bin`, `{name}_train_000001.bin`, ... and `manifest.json`.

    Args:
        documents: a corpus, or strings.
        out_dir: folder for the shards, made when missing; a finished or half-finished preparation in it goes on.
        tokenizer: GPT-2's, or our own, which is then saved beside the shards as `tokenizer.json`.
        name: prefix of the file names.
        shard_tokens: tokens of a training shard; the last one may have fewer.
        val_fraction: hold out this last part of the text (by bytes).
        val_tokens: hold out the first so many tokens; None without a fraction is one shard.
        max_train_shards: stop after so many; a later call with more goes on.
        workers: tokenizing processes; None is one for each core, or one for a small corpus.

    Raises:
        UsageError: a setting is impossible, or the folder holds another preparation.
        Gpt2EduError: there is no text, or too little for both splits; the disk is full.
    """
    corpus = documents if isinstance(documents, Corpus) else ListCorpus(documents)
    _check_sizes(shard_tokens, val_fraction, max_train_shards)
    if workers is None:
        small = corpus.total_bytes is not None and corpus.total_bytes < SMALL_CORPUS_BYTES
        workers = 1 if small else len(os.sched_getaffinity(0))
    val_tokens = val_tokens or shard_tokens
    held_out = {"val_tokens": val_tokens} if val_fraction is None else {"val_fraction": val_fraction}
    folder = Path(out_dir)
    with only_writer(folder):
        reference = _tokenizer_reference(folder, tokenizer)
        settings = {"shard_tokens": shard_tokens, **held_out}
        wanted = Manifest(name, reference, tokenizer.vocab_size, corpus.description, settings)
        manifest = begin_or_resume(folder, wanted)
        if not all((folder / file).exists() for file in manifest.files):
            manifest = wanted  # a damaged shard was deleted: where it began in the text is not known, so begin again
        writer = _ShardWriter(folder, manifest, shard_tokens, val_tokens, max_train_shards)
        unfinished = not manifest.files or manifest.resume is not None
        if unfinished and not writer.full:
            spec = "gpt2" if reference == "gpt2" else str(folder / reference)
            with _tokenizing(tokenizer, spec, workers) as tokenized:
                _fill(writer, corpus, tokenized, val_fraction)
        elif not manifest.complete:
            writer.finish(manifest.resume)
        verify(folder)
    return manifest


def _check_sizes(shard_tokens: int, val_fraction: float | None, max_train_shards: int | None) -> None:
    """Refuse sizes that are impossible or contradict each other."""
    if not 0 < shard_tokens <= MAX_TOKENS:
        raise UsageError(f"--shard-tokens {shard_tokens}: choose 1 to {MAX_TOKENS:,}")
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction}: choose a number between 0 and 1")
    if val_fraction is not None and max_train_shards is not None:
        raise UsageError(
            "--val-fraction holds out the end of the text, which --shards does not reach; use --val-tokens"
        )


def _fill(writer: _ShardWriter, corpus: Corpus, tokenized: Callable, val_fraction: float | None) -> None:
    """Write shards from where the manifest says until the corpus, or the number of shards, is used up."""
    manifest = writer.manifest
    start = manifest.resume or {"position": None, "skip": 0}
    skip = start["skip"]
    any_text = bool(manifest.files)
    with _progress(corpus, writer) as progress:
        for document, tokens in tokenized(split_documents(corpus, val_fraction, start["position"])):
            any_text = any_text or len(tokens) > 1
            writer.add(document, tokens, skip)
            progress(document, tokens)
            if writer.full:
                return
            skip = 0
    if not any_text:
        raise Gpt2EduError(f"{corpus.description}: there is no text in it; nothing was written")
    missing = [split for split in ("train", "val") if split != writer.split and not manifest.n_shards(split)]
    if missing:
        raise Gpt2EduError(
            f"{corpus.description}: too little text, nothing was left for {missing[0]}; "
            "choose another --val-tokens or --val-fraction, or give more text"
        )
    writer.finish(None)


@contextmanager
def _progress(corpus: Corpus, writer: _ShardWriter) -> Iterator[Callable[[Document, np.ndarray], None]]:
    """Give a function that counts a document on a bar of tokens/s and time left; silent unless on a terminal."""
    total = corpus.total_tokens
    if total and writer.max_train is not None:
        total = min(total, writer.val_tokens + writer.max_train * writer.shard_tokens)
    n_bytes = n_tokens = 0
    name, done = writer.manifest.name, writer.manifest.tokens_total
    with tqdm(total=total, initial=done, unit="tok", unit_scale=True, desc=name, disable=None) as bar:

        def count(document: Document, tokens: np.ndarray) -> None:
            nonlocal n_bytes, n_tokens
            n_bytes += len(utf8(document.text))
            n_tokens += len(tokens)
            if corpus.total_bytes and n_bytes:
                bar.total = int(corpus.total_bytes * n_tokens / n_bytes)
            bar.update(len(tokens))

        yield count
