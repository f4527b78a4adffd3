"""The learning rate and the EMA by hand and against timm; what decays and what does not."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from deitctl.config import OptimConfig
from deitctl.models.introspect import get_layer_ids
from deitctl.recipes import PAPER, PAPER_384, RECIPES
from deitctl.training.ema import ExponentialMovingAverage, compute_ema_decay
from deitctl.training.optim import (
    NO_DECAY_TOKENS,
    build_optimizer,
    build_param_groups,
    set_learning_rate,
)
from deitctl.training.schedule import compute_lr, compute_peak_lr


def config(**changes: float) -> OptimConfig:
    values = {
        "lr": 1e-3,
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "warmup_epochs": 2,
        "weight_decay": 0.05,
    }
    return OptimConfig(**{**values, **changes})


def test_rate_scales_with_the_batch():
    assert compute_peak_lr(PAPER.optim, 1024) == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
    assert compute_peak_lr(PAPER.optim, 64) == pytest.approx(6.25e-5)
    assert compute_peak_lr(PAPER_384.optim, 512) == pytest.approx(5e-6)


def test_schedule_by_hand():
    def rate(step: int) -> float:
        return compute_lr(config(), step=step, steps_per_epoch=10, epochs=8, batch_size=512)

    assert rate(0) == pytest.approx(1e-6)
    assert rate(10) == pytest.approx((1e-6 + 1e-3) / 2)  # half of the warm-up
    # half of the cosine, which counts from step 0
    assert rate(40) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(20) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(80) == pytest.approx(1e-5)
    assert rate(1000) == pytest.approx(1e-5)  # and stays there


@pytest.mark.parametrize(
    "recipe", [PAPER, RECIPES["digits"], RECIPES["finetune"]], ids=lambda r: r.name
)
def test_schedule_equals_timms_at_every_epoch(recipe):
    peak = compute_peak_lr(recipe.optim, recipe.batch_size)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs,
        lr_min=recipe.optim.min_lr,
        warmup_t=int(recipe.optim.warmup_epochs),
        warmup_lr_init=recipe.optim.warmup_lr,
    )
    for epoch in range(recipe.epochs):
        scheduler.step(epoch)
        ours = compute_lr(
            recipe.optim,
            step=7 * epoch,
            steps_per_epoch=7,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
        )
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), epoch


def test_the_384_recipe_is_constant_after_the_warm_up():
    rates = {
        compute_lr(PAPER_384.optim, step=s, steps_per_epoch=10, epochs=30, batch_size=512)
        for s in range(50, 300)
    }
    assert max(rates) == pytest.approx(5e-6)
    assert min(rates) == pytest.approx(5e-6)


@given(
    step=st.integers(0, 2000),
    steps=st.integers(1, 50),
    epochs=st.integers(1, 40),
    warmup=st.floats(0, 10),
    batch=st.integers(1, 4096),
)
def test_rate_stays_between_its_bounds(step, steps, epochs, warmup, batch):
    optim = config(warmup_epochs=warmup)
    rate = compute_lr(optim, step=step, steps_per_epoch=steps, epochs=epochs, batch_size=batch)
    peak = compute_peak_lr(optim, batch)
    assert (
        min(peak, optim.min_lr, optim.warmup_lr)
        <= rate
        <= max(peak, optim.min_lr, optim.warmup_lr) * (1 + 1e-12)
    )


@given(steps=st.integers(1, 30), epochs=st.integers(1, 30))
def test_rate_never_rises_after_the_warm_up(steps, epochs):
    optim = config(warmup_epochs=1)
    rates = [
        compute_lr(optim, step=s, steps_per_epoch=steps, epochs=epochs, batch_size=512)
        for s in range(steps, steps * epochs + 1)
    ]
    assert rates == sorted(rates, reverse=True)


def by_name(model, groups):
    """Rate factor and weight decay of each parameter."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (g.get("lr_scale", 1.0), g["weight_decay"])
        for g in groups
        for p in g["params"]
    }


@pytest.mark.parametrize("alias", ["deit_tiny_distilled", "deit3_small"])
def test_groups_equal_timms_with_the_tokens_named(alias, deit):
    model = deit(alias)
    ours = build_param_groups(model, config(), get_layer_ids(model))
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=NO_DECAY_TOKENS)
    assert by_name(model, ours) == by_name(model, theirs)
    assert sorted(g["weight_decay"] for g in ours) == [0.0, 0.05]
    assert {g["lr_scale"] for g in ours} == {1.0}


@pytest.mark.parametrize("alias", ["deit_tiny_distilled", "deit_tiny"])
def test_layer_decay_equals_timms_on_its_own_deit(alias, deit):
    """But for the last norm, which is in the layer of the heads, as in BEiT's code (optim_factory.py)."""
    model, name = (
        deit(alias),
        {"deit_tiny": "deit_tiny_patch16_224"}.get(alias, "deit_tiny_distilled_patch16_224"),
    )
    theirs = timm.create_model(name, num_classes=5, img_size=32)
    expected = by_name(
        theirs, param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.7)
    )
    ours = by_name(model, build_param_groups(model, config(layer_decay=0.7), get_layer_ids(model)))
    assert ours.keys() == expected.keys()
    norm = {"norm.weight", "norm.bias"}
    assert {k: v for k, v in ours.items() if k not in norm} == {
        k: v for k, v in expected.items() if k not in norm
    }
    assert {ours[k] for k in norm} == {(1.0, 0.0)}


