import json

import pytest
import torch

from gpt2edu import doctor
from gpt2edu.doctor import Check
from gpt2edu.machine import Gpu, Machine

GIB = 2**30


def machine(n_gpus=0, capability=(8, 0), driver="580.95.05", cuda=(13, 0), gib=80):
    gpus = (Gpu("NVIDIA A100-SXM4-80GB", gib * GIB, capability),) * n_gpus
    return Machine(gpus, driver if n_gpus else None, cuda if n_gpus else None, "a processor", 2, 16 * GIB)


def test_a_machine_without_gpu_is_fine(tmp_path, capsys):
    code = doctor.main(["--data-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    checked = [line for line in lines if line.startswith(("OK", "FIX"))]
    assert len(checked) == len(doctor.CHECKS)
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert not line.startswith("FIX") or following.startswith(" " * 25)  # each has a remedy below
    assert code == (0 if all(line.startswith("OK") for line in checked) else 1)


def test_json(tmp_path, capsys):
    doctor.main(["--json", "--data-dir", str(tmp_path)])
    results = json.loads(capsys.readouterr().out)
    assert [sorted(result) for result in results] == [["found", "name", "ok", "remedy"]] * len(doctor.CHECKS)
    names = [result["name"] for result in results]
    for name in ("GPU", "compute capability", "driver", "PTX", "memory", "NCCL", "MPI", "disk", "vocabulary", "data"):
        assert name in names


@pytest.mark.parametrize(
    ("cuda", "ptx"), [((12, 0), "8.0"), ((12, 5), "8.5"), ((12, 6), "8.5"), ((12, 8), "8.7"), ((13, 0), "9.0")]
)
def test_ptx_versions_of_the_cuda_manual(cuda, ptx):
    assert doctor.ptx_version(cuda) == ptx


@pytest.mark.parametrize(
    ("driver", "cuda", "torch_cuda", "ok", "remedy"),
    [
        ("580.95.05", (13, 0), "13.0", True, None),
        ("580.95.05", (13, 0), "12.8", True, None),
        ("535.104.05", (12, 2), "12.8", True, None),
        ("535.104.05", (12, 2), "13.0", False, "requirements-cu12.txt"),
        ("470.57.02", (11, 4), "12.8", False, "apt-get install"),
        ("580.95.05", (13, 0), None, False, "requirements.txt"),
    ],
)
def test_driver_and_torch(monkeypatch, tmp_path, driver, cuda, torch_cuda, ok, remedy):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    check = doctor.check_driver(machine(1, driver=driver, cuda=cuda), tmp_path)
    assert check.ok is ok
    assert (check.remedy is None) if remedy is None else (remedy in check.remedy)


@pytest.mark.parametrize(
    ("toolkit", "nvjitlink", "cuda", "ok", "remedy"),
    [
        ("13.0.3.0", True, (13, 0), True, None),
        ("13.1.0", False, (13, 0), False, "'cuda-toolkit==13.0.*'"),
        ("13.1.0", True, (13, 0), True, None),
        ("13.0.3.0", True, (12, 2), False, "requirements-cu12.txt"),
        (None, False, (13, 0), False, "requirements.txt"),
    ],
)
def test_ptx_and_driver(monkeypatch, tmp_path, toolkit, nvjitlink, cuda, ok, remedy):
    versions = {"cuda-toolkit": toolkit, "nvidia-nvjitlink": "13.1.0" if nvjitlink else None}
    monkeypatch.setattr(doctor, "_version", versions.get)
    driver = "580.95.05" if cuda[0] == 13 else "535.104.05"
    check = doctor.check_ptx(machine(1, driver=driver, cuda=cuda), tmp_path)
    assert check.ok is ok
    assert (check.remedy is None) if remedy is None else (remedy in check.remedy)


def test_capability_decides_the_type(tmp_path):
    assert "bf16 in hardware" in doctor.check_capability(machine(1), tmp_path).found
    assert "fp16 with loss scaling" in doctor.check_capability(machine(1, (7, 5)), tmp_path).found


def test_gpu_memory_names_the_micro_batch(tmp_path):
    assert "-b 64 -r 0" in doctor.check_gpu_memory(machine(1), tmp_path).found
    tiny = doctor.check_gpu_memory(machine(1, gib=1), tmp_path)
    assert not tiny.ok and "laptop" in tiny.remedy


def test_full_disk_and_unprepared_data(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: doctor.shutil._ntuple_diskusage(100, 95, 5e9))
    assert doctor.check_disk(machine(), tmp_path).ok
    assert "GPT2EDU_DATA" in doctor.check_disk(machine(8), tmp_path).remedy
    assert "gpt2edu.data fineweb" in doctor.check_data(machine(8), tmp_path).remedy


def test_damaged_data_is_found(tmp_path):
    (tmp_path / "kjv").mkdir()
    (tmp_path / "kjv" / "manifest.json").write_text("{}")
    check = doctor.check_data(machine(), tmp_path)
    assert not check.ok and check.remedy == "python -m gpt2edu.data kjv"


def test_a_check_that_breaks_is_a_line_too(monkeypatch, tmp_path):
    def check_weather(_machine, _folder):
        raise ValueError("rain")

    monkeypatch.setattr(doctor, "CHECKS", (check_weather,))
    (result,) = doctor.examine(machine(), tmp_path)
    assert result == Check("weather", False, "could not be checked: ValueError: rain", result.remedy)
