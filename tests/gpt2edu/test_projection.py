"""The projection to the A100, on made-up measurements: shares stay, ceilings change, and every line adds up."""

import re

import pytest

from gpt2edu import projection, readme_tables, show_run
from gpt2edu.errors import Gpt2EduError
from gpt2edu.plan import make_plan
from gpt2edu.projection import A100, Ceilings, find_measured, kernel_ms, project, run_table
from gpt2edu.results import write_results

GPU = "NVIDIA H100 80GB HBM3"
SHAPE = {"B": 64, "T": 1024, "tokens": 524_288, "L": 12, "C": 768}
SQUARE = {"M": 8192, "N": 8192, "K": 8192}


def row(op, ms, shape=SHAPE, variant="production", **rate):
    times = {"median_ms": ms, "min_ms": ms, "max_ms": ms}
    return {"op": op, "variant": variant, "dtype": "bf16", "shape": shape, **times, **rate}


PROFILE = [
    row("matmul_forward", 800.0, tflop_per_s=400.0),
    row("attention_backward", 160.0, tflop_per_s=250.0),
    row("layernorm_backward", 30.0, gb_per_s=2700.0),
    row("adamw_update", 1.6, gb_per_s=2900.0),
    row("copies and fills", 0.3),
    row("zero", 0.4, gb_per_s=1500.0),
    row("total", 0.1),
    row("idle", 5.0),
    row("step", 997.4),
]
PRODUCTS = [
    row("matmul_forward", 1.0, {"M": 65536, "N": 3072, "K": 768}, "step7_multistage", tflop_per_s=520.0),
    row("matmul_forward", 1.0, SQUARE, "step7_multistage", tflop_per_s=480.0),
    row("matmul_grad_input", 1.0, SQUARE, "step7_multistage", tflop_per_s=500.0),
    row("matmul_grad_input", 1.0, SQUARE, "production", tflop_per_s=790.0),
    row("matmul_grad_input", 1.0, SQUARE, "cublas", tflop_per_s=780.0),
]


def write(folder, profile=PROFILE, products=PRODUCTS, gpu=GPU):
    about = {"gpu": gpu, "driver": "580", "command": "x", "folder": folder}
    ceilings = {"copy_gb_per_s": 3000.0, "matmul_tflop_per_s": 680.0}
    write_results("profile_sm_80", profile, ceilings, **about)
    write_results("matmul", products, ceilings, **about)


@pytest.fixture
def measured(tmp_path):
    write(tmp_path)
    return find_measured(tmp_path)


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.?\d*", text.replace(",", ""))]


def test_ceilings_are_the_fastest_square_of_this_path_and_the_copy(measured):
    assert measured.ceilings == Ceilings(500.0, 3000.0)
    assert measured.product["op"] == "matmul_grad_input"


def test_without_squares_the_fastest_product_counts(tmp_path):
    write(tmp_path, products=[PRODUCTS[0], PRODUCTS[3]])
    assert find_measured(tmp_path).ceilings.tflop_per_s == 520.0


@pytest.mark.parametrize(
    "change",
    [{"products": PRODUCTS[3:]}, {"profile": [row("step", 1.0, SHAPE | {"B": 16})]}, None],
    ids=["no product", "other shape", "no file"],
)
def test_what_is_not_measured_is_one_line(tmp_path, change):
    if change:
        write(tmp_path, **change)
    with pytest.raises(Gpt2EduError, match=r"\Aprojection to the A100: not measured yet[^\n]*\Z"):
        find_measured(tmp_path)


def test_products_and_profile_are_of_one_gpu(tmp_path):
    write(tmp_path, products=PRODUCTS[3:])
    write(tmp_path, profile=[row("step", 1.0, SHAPE | {"B": 16})], gpu="NVIDIA H200")
    with pytest.raises(Gpt2EduError):
        find_measured(tmp_path)


@pytest.mark.parametrize("case", A100)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_kernel_keeps_its_share_of_the_ceiling(measured, case, place):
    kernel = PROFILE[place]
    rate = "tflop_per_s" if "tflop_per_s" in kernel else "gb_per_s"
    here, there = getattr(measured.ceilings, rate), getattr(A100[case], rate)
    work = kernel[rate] * kernel["median_ms"]
    there_rate = work / kernel_ms(measured, kernel, case)
    assert there_rate / there == pytest.approx(kernel[rate] / here)


