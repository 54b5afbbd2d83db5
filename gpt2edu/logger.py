"""`main.log` and the step line: written as llm.c writes them, and read back.

s:250 tel:6.1710                         validation loss before step 250
s:250 eval:0.2951                        HellaSwag accuracy
s:250 trl:6.1712 lr:0.000215 norm:1.10   training loss of step 250
"""

from __future__ import annotations

import errno
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gpt2edu.errors import Gpt2EduError, disk_full_message

LOG_NAME = "main.log"
NUMBER = r"([-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))"
LOG_LINE = re.compile(rf"s:(\d+) (?:(tel|eval):{NUMBER}|trl:{NUMBER} lr:{NUMBER} norm:{NUMBER})")


class MainLog:
    """Appends to `main.log`, a whole line at a time; does nothing where there is no folder (None).

    Args:
        folder: made when missing.
        resume: keep what the file has; otherwise it starts empty.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, resume: bool = False) -> None:
        self.path = Path(folder) / LOG_NAME if folder is not None else None
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = resume and self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with open(self.path, "a" if resume else "w", encoding="utf-8") as file:
                file.write("\n" if torn else "")  # a kill may have cut the last line
        except OSError as problem:
            raise Gpt2EduError(
                f"-o {folder}: {self.path} cannot be written ({problem.strerror}); choose another folder"
            ) from problem

    def _append(self, line: str) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                raise Gpt2EduError(disk_full_message(self.path)) from problem
            raise Gpt2EduError(f"{self.path} cannot be written ({problem.strerror}); mend that and go on") from problem

    def log_validation(self, step: int, loss: float) -> None:
        """Write the validation loss (nats a token) of the weights before `step`."""
        self._append(f"s:{step} tel:{loss:.4f}")

    def log_hellaswag(self, step: int, accuracy: float) -> None:
        """Write the HellaSwag accuracy (acc_norm, a fraction) of the weights before `step`."""
        self._append(f"s:{step} eval:{accuracy:.4f}")

    def log_train(self, step: int, loss: float, learning_rate: float, grad_norm: float) -> None:
        """Write what training step `step` (from 0) saw."""
        self._append(f"s:{step} trl:{loss:.4f} lr:{learning_rate:.6f} norm:{grad_norm:.2f}")


@dataclass
class History:
    """A run's `main.log`; every dict is keyed by step, in ascending order."""

    validation_loss: dict[int, float] = field(default_factory=dict)
    hellaswag: dict[int, float] = field(default_factory=dict)
    train_loss: dict[int, float] = field(default_factory=dict)
    learning_rate: dict[int, float] = field(default_factory=dict)
    grad_norm: dict[int, float] = field(default_factory=dict)


def read_log(path: str | os.PathLike[str]) -> History:
    """Read a `main.log`, ours or llm.c's; later lines overwrite earlier ones, and a line cut short is passed over.

    Raises:
        Gpt2EduError: there is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as problem:
        raise Gpt2EduError(f"{path} cannot be read ({problem.strerror}); -o names the folder of a run") from problem
    history = History()
    for match in sorted(filter(None, map(LOG_LINE.fullmatch, lines)), key=lambda match: int(match[1])):
        step = int(match[1])
        if match[2]:
            (history.validation_loss if match[2] == "tel" else history.hellaswag)[step] = float(match[3])
        else:
            history.train_loss[step], history.learning_rate[step], history.grad_norm[step] = map(
                float, match.group(4, 5, 6)
            )
    return history


class Throughput:
    """Tokens a second, smoothed over steps as llm.c does it; the first step warms up and does not count."""

    DECAY = 0.95

    def __init__(self) -> None:
        self.n_steps = 0  # after the first
        self.total_s = 0.0
        self._smoothed = 0.0
        self._warm = False

    def update(self, n_tokens: int, seconds: float) -> float:
        """Take in one step; return the smoothed tokens a second."""
        rate = n_tokens / seconds
        if not self._warm:
            self._warm = True
            return rate
        self.n_steps += 1
        self.total_s += seconds
        self._smoothed = self.DECAY * self._smoothed + (1.0 - self.DECAY) * rate
        return self._smoothed / (1.0 - self.DECAY**self.n_steps)

    @property
    def mean_step_ms(self) -> float:
        """Average time of a step in ms, nan when no step has counted."""
        return 1000.0 * self.total_s / self.n_steps if self.n_steps else math.nan


def step_line(
    *,
    step: int,
    n_steps: int,
    loss: float,
    loss_z: float,
    grad_norm: float,
    grad_norm_z: float,
    learning_rate: float,
    ms: float,
    mfu: float | None,
    dtype: str,
    tokens_per_s: float,
) -> str:
    """Return the line that a training step prints; `step` counts from 1, `mfu` is a fraction or None (unknown)."""
    share = "n/a" if mfu is None else f"{100 * mfu:.1f}%"
    return (
        f"step {step:4d}/{n_steps} | loss {loss:7.6f} ({loss_z:+.2f}z)| norm {grad_norm:6.4f} ({grad_norm_z:+.2f}z)"
        f"| lr {learning_rate:.2e} | {ms:.2f} ms | {share} {dtype} MFU | {tokens_per_s:.0f} tok/s"
    )
