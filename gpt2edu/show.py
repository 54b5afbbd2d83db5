"""What the chapters need to show things: source code, verdicts, measured tables, the set-up line.

Everything here prints the same on every machine, except `setup`, whose cell carries the tag
`nbval-ignore-output`.
"""

from __future__ import annotations

import html
import importlib.metadata
import inspect
import os
import platform
import textwrap
from pathlib import Path
from typing import Any

from gpt2edu.results import Row, load_results
from gpt2edu.table import Table

ROOT = Path(__file__).resolve().parents[1]
NETWORK_VARIABLE = "GPT2EDU_NETWORK"  # 1: cells tagged `network` may run


def missing_hardware() -> set[str]:
    """Return the tags of cells that cannot run here: those of `gpu`, `multi-gpu` and `network` that are missing."""
    import torch

    from kernels import SIMULATED

    n_gpus = 0 if SIMULATED or not torch.cuda.is_available() else torch.cuda.device_count()
    have = {"gpu": n_gpus >= 1, "multi-gpu": n_gpus >= 2, "network": os.environ.get(NETWORK_VARIABLE) == "1"}
    return {tag for tag, there in have.items() if not there}


def setup(seed: int = 42) -> None:
    """Seed NumPy and torch, choose plot settings, and print the versions and where the kernels run, and why."""
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    plt.rcParams.update({"figure.figsize": (6.4, 3.6), "figure.dpi": 100, "figure.constrained_layout.use": True})
    packages = " · ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numba", "numpy"))
    print(f"Python {platform.python_version()} · {packages}\n{_device_line()}")


def _device_line() -> str:
    """Return which device there is, and where the kernels run if that is not on it."""
    import torch

    from kernels import SIMULATED

    if not torch.cuda.is_available():
        return "CPU only"
    name = torch.cuda.get_device_name()
    if not SIMULATED:
        return name
    major, minor = torch.cuda.get_device_capability()
    reason = "NUMBA_ENABLE_CUDASIM=1" if major >= 8 else f"compute capability {major}.{minor} knows no bf16"
    return f"{name}, but {reason}: kernels run in the simulator, on the CPU"


class Source:
    """The source of a function, class or module: fenced Python in a notebook, plain text elsewhere."""

    def __init__(self, obj: Any):
        obj = inspect.unwrap(getattr(obj, "py_func", obj))  # Numba's dispatchers and decorators keep the function there
        self.text = textwrap.dedent(inspect.getsource(obj)).rstrip()
        path = Path(inspect.getsourcefile(obj) or "")
        self.path = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name

    def __repr__(self) -> str:
        """Return the source with its file on the first line."""
        return f"# {self.path}\n{self.text}"

    def _repr_markdown_(self) -> str:
        return f"```python\n{self!r}\n```"


def show_source(obj: Any) -> Source:
    """Return the source of `obj` as the package has it now, to be the last value of a cell."""
    return Source(obj)


class Verdict(int):
    """True or False (1 or 0) that a notebook does not print once more when it is the last value of a cell."""

    def _ipython_display_(self) -> None:
        """Show nothing: the verdict's line is printed already."""


def show_check(name: str, ok: bool, detail: str = "") -> Verdict:
    """Print one verdict line and return `ok`; `detail` holds only what CPU and GPU share, rounded."""
    print(f"{'✓' if ok else '✗'} {name}" + (f": {detail}" if detail else ""))
    return Verdict(bool(ok))


class Tokens:
    """A text cut into tokens: coloured boxes with their ids in a notebook, bars between them elsewhere."""

    COLOURS = ("#bfdbfe", "#fde68a", "#bbf7d0", "#fecaca")  # light, under dark text, so they read in dark mode too

    def __init__(self, tokenizer: Any, text: str):
        self.ids = tokenizer.encode(text)
        self.labels = [self._label(tokenizer.vocab[i]) for i in self.ids]

    @staticmethod
    def _label(token: bytes) -> str:
        """Return the token as text with its spaces and newlines made visible; half a character shows as hex bytes."""
        try:
            return token.decode().replace(" ", "␣").replace("\n", "⏎")
        except UnicodeDecodeError:
            return token.hex(" ").upper()

    def __repr__(self) -> str:
        """Return the tokens between bars."""
        return f"{len(self.ids)} tokens: {'|'.join(self.labels)}"

    def _repr_html_(self) -> str:
        boxes = "".join(
            f'<span style="display:inline-block; margin:2px 1px; padding:1px 5px; border-radius:4px; line-height:1.3; '
            f'text-align:center; color:#0f172a; background:{self.COLOURS[place % len(self.COLOURS)]}">'
            f'<code style="all:unset; font-family:monospace; white-space:pre">{html.escape(label)}</code><br>'
            f'<span style="font-size:0.72em">{token_id}</span></span>'
            for place, (token_id, label) in enumerate(zip(self.ids, self.labels, strict=True))
        )
        return f'<div style="margin:0.4em 0">{boxes} {len(self.ids)} tokens</div>'


