"""The bench of the kernels at toy size, in the simulator or on a GPU: what it checks and writes."""

import dataclasses
import json

import pytest
import torch

from gpt2edu import bench, bench_kernels
from gpt2edu.bench_ops import GROUPS, OPS
from gpt2edu.bench_ops.case import QUICK, Buffers, Case, Draw, Expected, Sizes, check, ladder, launchers, sampled_rows
from gpt2edu.bench_timing import Timing
from gpt2edu.errors import Gpt2EduError
from gpt2edu.results import load_results
from kernels import layernorm, memory

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST = ["memory", "residual", "gelu_forward", "matmul_bias_gelu", "attention_decode"]


THEIRS = ("torch", "torch.compile", "flash")


def run(*arguments, output):
    return bench.main([*arguments, "--quick", "--output", str(output)])


@pytest.mark.parametrize("name", FAST)
def test_a_group_or_an_op_is_checked_timed_and_written(name, tmp_path):
    assert run(name, output=tmp_path) == 0
    (found,) = load_results(name, tmp_path)
    ops = {row["op"] for row in found.rows}
    assert ops == ({"zero", "copy", "cast"} if name == "memory" else {name})
    for op in ops:
        rows = {row["variant"]: row for row in found.rows if row["op"] == op}
        assert rows["production"]["dtype"] == "bf16"
        fastest = min(rows[variant]["median_ms"] for variant in rows if variant in THEIRS)
        for row in rows.values():
            assert row["torch_ms"] == fastest
            assert row["torch_ratio"] == pytest.approx(fastest / row["median_ms"], rel=1e-4)
            assert row["max_error"] <= 2 * row["baseline_error"] + 1e-2
            assert "peak_bytes" not in row  # only of a GPU
            assert ("tflop_per_s" if name.startswith("matmul") else "gb_per_s") in row


@pytest.mark.slow
def test_all_ops_work(tmp_path):
    assert run("all", output=tmp_path) == 0
    assert {found.name for found in load_results(None, tmp_path)} == set(GROUPS)


def test_every_op_belongs_to_its_group():
    for name, make_cases in GROUPS.items():
        ops = {case.op for case in make_cases(DEVICE, QUICK)}
        assert ops == ({op for op, group in OPS.items() if group == name} or {name})


def test_the_real_shapes_are_those_of_gpt2():
    shapes = [tuple(case.shape.values()) for case in GROUPS["matmul"](CPU, Sizes()) if case.op == "matmul_forward"]
    products = [(65536, 3072, 768), (65536, 2304, 768), (65536, 768, 768), (65536, 768, 3072), (65536, 50304, 768)]
    assert shapes == [*products, (4096, 4096, 4096), (8192, 8192, 8192)]
    attention = [case for case in GROUPS["attention"](CPU, Sizes()) if case.op == "attention_forward"]
    assert [tuple(case.shape.values()) for case in attention] == [
        (64, 1024, 12, 64),
        (16, 4096, 12, 64),
        (8, 8192, 12, 64),
    ]
    assert [len(case.ours) for case in attention] == [7, 2, 1], "the ladder is measured at the first shape"
    decode = [case for case in GROUPS["attention"](CPU, Sizes()) if case.op == "attention_decode"]
    assert [case.n_bytes for case in decode] == [201_326_592, 3_145_728]
    (adamw,) = GROUPS["adamw"](CPU, Sizes())
    assert adamw.shape == {"N": 124_475_904}


def test_what_is_used_is_called_production():
    names = ladder(layernorm.LADDER, "layernorm_forward", layernorm.layernorm_forward)
    assert list(names)[0] == "step1_row_per_thread" and list(names)[-1] == "production"
    assert names["production"] is layernorm.layernorm_forward
    assert len(set(names.values())) == len(names) == len(layernorm.LADDER)


# ---- the check -----------------------------------------------------------------------------------------------------


class Launcher:
    """Stands in for one of ours: copies, and then does what a wrong kernel would do."""

    def __init__(self, mistake=lambda out: None):
        self.mistake = mistake

    def prepare(self, out, inp, stream=0):
        def launch():
            out.copy_(inp)
            self.mistake(out)

        return launch


def refuse(*_arguments, **_keywords):
    raise ValueError("inp is too beautiful")


ROWS = sampled_rows(2000, CPU)


def copy_case(**functions):
    return Case(
        op="copy",
        shape={"N": 2000, "F": 3},
        make=lambda draw: Buffers(out=draw.unwritten(2000, 3), inp=draw.normal(2000, 3)),
        outputs=("out",),
        ours=launchers(functions, lambda b: (b.out, b.inp)),
        theirs={"torch": lambda b: lambda: b.inp.clone()},
        reference=lambda b: (Expected(b.inp[ROWS].double(), ROWS),),
        n_bytes=24_000,
    )


