"""The start of the engine: rows of what processes measured, and on a GPU the processes themselves."""

import pytest

import kernels
from gpt2edu import bench
from gpt2edu.bench_start_up import start_rows
from gpt2edu.errors import UsageError
from gpt2edu.results import load_results, write_results


def measured(imports_ms, first_step_ms):
    return {"imports_ms": imports_ms, "first_step_ms": first_step_ms, "dtype": "bf16"}


def test_rows_tell_the_first_process_from_those_that_load(tmp_path):
    rows = start_rows(measured(5e3, 2e4), [measured(4e3, 2e3), measured(6e3, 1e3)], {"B": 2, "T": 8})
    assert [(row["variant"], row["n_runs"], row["median_ms"]) for row in rows] == [
        ("imports", 3, 5e3),
        ("first step, kernels compiled", 1, 2e4),
        ("first step, kernels kept on disk", 2, 1.5e3),
    ]
    write_results("start_up", rows, {}, gpu="a GPU", driver="1", command="bench", folder=tmp_path)  # they are valid


def test_a_cpu_compiles_nothing(tmp_path):
    with pytest.raises(UsageError, match="start_up compiles for a GPU"):
        bench.main(["start_up", "--device", "cpu", "--output", str(tmp_path)])


@pytest.mark.gpu
@pytest.mark.skipif(kernels.SIMULATED, reason="needs a GPU")
def test_a_toy_starts_cold_and_from_the_cache(tmp_path):
    toy = ["start_up", "-e", "d1,h2,c128,t64,v300", "-b", "4", "-t", "64"]
    assert bench.main([*toy, "--output", str(tmp_path)]) == 0
    (found,) = load_results("start_up", tmp_path)
    assert len(found.rows) == 3
