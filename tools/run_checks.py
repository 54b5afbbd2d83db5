"""Run the checks part by part, then print each part's time and one verdict.

    python tools/run_checks.py                  # all parts that need no GPU
    python tools/run_checks.py lint units       # only these
    python tools/run_checks.py --slow           # with the larger sweeps
    python tools/run_checks.py --gpu            # the tests and cells that need an NVIDIA GPU

A part that lacks a tool fails and says how to get it; nothing is skipped in silence.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-q"]
TWO_WORKERS = ["-n", "2", "--dist", "worksteal"]
NBVAL = ["--nbval", "--nbval-cell-timeout=300", "-n", "2", "--dist", "loadfile", "book"]
BOOK = [
    *(str(BIN / "jupyter-book"), "build", "book", "--config", "_config.yml", "--toc", str(ROOT / "_toc.yml")),
    *("--path-output", ".", "-W", "--keep-going", "-n", "-q", "--all"),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COUNTED = ("passed", "failed", "skipped", "error")

Command = list[str]


def parts(marks: str) -> dict[str, tuple[list[Command], dict[str, str]]]:
    """Return each part's commands and environment, in the order they run; `marks` selects tests."""
    outside = [f"--ignore=tests/{folder}" for folder in ("book", "distributed", "kernels")]
    return {
        "lint": (
            [
                [str(BIN / "ruff"), "check", "."],
                [str(BIN / "ruff"), "format", "--check", "."],
                [sys.executable, "book/notebooks.py", "format"],
            ],
            {},
        ),
        "units": ([[*PYTEST, *TWO_WORKERS, "-m", marks, "tests", *outside]], {}),
        "simulator": ([[*PYTEST, *TWO_WORKERS, "-m", marks, "tests/kernels"]], {"NUMBA_ENABLE_CUDASIM": "1"}),
        "ranks": ([[*PYTEST, "-m", marks, "tests/distributed"]], {}),
        "notebooks": ([[*PYTEST, *NBVAL]], {"NUMBA_ENABLE_CUDASIM": "1"}),
        "book": ([BOOK], {}),
        "pages": ([[*PYTEST, *TWO_WORKERS, "-m", marks, "tests/book"]], {}),
    }


def gpu_parts() -> dict[str, tuple[list[Command], dict[str, str]]]:
    """Return the parts that run on a machine with an NVIDIA GPU."""
    return {"gpu-tests": ([[*PYTEST, "-m", "gpu", "tests"]], {}), "gpu-notebooks": ([[*PYTEST, *NBVAL]], {})}


def has_tests(folder: str) -> bool:
    """Return whether a test folder has tests yet."""
    return any((ROOT / folder).rglob("test_*.py"))


def need_browser() -> str | None:
    """Install Chromium where apt can; return what to do where it cannot, None when there is a browser."""
    if any(map(shutil.which, BROWSERS)):
        return None
    admin = [] if os.geteuid() == 0 else ["sudo", "-n"]
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    if shutil.which("apt-get") and (not admin or shutil.which("sudo")):
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run([*admin, *command], stdout=subprocess.DEVNULL)
    if any(map(shutil.which, BROWSERS)):
        return None
    return "the pages are looked at in Chromium; install it (Debian, Ubuntu: sudo apt install chromium) and run again"


def run_part(commands: list[Command], environment: dict[str, str], counts: dict[str, int]) -> bool:
    """Run a part's commands with their output shown, add pytest's counts to `counts`, return whether all passed."""
    passed = True
    for command in commands:
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout
            last = ""
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line if line.strip() else last
        if "pytest" in command:
            for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last):
                counts[kind] += int(number)
        passed &= process.returncode == 0
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen parts; return 0 when every one passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts("")) + "; all when none is named")
    parser.add_argument("--slow", action="store_true", help="with the larger sweeps")
    parser.add_argument("--gpu", action="store_true", help="what needs an NVIDIA GPU, instead of the rest")
    arguments = parser.parse_args(argv)
    marks = "not gpu and not multi_gpu and not network" + ("" if arguments.slow else " and not slow")
    chosen = gpu_parts() if arguments.gpu else parts(marks)
    if unknown := set(arguments.parts) - set(chosen):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(chosen)}")
    counts = dict.fromkeys(COUNTED, 0)
    report = []
    with tempfile.TemporaryDirectory(prefix="gpt2edu-test-") as data:
        shared = {"GPT2EDU_DATA": data, "OMP_NUM_THREADS": "1"}
        for name, (commands, environment) in chosen.items():
            if arguments.parts and name not in arguments.parts:
                continue
            if name == "simulator" and not has_tests("tests/kernels"):
                continue
            print(f"\n== {name}", flush=True)
            start = time.monotonic()
            remedy = need_browser() if name == "pages" else None
            passed = remedy is None and run_part(commands, shared | environment, counts)
            if remedy:
                print(f"error: {remedy}")
            report.append((name, passed, time.monotonic() - start))
    print("\npart            result       s")
    for name, passed, seconds in report:
        print(f"{name:<15} {'passed' if passed else 'FAILED':<8} {seconds:>5.0f}")
    n_failed = sum(not passed for _, passed, _ in report)
    print(f"all parts took {sum(seconds for *_, seconds in report):.0f} s; {n_failed} of {len(report)} parts failed")
    print(f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed, {counts['skipped']} skipped")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
