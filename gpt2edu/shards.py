"""Token shards: the binary files between the tokenizer and the trainer, in llm.c's format.

A shard is 256 little-endian int32 (magic, version, number of tokens, zeros) and then its tokens as
little-endian uint16, nothing else. A document starts with <|endoftext|> and may go on in the next shard.

Source: llm.c dev/data/data_common.py (write_datafile) and llmc/dataloader.h (dataloader_load_shard_) @ f1e2ace.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_DTYPE = np.dtype("<u2")
MAX_TOKENS = 2**31 - 1  # the header holds the count as an int32
TOKENS_PER_READ = 1 << 22

PathLike = str | os.PathLike[str]


def shard_header(n_tokens: int) -> bytes:
    """Return the 1,024 bytes in front of `n_tokens` tokens."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, n_tokens
    return header.tobytes()


def write_shard(path: PathLike, tokens: np.ndarray) -> None:
    """Write the tokens (1-D, any integer dtype) as one shard, whole or not at all.

    Raises:
        Gpt2EduError: there are no tokens, too many, or the disk is full.
        ValueError: a token does not fit in 16 bits.
    """
    n_tokens = tokens.size
    if not 0 < n_tokens <= MAX_TOKENS:
        raise Gpt2EduError(f"{path}: a shard holds 1 to {MAX_TOKENS:,} tokens, not {n_tokens:,}")
    if tokens.dtype != TOKEN_DTYPE and not 0 <= tokens.min() <= tokens.max() < 2**16:
        raise ValueError(f"{path}: ids {tokens.min()} to {tokens.max()} do not fit in 16 bits")
    with atomic_write(path) as file:
        file.write(shard_header(n_tokens))
        file.write(np.ascontiguousarray(tokens, dtype=TOKEN_DTYPE).data)


def read_shard(path: PathLike) -> np.memmap:
    """Map a shard's tokens into memory: uint16 (n_tokens,), read-only; the header and the size are checked.

    Raises:
        Gpt2EduError: the file is missing, is no shard, or is cut short.
    """
    try:
        size = os.stat(path).st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_INTS)
    except OSError as problem:
        raise Gpt2EduError(f"{path}: cannot be read ({problem.strerror}); prepare the data again") from problem
    if header.size == 0 or header[0] != MAGIC:
        raise Gpt2EduError(f"{path}: not a token shard (its magic number is wrong); prepare it with gpt2edu.data")
    if header.size < HEADER_INTS:
        raise Gpt2EduError(f"{path}: cut short inside its header; delete it and prepare the data again")
    if header[1] != VERSION:
        raise Gpt2EduError(f"{path}: shard version {header[1]}, only version {VERSION} can be read; prepare it again")
    n_tokens = int(header[2])
    expected = HEADER_BYTES + n_tokens * TOKEN_DTYPE.itemsize
    if n_tokens < 1 or size != expected:
        raise Gpt2EduError(
            f"{path}: {size:,} bytes where {n_tokens:,} tokens take {expected:,}; delete it and prepare the data again"
        )
    return np.memmap(path, dtype=TOKEN_DTYPE, mode="r", offset=HEADER_BYTES, shape=(n_tokens,))


def find_shards(pattern: PathLike) -> list[Path]:
    """Return the files that a glob pattern names, in the order llm.c's glob has them (by byte value).

    Raises:
        Gpt2EduError: nothing matches.
    """
    paths = sorted(glob.glob(str(pattern)), key=os.fsencode)
    if not paths:
        raise Gpt2EduError(f"no file matches {pattern}; prepare the data with python -m gpt2edu.data or mend the path")
    return [Path(path) for path in paths]


def check_token_ids(tokens: np.ndarray, vocab_size: int, path: PathLike) -> None:
    """Refuse token ids that the model has no row for; reads the array piece by piece.

    Raises:
        Gpt2EduError: a token id is `vocab_size` or more.
    """
    for start in range(0, tokens.size, TOKENS_PER_READ):
        largest = int(tokens[start : start + TOKENS_PER_READ].max())
        if largest >= vocab_size:
            raise Gpt2EduError(
                f"{path}: holds token id {largest}, but the vocabulary has {vocab_size} tokens; "
                "use the tokenizer and the model that belong to this data"
            )
