"""HellaSwag as llm.c stores it: contexts with four endings each, tokenized, in one file.

A header of 256 int32 (magic, version, examples, bytes of the longest example), then for each example a run of uint16:
65535, its bytes, its index, the label, 4, and five token lists, each behind its length. All little-endian.

Source: llm.c dev/data/data_common.py, write_evalfile, @ f1e2ace; Zellers et al. 2019 (arXiv:1905.07830).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write

MAGIC, VERSION = 20240522, 1
HEADER_BYTES = 1024
START = 65535  # no token: begins an example
N_ENDINGS = 4
REMEDY = "make it with: python -m gpt2edu.data hellaswag"


@dataclass(frozen=True)
class Example:
    """A context, its four possible endings (tokens of the text behind a space), and which one is right."""

    context: Sequence[int]
    endings: Sequence[Sequence[int]]
    label: int

    @property
    def n_tokens(self) -> int:
        """Tokens of the context and its longest ending."""
        return len(self.context) + max(map(len, self.endings))


def write_hellaswag(path: str | Path, examples: Iterable[Example]) -> None:
    """Write the file, whole or not at all.

    Raises:
        ValueError: an example has not four endings, an empty part, no label among them, or too many tokens.
        Gpt2EduError: the disk is full.
    """
    runs = []
    for index, example in enumerate(examples):
        parts = [example.context, *example.endings]
        if len(parts) != 1 + N_ENDINGS or not all(len(part) for part in parts) or example.label not in range(N_ENDINGS):
            raise ValueError(f"HellaSwag example {index} needs a context, {N_ENDINGS} endings and a label below that")
        run = [START, 0, index, example.label, N_ENDINGS]
        for part in parts:
            run += [len(part), *part]
        run[1] = 2 * len(run)
        if max(run[1:]) >= START:
            raise ValueError(f"HellaSwag example {index} does not fit 16-bit numbers")
        runs.append(np.array(run, dtype="<u2"))
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(runs), max((run.nbytes for run in runs), default=0)
    with atomic_write(path) as file:
        file.write(header)
        for run in runs:
            file.write(run)


def read_hellaswag(path: str | Path) -> list[Example]:
    """Read the file.

    Raises:
        Gpt2EduError: it is missing, of another kind, or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise Gpt2EduError(f"the HellaSwag file {path} cannot be read ({problem.strerror}); {REMEDY}") from problem
    words = np.frombuffer(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), dtype="<i4")
    if tuple(words[:2]) != (MAGIC, VERSION):
        raise Gpt2EduError(
            f"{path} is no HellaSwag file of version {VERSION} (it starts with {words[0]}, not {MAGIC}); {REMEDY}"
        )
    body = data[HEADER_BYTES:]
    numbers = np.frombuffer(body[: len(body) // 2 * 2], dtype="<u2").tolist()
    examples: list[Example] = []
    position = 0
    try:
        for index in range(words[2]):
            example, position = _parse(numbers, position, index)
            examples.append(example)
        if not examples or 2 * position != len(body):
            raise ValueError("no example, or bytes behind the last one")
    except (IndexError, ValueError):
        raise Gpt2EduError(
            f"{path} is damaged or cut short at example {len(examples)} of {words[2]}; {REMEDY}"
        ) from None
    return examples


def _parse(numbers: list[int], position: int, index: int) -> tuple[Example, int]:
    """Return the example that begins at `position`, and where the next one begins."""
    start, n_bytes, stored_index, label, n_endings = numbers[position : position + 5]
    if (start, stored_index, n_endings) != (START, index, N_ENDINGS) or label >= N_ENDINGS:
        raise ValueError("not the beginning of this example")
    end = position + 5
    parts = []
    for _ in range(1 + N_ENDINGS):
        length = numbers[end]
        part = numbers[end + 1 : end + 1 + length]
        if not length or len(part) < length:
            raise ValueError("a part is empty or cut short")
        parts.append(part)
        end += 1 + length
    if n_bytes != 2 * (end - position):
        raise ValueError("not as long as it says")
    return Example(parts[0], parts[1:], label), end
