"""The pins agree with the package's metadata, and were resolved since they changed."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environment = load_tool("environment")
check_requirements = load_tool("check_requirements")


def pins(name):
    """Return the pins of a requirements file, those that it includes too."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= pins(line[3:])
        elif line and line != "-e .":
            requirement = Requirement(line)
            found[requirement.name] = requirement
    return found


@pytest.mark.parametrize("name", check_requirements.FILES)
def test_each_file_is_pinned_and_installs_this_package(name):
    assert "-e ." in (ROOT / name).read_text(encoding="utf-8").splitlines()
    for requirement in pins(name).values():
        assert re.fullmatch(r"==[\w.]+(\.\*)?", str(requirement.specifier)), requirement


@pytest.mark.parametrize("name", check_requirements.FILES)
def test_the_package_metadata_allows_every_pin(name):
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = pins(name)
    for text in metadata["project"]["dependencies"]:
        wanted = Requirement(text)
        version = str(pinned[wanted.name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{wanted} forbids {version}"


def test_every_import_of_the_packages_is_declared():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {Requirement(text).name.replace("-", "_") for text in metadata["project"]["dependencies"]}
    declared |= {
        "gpt2edu",
        "kernels",
        "tiktoken_ext",
        "llvmlite",
        "cuda",
    }  # ours, and parts of tiktoken, numba, numba-cuda
    for path in (path for folder in ("gpt2edu", "kernels") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
            assert roots <= declared, f"{path.relative_to(ROOT)}: {roots - declared}"


def test_the_files_differ_in_torch_and_cuda_only():
    first, second = map(pins, check_requirements.FILES)
    differing = {name for name in first | second if str(first.get(name)) != str(second.get(name))}
    assert differing == {"torch", "numba-cuda", "cuda-toolkit", "nvidia-nvjitlink"}


def test_the_requirements_were_resolved_since_they_changed():
    recorded = check_requirements.RECORD.read_text(encoding="utf-8").strip()
    assert recorded == check_requirements.fingerprint(), "run `make check-requirements`"


@pytest.mark.parametrize(
    ("driver", "requirements"),
    [
        (None, "requirements.txt"),
        ("580.65.06", "requirements.txt"),
        ("610.10", "requirements.txt"),
        ("579.99", "requirements-cu12.txt"),
        ("550.54.15", "requirements-cu12.txt"),
        ("525.60.13", "requirements-cu12.txt"),
    ],
)
def test_requirements_by_driver(driver, requirements):
    assert environment.choose_requirements(driver) == requirements


def test_an_old_driver_or_python_gets_a_remedy():
    with pytest.raises(environment.MachineError, match="driver 470.82.01 is too old.*sudo apt install"):
        environment.choose_requirements("470.82.01")
    with pytest.raises(environment.MachineError, match=r"3\.11 or newer is needed and this one is 3\.8;.*PYTHON="):
        environment.check_python((3, 8), True)
    with pytest.raises(environment.MachineError, match=r"sudo apt install python3\.12-venv"):
        environment.check_python((3, 12), False)
    environment.check_python(sys.version_info[:2], True)


def test_driver_version_comes_from_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.driver_version() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    program.chmod(0o755)
    assert environment.driver_version() == "550.54.15"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert environment.driver_version() is None
