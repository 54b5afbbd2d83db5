"""Every kernel compiles for sm_80 and sm_90a, and its registers, shared memory and spills are those of the table.

The table is `resources.json` beside this file. After a change of a kernel look at the difference and refresh it:
`python -m kernels.compile --write tests/kernels/resources.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.compile import find_ptxas, read_report, sources_of
from kernels.registry import ARCHITECTURES, all_kernels

COMMITTED = Path(__file__).with_name("resources.json")

MAY_SPILL: set[str] = set()
"""Kernels that are no production kernels and are allowed to spill, because a chapter shows why that is bad."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict:
    """The table of the sources as they are, compiled by a process of its own."""
    if find_ptxas() is None:
        pytest.skip("ptxas is not installed")
    path = tmp_path_factory.mktemp("compiled") / "table.json"
    command = [sys.executable, "-m", "kernels.compile", "--write", str(path)]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=COMMITTED.parents[2])
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def rows(table: dict):
    for name, variants in table["kernels"].items():
        for variant, architectures in variants.items():
            for architecture, row in architectures.items():
                yield f"{name} {variant} {architecture}", name, row


def test_every_kernel_is_compiled_for_all_its_architectures(compiled):
    entries = all_kernels()
    assert set(compiled["kernels"]) == set(entries)
    for name, variants in compiled["kernels"].items():
        for variant, architectures in variants.items():
            assert set(architectures) == set(entries[name].architectures), (name, variant)
            assert set(architectures) <= set(ARCHITECTURES), (name, variant)


def test_ptxas_warns_of_nothing(compiled):
    assert not [(label, row["warnings"]) for label, _, row in rows(compiled) if "warnings" in row]


def test_no_spills_no_stack_and_no_float64(compiled):
    for label, name, row in rows(compiled):
        if name not in MAY_SPILL:
            assert row["spill_bytes"] == 0, f"{label} spills registers"
            assert row["stack_bytes"] == 0, f"{label} keeps a local array in memory"
        assert not row["float64"], f"{label} computes in float64: write float32(0.5), not 0.5"


def test_table_is_that_of_the_sources(compiled):
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if committed["toolchain"] != compiled["toolchain"]:
        pytest.skip(f"the table was made with {committed['toolchain']}, here is {compiled['toolchain']}")
    assert compiled["kernels"] == committed["kernels"], "refresh it: see the head of this file"


def test_sources_of_a_kernel_follow_its_imports():
    sources = sources_of("kernels.gelu")
    assert {"kernels.gelu", "kernels.elements", "kernels.ptx", "kernels.intrinsics"} <= set(sources)
    assert "kernels.residual" not in sources


def test_report_of_ptxas_with_a_warning():
    report = """ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
    512 bytes stack frame, 508 bytes spill stores, 1020 bytes spill loads
ptxas info    : Used 154 registers, used 1 barriers, 48 bytes smem"""
    warning = "(C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to"
    counts = {"registers": 154, "shared_bytes": 48, "stack_bytes": 512, "spill_bytes": 508}
    assert read_report(report) == counts | {"warnings": [warning]}
    assert "warnings" not in read_report("ptxas info    : Used 10 registers")
