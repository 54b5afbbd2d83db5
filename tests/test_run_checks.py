"""The driver of `make test`: what it runs, and that nothing fails or is missing in silence."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("run_checks", ROOT / "tools" / "run_checks.py")
run_checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_checks)


def python(program):
    return [sys.executable, "-c", program]


@pytest.fixture
def fake_parts(monkeypatch):
    summary = "print('2 passed, 1 skipped in 0.1s')"
    fake = {
        "good": ([[*python(summary), "pytest"]], {"FLAG": "1"}),
        "bad": ([python("raise SystemExit(3)"), python("print('still run')")], {}),
    }
    monkeypatch.setattr(run_checks, "parts", lambda marks: fake)


def test_all_parts_run_and_one_failure_fails_the_whole(fake_parts, capfd):
    assert run_checks.main([]) == 1
    out = capfd.readouterr().out
    assert "still run" in out
    assert "good            passed" in out and "bad             FAILED" in out
    assert out.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"


def test_one_part_can_be_chosen(fake_parts, capfd):
    assert run_checks.main(["good"]) == 0
    assert "bad " not in capfd.readouterr().out
    with pytest.raises(SystemExit):
        run_checks.main(["none"])


def test_without_a_browser_the_pages_fail_with_a_remedy(monkeypatch, capfd):
    monkeypatch.setattr(run_checks, "parts", lambda marks: {"pages": ([python("print('opened')")], {})})
    monkeypatch.setattr(run_checks.shutil, "which", lambda name: None)
    assert run_checks.main([]) == 1
    out = capfd.readouterr().out
    assert "sudo apt install chromium" in out and "opened" not in out


def test_every_folder_of_tests_belongs_to_a_part():
    commands = [command for commands, _ in run_checks.parts("marks").values() for command in commands]
    arguments = {argument for command in commands for argument in command}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    for folder in folders - {"gpt2edu"}:  # `tests` with the other folders ignored
        assert f"tests/{folder}" in arguments and f"--ignore=tests/{folder}" in arguments, folder
    assert "tests" in arguments


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "requirements.txt", "pyproject.toml"):
        named = set(re.findall(r"[`(]make ([a-z-]+)(?![a-z_])", (ROOT / name).read_text(encoding="utf-8")))
        assert named <= targets, name
