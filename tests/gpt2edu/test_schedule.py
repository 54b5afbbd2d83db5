"""The four schedules against values worked out by hand and against torch's own schedulers."""

import pytest
import torch

from gpt2edu.schedule import SCHEDULERS, learning_rate_at


def rates(scheduler, n_steps=100, warmup_steps=10, final_fraction=0.1, peak=6e-4):
    return [
        learning_rate_at(
            step,
            scheduler=scheduler,
            peak=peak,
            warmup_steps=warmup_steps,
            n_steps=n_steps,
            final_fraction=final_fraction,
        )
        for step in range(n_steps)
    ]


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak_in_its_last_step(scheduler):
    assert rates(scheduler)[:10] == pytest.approx([6e-4 * n / 10 for n in range(1, 11)])


def test_constant_has_no_warmup():
    assert rates("constant") == [6e-4] * 100


@pytest.mark.parametrize(
    ("scheduler", "reference"),
    [
        ("cosine", lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=90, eta_min=6e-5)),
        ("linear", lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=90)),
    ],
)
def test_decay_is_that_of_torch(scheduler, reference):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=6e-4)
    schedule = reference(optimizer)
    expected = []
    for _ in range(90):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(scheduler)[10:] == pytest.approx(expected)


def test_wsd_stays_at_the_peak_until_four_fifths_then_falls_by_the_square_root():
    values = rates("wsd")
    assert values[10:81] == pytest.approx([6e-4] * 71)
    assert values[85] == pytest.approx(6e-5 + (1 - 0.5) * 5.4e-4)  # a quarter of the decay is done
    assert values[99] == pytest.approx(6e-5 + (1 - 0.95**0.5) * 5.4e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("n_steps", "warmup_steps"), [(1, 0), (2, 5), (5, 5), (7, 6)])
def test_short_runs_have_rates_between_zero_and_the_peak(scheduler, n_steps, warmup_steps):
    for rate in rates(scheduler, n_steps, warmup_steps, final_fraction=0.0):
        assert 0.0 < rate <= 6e-4
