"""What a reproduction has done: a stamp for each stage, with the settings it was done with and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2edu.errors import Gpt2EduError
from gpt2edu.files import atomic_write

STAGES = ("data", "train", "evaluate", "sample", "report")


@dataclass
class Stamp:
    """A stage of a run.

    Attributes:
        settings: what decides the stage's outcome, and nothing else; JSON.
        done: it came to its end with these settings.
        result: what came of it; JSON.
        attempts: for each start {"started": seconds since 1970, "seconds": how long it took}; more than one when it
            was interrupted. One that is under way, or was killed, lasted until the training log was last written.
    """

    settings: dict[str, Any]
    done: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of all attempts together."""
        return sum(attempt["seconds"] for attempt in self.attempts)


class RunFolder:
    """The folder of one reproduction: `stages/<name>.json`, `train/` with log and checkpoints, `report.html`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.train_folder = self.path / "train"
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise Gpt2EduError(
                f"the run folder {self.path} cannot be made ({problem.strerror}); choose another with --out"
            ) from problem

    def read(self, stage: str) -> Stamp | None:
        """Return a stage's stamp, None when it never began.

        Raises:
            Gpt2EduError: the file is damaged.
        """
        path = self._stamp_path(stage)
        try:
            stamp = Stamp(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as problem:
            raise Gpt2EduError(f"{path} is damaged ({problem}); delete it, and the stage is done again") from problem
        if stamp.attempts and not stamp.attempts[-1]["seconds"]:  # under way, or killed
            stamp.attempts[-1]["seconds"] = self._last_sign_of_life(stamp.attempts[-1]["started"])
        return stamp

    def is_done(self, stage: str, settings: dict[str, Any]) -> bool:
        """Say whether the stage is finished with exactly these settings."""
        stamp = self.read(stage)
        return stamp is not None and stamp.done and stamp.settings == _as_json(settings)

    @contextmanager
    def working_on(self, stage: str, settings: dict[str, Any]) -> Iterator[Stamp]:
        """Stamp the stage as begun, and as done when the block ends without an error; the block fills in `result`.

        An interrupted stage with the same settings keeps its earlier attempts. A block that is not finished sets
        `stamp.done = False`.
        """
        settings = _as_json(settings)
        stamp = self.read(stage)
        if stamp is None or stamp.settings != settings:
            stamp = Stamp(settings)
        stamp.done = False
        started = time.time()
        stamp.attempts.append({"started": started, "seconds": 0.0})
        self._write(stage, stamp)
        try:
            stamp.done = True
            yield stamp
        except BaseException:
            stamp.done = False
            raise
        finally:
            stamp.attempts[-1]["seconds"] = time.time() - started
            self._write(stage, stamp)

    def _last_sign_of_life(self, started: float) -> float:
        """Return how long after `started` the training log was last written to."""
        log = self.train_folder / "main.log"
        return max(0.0, log.stat().st_mtime - started) if log.exists() else 0.0

    def _stamp_path(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    def _write(self, stage: str, stamp: Stamp) -> None:
        with atomic_write(self._stamp_path(stage), "w") as file:
            json.dump(asdict(stamp), file, indent=1)
            file.write("\n")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as they come back from a file: tuples become lists."""
    return json.loads(json.dumps(settings))