def test_one_gpu_by_hand(measured):
    found = project(measured, "low", 1)
    by_memory = (30 + 1.6 + 0.3 + 0.4 + 0.1) * 3000 / 1600
    assert found.step_ms == pytest.approx(960 * 500 / 230 + by_memory + 5)
    assert found.exposed_ms == 0
    minutes = projection.minutes_of(found.step_ms)
    assert minutes == pytest.approx(18_865 * found.step_ms / 60_000)
    assert projection.dollars_of(found.step_ms, 1) == pytest.approx(minutes / 60 * 1.75)


def test_eight_gpus_share_the_kernels_but_not_what_each_does_nor_the_host(measured):
    one, eight = (project(measured, "high", n_gpus) for n_gpus in (1, 8))
    assert eight.own_ms == pytest.approx(0.5 * 3000 / 1709)
    assert (eight.shared_ms, eight.idle_ms) == (one.shared_ms, 5.0)
    # 498 MB of gradients, of which 158 MB are the last bucket, and 249 MB of weights, at 0.8 x 300 GB/s
    assert 1.4 < eight.exposed_ms < 1.8
    assert eight.step_ms == pytest.approx(one.shared_ms / 8 + eight.own_ms + 5.0 + eight.exposed_ms)


def test_the_low_case_is_the_slow_one(measured):
    low, high = (project(measured, case, 8) for case in A100)
    assert low.step_ms > high.step_ms
    assert projection.mfu_of(low.step_ms, 8) < projection.mfu_of(high.step_ms, 8) < 1


def test_the_recipe_recomputes_nothing_on_an_a100():
    for n_gpus in (1, 8):
        plan = make_plan(show_run.rented_machine("A100", 80, n_gpus), "gpt2-124m")
        assert (plan.micro_batch, plan.recompute) == (projection.PROFILED["B"], 0)


def test_every_line_of_the_tables_adds_up(measured):
    for cells in projection.kernel_table(measured).rows[:-1]:
        for sum_of in cells[3:]:
            ms, here, there, result = numbers(sum_of)
            assert result == pytest.approx(ms * here / there, abs=0.06 * here / there + 0.06)
    for name, sum_of, minutes, dollars, _ in run_table(measured).rows[:-1]:
        shared, n_gpus, own, idle, exposed, result = numbers(sum_of)
        assert name.startswith(f"{n_gpus:.0f} x A100")
        assert result == pytest.approx(shared / n_gpus + own + idle + exposed, abs=0.3)
        assert numbers(minutes)[-1] == pytest.approx(result * 18_865 / 60_000, abs=0.6)
        assert numbers(dollars)[-1] == pytest.approx(numbers(minutes)[-1] * n_gpus * 1.75 / 60, abs=0.8)


def test_the_published_run_stands_beside_it(measured):
    assert run_table(measured).rows[-1][1:] == [
        "300",
        "x 18,865 / 60,000 = 94",
        "x 8 x 1.75 / 60 = 22",
        "56%",
    ]


@pytest.mark.parametrize(
    ("factor", "words"), [(1.0, "in neither case"), (1.08, "in the low case"), (2.0, "in both cases")]
)
def test_more_than_90_minutes_are_said(tmp_path, factor, words):
    write(tmp_path, profile=[{**r, **{k: factor * r[k] for k in ("median_ms", "min_ms", "max_ms")}} for r in PROFILE])
    assert f"{words} more than 90" in projection.verdict(find_measured(tmp_path))


def test_the_command_says_what_is_measured_and_what_is_not(tmp_path, capsys):
    write(tmp_path)
    projection.main(["--results", str(tmp_path)])
    printed = capsys.readouterr().out
    for words in (
        GPU,
        "Projection, not run",
        "500.0 TFLOP/s (matmul_grad_input 8192 x 8192 x 8192, step7_multistage)",
        "400 / 500 = 80%",
    ):
        assert words in printed


def test_chapter_and_readme_show_it_or_say_that_it_is_missing(tmp_path, measured, monkeypatch):
    for module in (show_run, readme_tables, projection):
        monkeypatch.setattr(module, "find_measured", lambda: measured)
    table = show_run.show_projection()
    assert [row[0] for row in table.rows[:2]] == ["1 x A100, low", "1 x A100, high"]
    assert "Projection, not run" in table.caption
    assert projection.verdict(measured) in readme_tables.projection_table()
    assert len(show_run.show_projection(projection.kernel_table).rows) == len(PROFILE) - 1
    assert projection.projection_line().startswith(projection.verdict(measured))
    for module in (show_run, readme_tables, projection):
        monkeypatch.setattr(module, "find_measured", lambda: find_measured(tmp_path / "empty"))
    assert "not measured yet" in repr(show_run.show_projection()) and "\n" not in projection.projection_line()
    assert readme_tables.projection_table() == ""
