"""Hand-written Numba CUDA kernels. Knows nothing of models, files, MPI or torch.

Importing this package decides where the kernels run. With an NVIDIA GPU that multiplies bf16 (compute capability
8.0 or more) they are compiled for it; without one, `kernels.simulator` runs the same source on the CPU. The
environment variable `NUMBA_ENABLE_CUDASIM` (1 or 0) overrules the choice: 1 simulates although there is a GPU, 0
compiles although there is none.

Numba reads that variable only once, when it is imported, so this package must be imported before Numba.
`SIMULATED` tells which of the two was chosen.
"""

from __future__ import annotations

import ctypes
import os
import sys

_VARIABLE = "NUMBA_ENABLE_CUDASIM"
_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_OLDEST_MAJOR = 8  # GPUs before the A100 have no bf16 tensor cores and no asynchronous copies


def _gpu_present() -> bool:
    """Ask the CUDA driver, without Numba, whether the first GPU that this process sees runs the kernels."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    device, major = ctypes.c_int(0), ctypes.c_int(0)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
    )
    return all(call() == 0 for call in calls) and major.value >= _OLDEST_MAJOR


def _choose_simulator() -> bool:
    """Return True if kernels are to be simulated, and tell Numba so through its environment variable.

    Raises:
        ImportError: Numba was imported before this package and with the other choice.
    """
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = "0" if _gpu_present() else "1"
    simulated = os.environ[_VARIABLE] not in ("", "0")
    numba = sys.modules.get("numba")
    if numba is not None and bool(numba.config.ENABLE_CUDASIM) != simulated:
        raise ImportError(
            f"numba was imported before kernels and without {_VARIABLE}={int(simulated)}, which it reads only once: "
            "import kernels first, or set the variable before Python starts."
        )
    return simulated


os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # small grids are meant here; Numba reads it once, too

SIMULATED: bool = _choose_simulator()

if SIMULATED:
    from kernels.simulator import install

    install()
