"""The learning rate by hand and against timm; what decays and what does not."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from deitctl.config import OptimConfig
from deitctl.optim import (
    NO_DECAY_TOKENS,
    build_optimizer,
    learning_rate,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)
from deitctl.recipes import PAPER, PAPER_384, RECIPES


def config(**changes: float) -> OptimConfig:
    values = {"lr": 1e-3, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_epochs": 2, "weight_decay": 0.05}
    return OptimConfig(**{**values, **changes})


def test_rate_scales_with_the_batch():
    assert peak_learning_rate(PAPER.optim, 1024) == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
    assert peak_learning_rate(PAPER.optim, 64) == pytest.approx(6.25e-5)
    assert peak_learning_rate(PAPER_384.optim, 512) == pytest.approx(5e-6)


def test_schedule_by_hand():
    def rate(step: int) -> float:
        return learning_rate(config(), step=step, steps_per_epoch=10, epochs=8, batch_size=512)

    assert rate(0) == pytest.approx(1e-6)
    assert rate(10) == pytest.approx((1e-6 + 1e-3) / 2)  # half of the warm-up
    assert rate(40) == pytest.approx((1e-3 + 1e-5) / 2)  # half of the cosine, which counts from step 0
    assert rate(20) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(80) == pytest.approx(1e-5)
    assert rate(1000) == pytest.approx(1e-5)  # and stays there


@pytest.mark.parametrize("recipe", [PAPER, RECIPES["digits"], RECIPES["finetune"]], ids=lambda r: r.name)
def test_schedule_equals_timms_at_every_epoch(recipe):
    peak = peak_learning_rate(recipe.optim, recipe.batch_size)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=recipe.epochs, lr_min=recipe.optim.min_lr, warmup_t=int(recipe.optim.warmup_epochs),
        warmup_lr_init=recipe.optim.warmup_lr,
    )  # fmt: skip
    for epoch in range(recipe.epochs):
        scheduler.step(epoch)
        ours = learning_rate(
            recipe.optim, step=7 * epoch, steps_per_epoch=7, epochs=recipe.epochs, batch_size=recipe.batch_size
        )
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), epoch


def test_the_384_recipe_is_constant_after_the_warm_up():
    rates = {
        learning_rate(PAPER_384.optim, step=s, steps_per_epoch=10, epochs=30, batch_size=512) for s in range(50, 300)
    }
    assert max(rates) == pytest.approx(5e-6)
    assert min(rates) == pytest.approx(5e-6)


@given(
    step=st.integers(0, 2000), steps=st.integers(1, 50), epochs=st.integers(1, 40), warmup=st.floats(0, 10),
    batch=st.integers(1, 4096),
)  # fmt: skip
def test_rate_stays_between_its_bounds(step, steps, epochs, warmup, batch):
    optim = config(warmup_epochs=warmup)
    rate = learning_rate(optim, step=step, steps_per_epoch=steps, epochs=epochs, batch_size=batch)
    peak = peak_learning_rate(optim, batch)
    assert min(peak, optim.min_lr, optim.warmup_lr) <= rate <= max(peak, optim.min_lr, optim.warmup_lr) * (1 + 1e-12)


@given(steps=st.integers(1, 30), epochs=st.integers(1, 30))
def test_rate_never_rises_after_the_warm_up(steps, epochs):
    optim = config(warmup_epochs=1)
    rates = [
        learning_rate(optim, step=s, steps_per_epoch=steps, epochs=epochs, batch_size=512)
        for s in range(steps, steps * epochs + 1)
    ]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("alias", ["deit_tiny_distilled", "deit3_small"])
def test_groups_equal_timms_with_the_tokens_named(alias, deit):
    model = deit(alias)
    ours = parameter_groups(model, 0.05)
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=NO_DECAY_TOKENS)
    decays = {g["weight_decay"]: {id(p) for p in g["params"]} for g in ours}
    assert decays == {g["weight_decay"]: {id(p) for p in g["params"]} for g in theirs}
    assert set(decays) == {0.05, 0.0}


def test_tokens_timm_excludes_are_ours():
    names = timm.create_model("deit_tiny_distilled_patch16_224").no_weight_decay()
    assert names - {"reg_token"} == set(NO_DECAY_TOKENS)  # a DeiT has no registers


def test_frozen_parameters_are_left_out(deit):
    model = deit()
    model.pos_embed.requires_grad_(False)
    grouped = [p for g in parameter_groups(model, 0.05) for p in g["params"]]
    assert len(grouped) == len(list(model.parameters())) - 1
    assert all(p is not model.pos_embed for p in grouped)


def test_optimizer_starts_at_the_warm_up_rate_and_takes_a_new_one(deit):
    optimizer = build_optimizer(deit(), config())
    assert {g["lr"] for g in optimizer.param_groups} == {1e-6}
    set_learning_rate(optimizer, 0.25)
    assert {g["lr"] for g in optimizer.param_groups} == {0.25}


def test_decay_shrinks_matrices_and_leaves_biases():
    model = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    optimizer = build_optimizer(model, config(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    model.weight.grad, model.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 2), 0.95))  # 1 - lr x decay
    torch.testing.assert_close(model.bias.detach(), torch.ones(2))
