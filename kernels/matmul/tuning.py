"""Which variant of a kernel a product gets: measured once on a GPU, kept in a file, and the same ever after.

A step that can do a product in several ways lists them, the one that it would take unmeasured first, and asks:

    choice = choose("sm_80", product, [{"slices": 7, "group": 16}, {"slices": 6, "group": 16}, ...])

The answer is what a file says for this GPU and this product: first the files that come with the package, in `tuned/`,
then the user's own, which `python -m gpt2edu.bench tune` writes. Without either it is the first of the list. Nothing is
ever measured by itself: a different choice may sum in another order, and two runs must give the same bits. For the same
reason a product that is in a file keeps its choice, whatever is measured later.

A file holds `{"gpu": its name, "choices": {key: choice}}`; `key_of` makes the keys.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from numba import cuda

from kernels import SIMULATED
from kernels.matmul.common import Product, layout_of

Choice = dict[str, int]

SHIPPED = Path(__file__).with_name("tuned")


@dataclass
class Trial:
    """One option of a product that is to be measured: which, and what `choose` was asked."""

    place: int
    key: str = ""
    options: tuple[Choice, ...] = ()


_trial: Trial | None = None


def key_of(family: str, product: Product) -> str:
    """Return what a product is called in a file: kernels, layout, and rows x columns x terms."""
    return f"{family} {layout_of(product)} {product.I}x{product.J}x{product.K}"


def choose(family: str, product: Product, options: Sequence[Choice]) -> Choice:
    """Return the choice for a product on the current GPU, which is one of `options`.

    Args:
        family: The kernels that it is for: a key of `registry.ARCHITECTURES`.
        product: What is about to be launched.
        options: What its kernels can do; the first is taken where nothing was measured.
    """
    key = key_of(family, product)
    if _trial is not None:
        _trial.key, _trial.options = key, tuple(options)
        return options[min(_trial.place, len(options) - 1)]
    if SIMULATED:
        return options[0]
    measured = measured_choices(gpu_name()).get(key)
    return measured if measured in options else options[0]  # a file may be older than the kernels


@contextmanager
def trying(place: int) -> Iterator[Trial]:
    """Let `choose` give option number `place`, and tell afterwards what it was asked."""
    global _trial
    _trial = Trial(place)
    try:
        yield _trial
    finally:
        _trial = None


def gpu_name() -> str:
    """Return the name of the current GPU."""
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else name


def user_folder() -> Path:
    """Return the folder of the files that were measured here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2edu"
    return Path(os.environ.get("GPT2EDU_DATA") or cache).expanduser() / "tuned"


def file_in(folder: Path, gpu: str) -> Path:
    """Return where in a folder the choices for a GPU are."""
    return folder / f"{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}.json"


def read_choices(file: Path) -> dict[str, Choice]:
    """Return the choices of a file by key; none if there is no such file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))["choices"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{file} is no file of choices ({problem}): delete it or measure again") from problem


@functools.cache
def measured_choices(gpu: str) -> dict[str, Choice]:
    """Return all choices for a GPU, read once in a process; those of the package outrank the user's."""
    return read_choices(file_in(user_folder(), gpu)) | read_choices(file_in(SHIPPED, gpu))


def describe(gpu: str) -> str:
    """Return in a sentence where the choices for a GPU come from."""
    if read_choices(file_in(SHIPPED, gpu)):
        return f"matrix products: tuned for {gpu}, choices of the package"
    if read_choices(file_in(user_folder(), gpu)):
        return f"matrix products: tuned for {gpu}, choices of {file_in(user_folder(), gpu)}"
    return f"matrix products: untuned on {gpu}, defaults; python -m gpt2edu.bench tune measures and keeps choices"
