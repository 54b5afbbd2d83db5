"""One warp's steps, faults and instructions come out the same in this process and in another."""

import numpy as np
import pytest

from gpt2edu import show_kernels
from kernels import SIMULATED
from kernels.lessons import first_kernels as lessons
from kernels.memory import cast_kernel

OUT, INP, ADDED = np.full(10, np.nan, np.float32), np.arange(10, dtype=np.float32), np.ones(10, np.float32)


@pytest.fixture(params=[True, False], ids=["here", "elsewhere"])
def process(request, monkeypatch):
    """Let the simulator run in this process, or in another as on a machine with a GPU."""
    if request.param and not SIMULATED:
        pytest.skip("kernels run on a GPU in this process")
    monkeypatch.setattr(show_kernels, "SIMULATED", request.param)


def test_steps(process):
    table = show_kernels.show_steps(lessons.add_kernel, 1, 32, OUT, INP, ADDED, lanes=(0, 9, 10))
    assert table.header == ["step", "bytes used", "sectors", "lane 0", "lane 9", "lane 10"]
    assert table.rows == [
        ["1 load", "40", "2", "`inp_N[0]`", "`inp_N[9]`", "–"],
        ["2 load", "40", "2", "`added_N[0]`", "`added_N[9]`", "–"],
        ["3 store", "40", "2", "`out_N[0]`", "`out_N[9]`", "–"],
    ]
    assert np.isnan(OUT).all()  # the arrays of the caller stay as they are


def test_steps_of_vectors(process):
    x = np.zeros(512, np.uint16)
    table = show_kernels.show_steps(cast_kernel, 1, 32, x, x, 256, lanes=(1,))
    assert table.rows[0] == ["1 load", "512", "16", "`inp_N[8:16]`"]


def test_fault(process, capsys):
    show_kernels.show_fault(lessons.add_unguarded_kernel, 3, 4, OUT, INP, ADDED)
    printed = capsys.readouterr().out
    assert printed.startswith("OutOfBoundsError: add_unguarded_kernel, thread (2, 0, 0) of block (2, 0, 0)")
    assert str(show_kernels.ROOT) not in printed and "kernels/lessons/first_kernels.py:" in printed
    assert max(map(len, printed.splitlines())) <= show_kernels.LINE_WIDTH
    show_kernels.show_fault(lessons.add_kernel, 3, 4, OUT, INP, ADDED)
    assert capsys.readouterr().out == "nothing to report\n"


def test_simulate(process):
    out_N, inp_N, _ = show_kernels.simulate(lessons.add_kernel, 3, 4, OUT, INP, ADDED)
    assert out_N.tolist() == [i + 1 for i in range(10)]
    assert inp_N is not INP


def test_instructions():
    vector = "void(uint16[::1], uint16[::1], int64)"
    found = show_kernels.ptx_instructions(cast_kernel, vector, "ld.global", "st.global")
    assert set(found) == {"ld.global.u16", "ld.global.v4.u32", "st.global.u16", "st.global.v4.u32"}
