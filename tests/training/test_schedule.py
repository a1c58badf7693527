import dataclasses

import pytest
import torch
from torch import nn

from irevnet.training import train
from irevnet.training.schedule import learning_rate
from recipes import config, network

SCHEDULES = {
    "onecycle": {"schedule": "onecycle"},
    "step": {"schedule": "step", "milestones": (1, 3), "decay": 0.5},
}


def learning_rates(settings, epochs, steps_per_epoch):
    """The learning rate of every step."""

    settings = dataclasses.replace(settings, epochs=epochs)
    peak, steps = settings.learning_rate, range(epochs * steps_per_epoch)
    return [learning_rate(settings, peak, step, steps_per_epoch) for step in steps]


def test_the_papers_steps_for_cifar10():
    settings = config(
        epochs=200, learning_rate=0.1, schedule="step", milestones=(60, 120, 160), decay=0.2
    )
    rates = learning_rates(settings, 200, 3)
    expected = [0.1] * 180 + [0.02] * 180 + [0.004] * 120 + [0.0008] * 120
    assert rates == pytest.approx(expected, rel=1e-12)


def test_onecycle_rises_linearly_to_the_peak_and_falls_linearly_to_nothing():
    rates = learning_rates(config(learning_rate=0.4, warmup=0.25), 10, 10)
    peak = 0.25 * 101 - 1  # in steps from the first
    for step, rate in enumerate(rates):
        if step <= peak:
            expected = 0.016 + (0.4 - 0.016) * step / peak
        else:
            expected = 0.4 * (100 - step) / (100 - peak)
        assert rate == pytest.approx(expected, abs=2e-6)  # the last rate is 1.6e-6
    assert max(rates) == pytest.approx(0.4, rel=0.01)
    assert rates[-1] < 0.4 / 70


@pytest.mark.parametrize("warmup", [0.01, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_onecycle_of_a_few_steps(steps, warmup):
    rates = learning_rates(config(learning_rate=0.4, warmup=warmup), 1, steps)
    assert all(0 < rate <= 0.4 for rate in rates)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_hold_the_learning_rate_of_the_last_step(digits, schedule):
    settings = config(epochs=4, **SCHEDULES[schedule])
    history = train(network(), digits, settings)
    expected = learning_rates(settings, 4, 4)[3::4]
    assert [row["learning_rate"] for row in history] == expected


def test_onecycle_is_that_of_torch():
    recipe = config(epochs=5, learning_rate=0.3, warmup=0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=36,
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    for rate in learning_rates(recipe, 5, 7):
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
