"""Make `.venv` fit this machine: the right requirements for its NVIDIA driver, installed once.

    python3 tools/environment.py        # what `make` runs first; done in an instant when nothing changed

Runs on the system's Python with the standard library alone, and keeps to the syntax of Python 3.6, so that
a Python that is too old is told so.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST_PYTHON = (3, 11)
CUDA13_DRIVER, CUDA12_DRIVER = 580, 525  # the first NVIDIA driver of each CUDA generation


class MachineError(Exception):
    """What is missing on this machine, and what to do about it."""


def name(version):
    """Return (3, 11) as 3.11."""
    return "{}.{}".format(*version)


def check_python(version, has_venv):
    """Raise MachineError when this Python is too old, or cannot make a virtual environment."""
    if version < OLDEST_PYTHON:
        raise MachineError(
            f"Python {name(OLDEST_PYTHON)} or newer is needed and this one is {name(version)}; install it (Ubuntu: "
            "sudo apt install python3.12 python3.12-venv) and run make with PYTHON=python3.12"
        )
    if not has_venv:
        raise MachineError(
            "this Python cannot make virtual environments; install its venv package "
            f"(Debian, Ubuntu: sudo apt install python{name(version)}-venv) and run the same command again"
        )


def driver_version():
    """Return the NVIDIA driver's version such as "550.54.15", or None without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = answer.stdout.decode().split()
    return lines[0] if lines else None


def choose_requirements(driver):
    """Return the requirements file for an NVIDIA driver version (None: no GPU)."""
    if driver is None:
        return "requirements.txt"
    major = int(driver.split(".")[0])
    if major >= CUDA13_DRIVER:
        return "requirements.txt"
    if major >= CUDA12_DRIVER:
        return "requirements-cu12.txt"
    raise MachineError(
        f"the NVIDIA driver {driver} is too old for CUDA 12; install {CUDA12_DRIVER} or newer (Ubuntu: "
        f"sudo apt install nvidia-driver-{CUDA13_DRIVER}-server, then reboot) and run the same command again"
    )


def fingerprint(requirements):
    """Return a hash of everything that decides what is installed."""
    digest = hashlib.sha256(sys.version.encode())
    for file in (requirements, "requirements-common.txt", "pyproject.toml"):
        digest.update(file.encode() + b"\0" + (ROOT / file).read_bytes())
    return digest.hexdigest()


def install(requirements, stamp):
    """Create `.venv` when it is missing, install the requirements, and write the stamp last."""
    python = VENV / "bin" / "python"
    if not python.exists():
        shutil.rmtree(str(VENV), ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    print(f"installing {requirements} into .venv (a few minutes the first time)", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-input"]
    result = subprocess.run(pip + ["-r", requirements], cwd=str(ROOT))
    if result.returncode:
        raise MachineError(f"pip could not install {requirements}, see its message above; mend that and run make again")
    stamp.write_text(fingerprint(requirements) + "\n")


def main():
    """Check, choose, install; return the exit code."""
    try:
        check_python(sys.version_info[:2], importlib.util.find_spec("ensurepip") is not None)
        driver = driver_version()
        requirements = os.environ.get("REQUIREMENTS") or choose_requirements(driver)
        stamp = VENV / "requirements.sha256"
        if not stamp.exists() or stamp.read_text().strip() != fingerprint(requirements):
            print(f"NVIDIA driver {driver or 'not found'}: {requirements}", flush=True)
            install(requirements, stamp)
    except MachineError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