def show_tokens(tokenizer: Any, text: str) -> Tokens:
    """Return `text` cut into the tokens of a tokenizer (`encode` and `vocab`), to be the last value of a cell."""
    return Tokens(tokenizer, text)


NO_BREAK = "\u00a0"  # a space at which no line is broken
RATE = 6  # its place among the columns of `show_results`


def show_results(name: str, op: str | None = None, *, gpu: str | None = None) -> Table:
    """Return the measured rows of `book/results/<name>.<gpu>.json` as a table, one line a variant.

    Args:
        name: the results name, such as `train_loop`.
        op: only rows of this op.
        gpu: only files whose GPU contains this text.
    """
    rows, measured = [], []
    for results in load_results(name):
        wanted = [row for row in results.rows if op in (None, row["op"])]
        if not wanted or (gpu and gpu not in results.gpu):
            continue
        measured.append(f"{results.gpu} (driver {results.driver}, {results.date})")
        rows += [[results.gpu, *_cells(row)] for row in wanted]
    if not rows:
        return Table(["results"], [[f"{name}: not measured yet"]])
    units = {row[RATE].partition(" ")[2] for row in rows}
    unit = units.pop() if len(units) == 1 else ""
    rows = [[*row[:RATE], row[RATE].removesuffix(f" {unit}"), *row[RATE + 1 :]] for row in rows]
    header = ["GPU", "op", "variant", "dtype", "shape", "ms (median)", unit or "rate", "of ceiling", "over torch"]
    shared = [column for column in (1, 3, 4) if len({row[column] for row in rows}) == 1]
    common = ", ".join(rows[0][column] for column in shared).replace(NO_BREAK, " ")
    hidden = {*shared, *([0] if len(measured) == 1 else [])}  # said once, in the caption
    lines = [[cell for column, cell in enumerate(row) if column not in hidden] for row in [header, *rows]]
    return Table(lines[0], lines[1:], f"Measured on {'; '.join(measured)}{': ' * bool(common)}{common}.")


def show_peak_memory(name: str) -> Table:
    """Return the most memory that each measured call took, its buffers among it, and that for a token."""
    rows, measured = [], []
    for results in load_results(name):
        wanted = [row for row in results.rows if "peak_bytes" in row]
        measured += [results.gpu] if wanted else []
        for row in wanted:
            tokens = row["shape"]["B"] * row["shape"]["T"]
            sizes = [f"{row['shape'][letter]:,}" for letter in "BT"]
            memory = [f"{row['peak_bytes'] / 2**20:,.0f}", f"{row['peak_bytes'] / tokens:,.0f}"]
            rows.append([row["op"], row["variant"], *sizes, *memory])
    if not rows:
        return Table(["memory"], [[f"{name}: not measured yet"]])
    return Table(["op", "variant", "B", "T", "MiB", "bytes a token"], rows, f"Measured on {'; '.join(measured)}.")


def _cells(row: Row) -> list[str]:
    """Return a results row as table cells, units in the header or beside the value."""
    shape = f",{NO_BREAK}".join(f"{letter}={size}" for letter, size in row["shape"].items())
    rate = ""
    if "gb_per_s" in row:
        rate = f"{row['gb_per_s']:,.0f} GB/s"
    elif "tflop_per_s" in row:
        rate = f"{row['tflop_per_s']:,.0f} TFLOP/s"
    share = f"{row['ceiling_share']:.0%}" if "ceiling_share" in row else ""
    ratio = f"{row['torch_ratio']:.3f}" if "torch_ratio" in row else ""
    return [row["op"], row["variant"], row["dtype"], shape, f"{row['median_ms']:,.3f}", rate, share, ratio]
