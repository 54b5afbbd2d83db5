from __future__ import annotations

import pytest

import kernels
from kernels import SIMULATED
from kernels.architecture import architecture, force_architecture, n_multiprocessors


def test_architecture_can_be_forced():
    usual = architecture()
    assert usual == "sm_80" or not SIMULATED
    try:
        force_architecture("sm_90a")
        assert architecture() == "sm_90a"
    finally:
        force_architecture(None)
    assert architecture() == usual
    with pytest.raises(ValueError, match="architecture 'sm_75' is unknown; choose one of sm_80, sm_90a"):
        force_architecture("sm_75")


def test_multiprocessors():
    assert n_multiprocessors() == 1 if SIMULATED else n_multiprocessors() > 1


class Driver:
    """A CUDA driver with one GPU of this major compute capability, or none."""

    def __init__(self, major, devices=1):
        self.major, self.devices = major, devices

    def cuInit(self, flags):  # noqa: N802 (the driver's name)
        return 0

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        return 0 if ordinal < self.devices else 101

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        assert attribute == 75
        value._obj.value = self.major
        return 0


@pytest.mark.parametrize(("driver", "runs"), [(Driver(7), 0), (Driver(8), 1), (Driver(9), 1), (Driver(9, 0), 0)])
def test_a_gpu_without_bf16_counts_as_none(driver, runs, monkeypatch):
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda _name: driver)
    assert kernels._gpu_present() == runs


def test_no_driver_no_gpu(monkeypatch):
    def missing(_name):
        raise OSError

    monkeypatch.setattr(kernels.ctypes, "CDLL", missing)
    assert not kernels._gpu_present()
