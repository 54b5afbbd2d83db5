import pytest

from gpt2edu.errors import UsageError
from gpt2edu.machine import Gpu, Machine
from gpt2edu.plan import choice_lines, large_work, make_plan, memory_bytes, plan_text
from gpt2edu.presets import PRESETS

GIB = 2**30


def machine(n_gpus=0, name="NVIDIA A100-SXM4-80GB", gib=80, n_cores=2):
    return Machine((Gpu(name, gib * GIB, (8, 0)),) * n_gpus, "580.95.05", (13, 0), "a processor", n_cores, 16 * GIB)


def flags_of(plan):
    flags = plan.train_flags
    return dict(zip(flags[::2], flags[1::2], strict=True))


def test_the_original_recipe():
    post = (  # the command of the post, files and -r (by memory) aside
        "-e d12 -b 64 -t 1024 -d 524288 -z 1 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -v 250 -s 20000 -h 1"
    ).split()
    plan = make_plan(machine(8))
    assert plan.preset.name == "gpt2-124m"
    flags = flags_of(plan)
    assert {flag: flags[flag] for flag in post[::2]} == dict(zip(post[::2], post[1::2], strict=True))
    assert flags["-x"] == "18865" and flags["--order-ranks"] == "8" and flags["--order-batch"] == "64"
    assert plan.n_micro_steps == 1
    assert plan.preset.tokens == 9_890_693_120
    assert plan.training_flop == pytest.approx(7.95e18, rel=1e-3)  # 18,865 x 524,288 x 803,478,528


def test_other_recipes_of_llm_c():
    lengths = {name: (preset.settings.max_steps, preset.settings.model) for name, preset in PRESETS.items()}
    assert lengths["gpt2-350m"] == (60_000, "d24")
    assert lengths["gpt2-774m"] == (286_102, "d36")
    assert lengths["gpt2-1558m"] == (32_000, "d48")
    for preset in PRESETS.values():
        settings = preset.settings
        assert settings.total_batch % (preset.micro_batch * settings.seq_len) == 0
        if settings.order_ranks:
            assert settings.total_batch % (settings.order_ranks * settings.order_batch * settings.seq_len) == 0
            assert settings.order_batch == preset.micro_batch


def test_one_gpu_does_the_same_step_in_more_micro_steps():
    plan = make_plan(machine(1))
    assert "-z" not in plan.train_flags
    assert plan.n_micro_steps == 8
    assert plan.micro_batch * plan.n_micro_steps * 1024 == 524_288


def test_processes_that_mpirun_started_are_taken_as_they_are():
    plan = make_plan(machine(8), launched=16)  # two such machines
    assert (plan.world_size, plan.n_gpus, plan.n_micro_steps) == (16, 16, 1)
    assert plan.micro_batch == 32
    assert choice_lines(plan)[0].startswith("16 GPUs of several machines")
    with pytest.raises(UsageError, match="3 processes cannot share 512 sequences"):
        make_plan(machine(8), launched=3)
    on_processors = make_plan(machine(), "smoke", launched=2)
    assert (on_processors.world_size, on_processors.n_gpus, on_processors.micro_batch) == (2, 0, 8)


@pytest.mark.parametrize(("there", "limit", "used"), [(8, None, 8), (8, 2, 2), (7, None, 4), (3, None, 2), (6, 5, 4)])
def test_number_of_gpus(there, limit, used):
    plan = make_plan(machine(there), max_gpus=limit)
    assert plan.n_gpus == used
    assert (f"({used} of them used)" in choice_lines(plan)[0]) == (used < there)


def test_no_gpu_takes_the_laptop_preset():
    for plan in (make_plan(machine()), make_plan(machine(8), max_gpus=0), make_plan(machine(1, gib=2))):
        assert plan.preset.name == "laptop"
        assert plan.world_size == 1
    assert "--device cpu" in " ".join(make_plan(machine(8), max_gpus=0).train_flags)
    assert make_plan(machine(), "gpt2-124m").preset.name == "gpt2-124m"


def test_memory_chooses_micro_batch_and_recomputation():
    measured_gib = 28.9  # of torch.compile with B=64, T=1024 on GPT-2 124M
    estimate = memory_bytes(PRESETS["gpt2-124m"].model, 64, 1024) / GIB
    assert measured_gib < estimate < 1.2 * measured_gib
    chosen = [make_plan(machine(1, gib=gib)) for gib in (80, 36, 24, 16, 8)]
    assert [plan.micro_batch for plan in chosen] == sorted((plan.micro_batch for plan in chosen), reverse=True)
    assert (chosen[0].micro_batch, chosen[0].recompute) == (64, 0)
    assert (chosen[1].micro_batch, chosen[1].recompute) == (64, 1)
    for plan in chosen:
        assert plan.memory_bytes < plan.machine.gpus[0].memory_bytes
    with pytest.raises(UsageError, match="gpt2-1558m needs"):
        make_plan(machine(1, gib=24), "gpt2-1558m")


def test_sharded_moments_take_less_memory():
    model = PRESETS["gpt2-1558m"].model
    saved = memory_bytes(model, 1, 1024) - memory_bytes(model, 1, 1024, world_size=8)
    assert saved == pytest.approx(1_557_686_400 * 8 * 7 / 8, rel=1e-3)


def test_hours_and_dollars():
    plan = make_plan(machine(8))
    total = plan.training_flop + plan.evaluation_flop
    assert plan.hours == pytest.approx(total / (8 * 312e12 * 0.45 * 0.95) / 3600)
    assert plan.dollars == pytest.approx(plan.hours * 8 * 1.75)
    assert make_plan(machine(8), gpu_price=2.0).dollars == pytest.approx(plan.hours * 16)


@pytest.mark.parametrize(
    ("name", "price", "known"),
    [
        ("NVIDIA A100-PCIE-40GB", 1.30, True),
        ("NVIDIA GH200 480GB", 3.80, True),
        ("NVIDIA A10G", None, True),  # no A10
        ("NVIDIA GeForce GTX 1080", None, False),
    ],
)
def test_price_and_speed_by_name(name, price, known):
    plan = make_plan(machine(1, name, gib=40))
    assert plan.dollars_per_hour == price
    assert (plan.hours is not None) == known


def test_large_work_needs_consent():
    assert large_work(make_plan(machine()), data_ready=False) == []
    reasons = large_work(make_plan(machine(8)), data_ready=False)
    assert len(reasons) == 3
    assert any("hours" in reason for reason in reasons) and any("GB" in reason for reason in reasons)
    assert len(large_work(make_plan(machine(8)), data_ready=True)) == 2  # checkpoints alone are below 10 GB
    assert large_work(make_plan(machine(1, "NVIDIA GeForce GTX 1080")), data_ready=True)  # unknown speed


@pytest.mark.parametrize("name", PRESETS)
def test_plan_in_words(name):
    text = plan_text(make_plan(machine(8), name))
    for word in ("tokens", "FLOP", "memory", "disk", "about"):
        assert word in text
    assert "$" in text
    assert ("H100 80GB" in text) == name.startswith("gpt2")
    assert all(len(line) <= 120 or "command" in line for line in text.splitlines())


def test_unknown_preset():
    with pytest.raises(UsageError, match="--preset gpt5: there are gpt2-124m"):
        make_plan(machine(), "gpt5")
