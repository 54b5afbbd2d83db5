"""Resolve both requirements files against the package index, without installing, and record that it was done.

    python tools/check_requirements.py      # a minute a file

`tests/test_packaging.py` refuses requirements that changed since the record, `tools/requirements.checked`, was written.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tools" / "requirements.checked"
FILES = ("requirements.txt", "requirements-cu12.txt")


def fingerprint() -> str:
    """Return one hash over everything that decides what is resolved: pins and the package's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["requires-python"], *project["dependencies"]]
    for name in (*FILES, "requirements-common.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        wanted += [name, *(pin for line in lines if (pin := line.split("#")[0].strip()))]
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def main() -> int:
    """Resolve each file; write the record when both resolve."""
    for name in FILES:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "-r", name]
        if subprocess.run(command, cwd=ROOT).returncode:
            print(f"error: {name} does not resolve, see pip's message above", file=sys.stderr)
            return 1
        print(f"{name} resolves")
    RECORD.write_text(fingerprint() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
