"""Schedules of the learning rate against timm's and torch's, at every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch.optim.lr_scheduler import OneCycleLR

from deitctl.config import OptimConfig
from deitctl.recipes import SMALL
from deitctl.training.schedule import compute_lr, compute_lr_with_restarts

EPOCHS, STEPS = 10, 7
TIMM = {"linear": {"sched": "poly", "decay_rate": 1.0}}


def optim(**changes: object) -> OptimConfig:
    values = {"lr": 1e-2, "lr_base_size": 0, "min_lr": 1e-4, "warmup_lr": 1e-3, "warmup_epochs": 2}
    return replace(SMALL.optim, **{**values, **changes})


def list_rates(config: OptimConfig, count: int = EPOCHS * STEPS) -> list[float]:
    return [
        compute_lr(config, step=step, steps_per_epoch=STEPS, epochs=EPOCHS, batch_size=8)
        for step in range(count)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"sched": "cosine"},
        {"sched": "linear"},
        {"sched": "constant"},
        {"sched": "wsd"},
        {"sched": "wsd", "decay_epochs": 3.0, "decay_fn": "linear"},
        {"sched": "wsd", "decay_epochs": 0.4, "decay_fn": "cosine", "warmup_epochs": 0},
    ],
)
def test_a_rate_is_timms_at_every_step(changes):
    config = optim(**changes)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    arguments = {"sched": config.sched, "decay_epochs": config.decay_epochs}
    arguments |= {"decay_fn": config.decay_fn, **TIMM.get(config.sched, {})}
    scheduler, _ = create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        min_lr=config.min_lr,
        warmup_lr=config.warmup_lr,
        warmup_epochs=int(config.warmup_epochs),
        step_on_epochs=False,
        updates_per_epoch=STEPS,
        **arguments,
    )
    timms = []
    for step in range(EPOCHS * STEPS):
        scheduler.step_update(step)
        timms.append(optimizer.param_groups[0]["lr"])
    assert list_rates(config) == pytest.approx(timms, rel=1e-12)


@pytest.mark.parametrize("pct_start", [0.3, 0.5])
def test_one_cycle_is_torchs_at_every_step(pct_start):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-2)
    total = EPOCHS * STEPS
    scheduler = OneCycleLR(optimizer, 1e-2, total, pct_start=pct_start, cycle_momentum=False)
    torchs = []
    for _ in range(total):
        torchs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(torchs) < total:
            scheduler.step()
    assert list_rates(optim(sched="onecycle", pct_start=pct_start)) == pytest.approx(
        torchs, rel=1e-9
    )


@pytest.mark.parametrize("sched", ["cosine", "linear", "wsd", "constant", "onecycle"])
def test_a_schedule_begins_again_with_more_epochs_and_stays_between_its_ends(sched):
    config = optim(sched=sched, decay_epochs=2.0)
    recipe = replace(SMALL, epochs=15, restart_epochs=(10,), batch_size=8, optim=config)
    rates = [
        compute_lr_with_restarts(recipe, step=step, steps_per_epoch=STEPS)
        for step in range(15 * STEPS)
    ]
    assert rates[: 10 * STEPS] == list_rates(config)
    again = rates[10 * STEPS :]
    assert max(again) == pytest.approx(
        max(rates[: 10 * STEPS]), rel=0.1
    )  # a cosine's top is in its warm-up
    assert again[0] == pytest.approx(rates[0])
    assert all(1e-8 < rate <= 1e-2 for rate in rates)


@pytest.mark.parametrize("sched", ["wsd", "onecycle", "cosine"])
@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 3), (2, 2)])
def test_a_schedule_of_few_steps_has_a_rate_for_each(sched, epochs, warmup):
    config = optim(sched=sched, warmup_epochs=warmup)
    for steps in (1, 2):
        for step in range(epochs * steps + 1):
            rate = compute_lr(config, step=step, steps_per_epoch=steps, epochs=epochs, batch_size=8)
            assert 0 < rate <= 1e-2