@pytest.mark.parametrize("name", ["regnety_002", "mobilenetv3_small_050", "resnet18"])
def test_layer_decay_of_a_convnet_equals_timms(name):
    model = timm.create_model(name, num_classes=5)
    theirs = param_groups_layer_decay(model, 0.05, layer_decay=0.8)
    ours = build_param_groups(model, config(layer_decay=0.8), get_layer_ids(model))
    assert by_name(model, ours) == by_name(model, theirs)
    assert len({g["lr_scale"] for g in ours}) > 3


def test_layer_decay_by_hand(deit):
    """12 blocks: embeddings are 13 layers below the heads."""
    model = deit()
    ours = by_name(model, build_param_groups(model, config(layer_decay=0.5), get_layer_ids(model)))
    assert ours["head.weight"] == (1.0, 0.05)
    assert ours["blocks.11.mlp.fc2.weight"] == (0.5, 0.05)
    assert ours["blocks.11.norm1.bias"] == (0.5, 0.0)
    assert ours["blocks.0.attn.qkv.weight"] == (0.5**12, 0.05)
    assert ours["pos_embed"] == ours["cls_token"] == ours["patch_embed.proj.bias"] == (0.5**13, 0.0)
    assert ours["patch_embed.proj.weight"] == (0.5**13, 0.05)


@given(decay=st.floats(0.3, 1.0), rate=st.floats(1e-8, 1.0), frozen=st.sets(st.integers(0, 6)))
def test_each_learning_parameter_is_in_one_group_and_lower_layers_are_never_faster(
    decay, rate, frozen
):
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(7)))
    for number in frozen:
        model[number].requires_grad_(False)
    layers = {name: int(name[0]) for name, _ in model.named_parameters()}
    groups = build_param_groups(model, config(layer_decay=decay), layers)
    learning = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(learning)
    scales = [by_name(model, groups)[f"{n}.bias"][0] for n in range(7) if n not in frozen]
    assert scales == sorted(scales)
    assert scales == pytest.approx([decay ** (6 - n) for n in range(7) if n not in frozen])


def test_tokens_timm_excludes_are_ours():
    names = timm.create_model("deit_tiny_distilled_patch16_224").no_weight_decay()
    assert names - {"reg_token"} == set(NO_DECAY_TOKENS) - {"reflections"}  # of the projector


def test_frozen_parameters_are_left_out(deit):
    model = deit()
    model.pos_embed.requires_grad_(False)
    grouped = [p for g in build_param_groups(model, config()) for p in g["params"]]
    assert len(grouped) == len(list(model.parameters())) - 1
    assert all(p is not model.pos_embed for p in grouped)


def test_optimizer_is_built_with_the_peak_rate_and_takes_a_steps(deit):
    optimizer = build_optimizer(deit(), config())
    assert {g["lr"] for g in optimizer.param_groups} == {1e-3}
    set_learning_rate(optimizer, 0.25)
    assert {g["lr"] for g in optimizer.param_groups} == {0.25}


def test_lower_layers_get_their_share_of_every_rate(deit):
    model = deit()
    optimizer = build_optimizer(model, config(layer_decay=0.5), get_layer_ids(model))
    set_learning_rate(optimizer, 0.25)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model.head.weight)] == 0.25
    assert rates[id(model.blocks[11].norm1.weight)] == 0.125
    assert rates[id(model.cls_token)] == pytest.approx(0.25 / 2**13)


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


def test_ema_decay_by_hand():
    assert compute_ema_decay(0, decay=0.99996, total_steps=10**7) == pytest.approx(0.1)  # 1 / 10
    # 91 / 100
    assert compute_ema_decay(90, decay=0.99996, total_steps=10**7) == pytest.approx(0.91)
    # a long run has the paper's
    assert compute_ema_decay(10**6, decay=0.99996, total_steps=10**7) == 0.99996
    # 100 steps of 1,000
    assert compute_ema_decay(10**6, decay=0.99996, total_steps=1000) == pytest.approx(0.99)


@given(step=st.integers(0, 10**6), decay=st.floats(0, 0.99999), total=st.integers(0, 10**6))
def test_ema_decay_is_between_zero_and_the_configured_one(step, decay, total):
    assert 0 <= compute_ema_decay(step, decay=decay, total_steps=total) <= decay


def test_ema_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ExponentialMovingAverage(model, decay=0.5)
    nn.init.ones_(model.weight)
    ema.update(model, 0, total_steps=1000)  # decay 1/10: 0.1 x 0 + 0.9 x 1
    assert ema.values["weight"].item() == pytest.approx(0.9)
    nn.init.constant_(model.weight, 2.0)
    ema.update(model, 1000, total_steps=1000)  # decay 0.5: (0.9 + 2) / 2
    assert ema.values["weight"].item() == pytest.approx(1.45)


def test_average_is_a_copy():
    model = nn.Linear(1, 1)
    ema = ExponentialMovingAverage(model, decay=0.5)
    before = ema.values["weight"].clone()
    nn.init.constant_(model.weight, 7.0)
    assert torch.equal(ema.values["weight"], before)


def test_buffers_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(model, decay=0.5)
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(42)
    ema.update(model, 10**6, total_steps=1000)
    assert ema.values["running_mean"].tolist() == [5.0, 5.0]
    assert ema.values["num_batches_tracked"].item() == 42


def test_a_short_run_forgets_its_initialization():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1000.0)
    ema = ExponentialMovingAverage(model, decay=0.99996)
    nn.init.ones_(model.weight)
    for step in range(100):
        ema.update(model, step, total_steps=100)
    # with 0.99996 it would be 997
    assert ema.values["weight"].item() == pytest.approx(1.0, abs=0.1)