def test_a_wrong_kernel_is_found():
    last, unchecked = int(ROWS[-1]), next(i for i in range(2000) if i not in ROWS)
    found = check(
        copy_case(
            right=Launcher(),
            off=Launcher(lambda out: out[last].add_(0.5)),
            unwritten=Launcher(lambda out: out[unchecked].fill_(float("nan"))),
            refused=type("Refusing", (), {"prepare": staticmethod(refuse)}),
        ),
        CPU,
        0,
    )
    assert set(found.wrong) == {"off", "unwritten"}
    assert "out has an error of 0.5" in found.wrong["off"]
    assert found.wrong["unwritten"] == "out is not finite everywhere"
    assert found.refused == {"refused": "inp is too beautiful"}
    assert (found.errors["right"], found.baseline_error) == (0.0, 0.0)


def test_an_error_may_be_twice_that_of_torch():
    wrong = {"ours": Launcher(lambda out: out.add_(0.5))}
    rough = {"torch": lambda b: lambda: b.inp + 0.3}
    assert not check(dataclasses.replace(copy_case(**wrong), theirs=rough), CPU, 0).wrong
    rough = {"torch": lambda b: lambda: b.inp + 0.2}
    assert check(dataclasses.replace(copy_case(**wrong), theirs=rough), CPU, 0).wrong


def test_a_failing_op_is_reported_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    def broken(*_arguments, **_keywords):
        raise RuntimeError("the GPU is on fire")

    monkeypatch.setattr(memory.copy, "prepare", broken)
    with pytest.raises(Gpt2EduError, match="1 failed, .*\n  copy N=16 F=64: RuntimeError: the GPU is on fire"):
        run("memory", output=tmp_path)
    assert "Traceback" in capsys.readouterr().out
    (found,) = load_results("memory", tmp_path)
    assert {row["op"] for row in found.rows} == {"zero", "cast"}


def test_a_wrong_variant_gets_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.copy, "prepare", lambda out, inp, stream: lambda: out.zero_())
    with pytest.raises(Gpt2EduError, match="copy N=16 F=64 production: out has an error of"):
        run("copy", output=tmp_path)
    (found,) = load_results("copy", tmp_path)
    assert {row["variant"] for row in found.rows} <= {"torch", "torch.compile"}


# ---- rows and comparison -------------------------------------------------------------------------------------------


def test_rows_relate_to_the_ceilings_and_to_the_fastest_of_torch():
    case = copy_case(production=Launcher())
    case = dataclasses.replace(case, theirs=case.theirs | {"torch.compile": case.theirs["torch"]})
    checked = check(case, CPU, 0)
    timings = {"production": Timing([0.2, 0.1, 0.4], 0.3), "torch": Timing([0.5]), "torch.compile": Timing([0.25])}
    ours, torch_row, compiled = bench_kernels.make_rows(case, checked, timings, {"copy_gb_per_s": 0.24})
    assert (ours["median_ms"], ours["min_ms"], ours["max_ms"], ours["n_runs"]) == (0.2, 0.1, 0.4, 3)
    assert ours["gb_per_s"] == pytest.approx(0.12) and ours["ceiling_share"] == pytest.approx(0.5)
    assert (ours["torch_ms"], ours["torch_ratio"], ours["sustained_ms"]) == (0.25, 1.25, 0.3)
    assert (torch_row["torch_ratio"], compiled["torch_ratio"]) == (0.5, 1.0)


def test_compare_finds_the_rows_of_an_earlier_file(tmp_path, capsys):
    assert run("copy", output=tmp_path) == 0
    (path,) = tmp_path.iterdir()
    before = json.loads(path.read_text())
    for row in before["rows"]:
        row |= {"min_ms": 0.0, "median_ms": 1e6, "max_ms": 2e6}
    path.write_text(json.dumps(before))
    capsys.readouterr()
    assert run("copy", "--compare", str(path), output=tmp_path / "now") == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("copy N=16 F=64 bf16 production")]
    label, old, now, ratio = line.rsplit(maxsplit=3)
    assert float(old) == 1e6 and float(ratio) == pytest.approx(1e6 / float(now), rel=0.01)


def test_draws_repeat_and_tokens_are_uneven():
    first, second = (Draw(CPU).tokens(500, 4, 1000) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.int32 and first.max() < 500
    counts = first.flatten().bincount(minlength=500).sort(descending=True).values
    assert counts[0] > 5 * counts[20] > 0


def test_progress_says_how_long_it_will_take(monkeypatch, capsys):
    clock = iter([100.0, 101.0, 110.0])
    monkeypatch.setattr(bench_kernels.time, "perf_counter", lambda: next(clock))
    progress = bench_kernels.Progress(5)
    progress.say("first")
    progress.n_done = 2
    progress.say("third")
    first, third = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/5    1 s") and "left" not in first and first.endswith("] first")
    assert third == "[3/5   10 s   15 s left] third"  # 10 s for two, so 15 s for three
