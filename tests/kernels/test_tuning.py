from __future__ import annotations

import json

import numpy as np
import pytest

from kernels import SIMULATED
from kernels.matmul import matmul_grad_weight, tuning
from kernels.matmul.common import Product
from kernels.registry import ARCHITECTURES

GPU = "NVIDIA Test 9000"
OPTIONS = [{"slices": 7}, {"slices": 5}, {"slices": 3}]
KEY = "sm_80 grad_weight 24x40x640"


@pytest.fixture
def product():
    empty = np.zeros(0, np.uint16)
    return Product(empty, empty, empty, 24, 40, 640, False, False)


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """A machine whose GPU has no choices yet: two empty folders, that of the package and the user's."""
    monkeypatch.setattr(tuning, "SIMULATED", False)
    monkeypatch.setattr(tuning, "gpu_name", lambda: GPU)
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "package")
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path / "user"))
    tuning.measured_choices.cache_clear()
    yield tuning.SHIPPED, tuning.user_folder()
    tuning.measured_choices.cache_clear()


def write(folder, slices) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = tuning.file_in(folder, GPU)
    file.write_text(json.dumps({"gpu": GPU, "choices": {KEY: {"slices": slices}}}), encoding="utf-8")


def test_an_unknown_gpu_gets_the_default_and_is_told_so(product, folders):
    assert tuning.key_of("sm_80", product) == KEY
    assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 7}
    assert "untuned" in tuning.describe(GPU)


def test_choices_of_the_package_outrank_those_of_the_user(product, folders):
    package, user = folders
    write(user, 5)
    assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 5}
    assert str(user) in tuning.describe(GPU)
    write(package, 3)
    assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 5}  # fixed for as long as the process lives
    tuning.measured_choices.cache_clear()
    assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 3}
    assert "of the package" in tuning.describe(GPU)


def test_a_choice_that_the_kernels_no_longer_know_is_the_default(product, folders):
    write(folders[0], 4)
    assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 7}


def test_a_damaged_file_is_named(product, folders):
    write(folders[1], 5)
    file = tuning.file_in(folders[1], GPU)
    file.write_text('{"gpu": ', encoding="utf-8")
    with pytest.raises(ValueError, match=f"{file.name} is no file of choices"):
        tuning.choose("sm_80", product, OPTIONS)


def test_a_trial_chooses_what_is_measured(product):
    with tuning.trying(1) as trial:
        assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 5}
    assert (trial.key, trial.options) == (KEY, tuple(OPTIONS))
    if SIMULATED:
        assert tuning.choose("sm_80", product, OPTIONS) == {"slices": 7}


@pytest.mark.skipif(not SIMULATED, reason="NumPy arrays are for the simulator")
def test_what_is_chosen_is_what_is_launched(monkeypatch):
    """The weight's gradient of step 7, cut as a trial says."""
    monkeypatch.setattr("kernels.matmul.step7_multistage.SLICES_TRIED", 2)
    M, N, K = 640, 136, 8
    out, grad_out, inp = (np.zeros((N, K), np.float32), np.zeros((M, N), np.uint16), np.zeros((M, K), np.uint16))
    slices = []
    for place in range(2):
        with tuning.trying(place) as trial:
            launches = matmul_grad_weight.prepare(out, grad_out, inp)
        slices.append(launches[0].arguments[-2])
        assert slices[-1] == trial.options[place]["slices"]
    assert len(set(slices)) == 2


def test_files_of_the_package():
    for file in tuning.SHIPPED.glob("*.json"):
        held = json.loads(file.read_text(encoding="utf-8"))
        assert tuning.file_in(tuning.SHIPPED, held["gpu"]) == file
        for key, choice in held["choices"].items():
            family, layout, sizes = key.split()
            assert family in ARCHITECTURES
            assert layout in ("forward", "grad_input", "grad_weight")
            assert len([int(size) for size in sizes.split("x")]) == 3
            assert all(isinstance(value, int) for value in choice.values())
