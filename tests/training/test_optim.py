"""The learning rate by hand and against timm; what decays and what does not."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from deitctl.config import OptimConfig
from deitctl.models.introspect import get_layer_ids
from deitctl.recipes import PAPER, PAPER_384, RECIPES
from deitctl.training.optim import (
    NO_DECAY_TOKENS,
    build_optimizer,
    learning_rate,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)


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
    assert peak_learning_rate(PAPER.optim, 1024) == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
    assert peak_learning_rate(PAPER.optim, 64) == pytest.approx(6.25e-5)
    assert peak_learning_rate(PAPER_384.optim, 512) == pytest.approx(5e-6)


def test_schedule_by_hand():
    def rate(step: int) -> float:
        return learning_rate(config(), step=step, steps_per_epoch=10, epochs=8, batch_size=512)

    assert rate(0) == pytest.approx(1e-6)
    assert rate(10) == pytest.approx((1e-6 + 1e-3) / 2)  # half of the warm-up
    assert rate(40) == pytest.approx(
        (1e-3 + 1e-5) / 2
    )  # half of the cosine, which counts from step 0
    assert rate(20) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(80) == pytest.approx(1e-5)
    assert rate(1000) == pytest.approx(1e-5)  # and stays there


@pytest.mark.parametrize(
    "recipe", [PAPER, RECIPES["digits"], RECIPES["finetune"]], ids=lambda r: r.name
)
def test_schedule_equals_timms_at_every_epoch(recipe):
    peak = peak_learning_rate(recipe.optim, recipe.batch_size)
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
        ours = learning_rate(
            recipe.optim,
            step=7 * epoch,
            steps_per_epoch=7,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
        )
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6), epoch


def test_the_384_recipe_is_constant_after_the_warm_up():
    rates = {
        learning_rate(PAPER_384.optim, step=s, steps_per_epoch=10, epochs=30, batch_size=512)
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
    rate = learning_rate(optim, step=step, steps_per_epoch=steps, epochs=epochs, batch_size=batch)
    peak = peak_learning_rate(optim, batch)
    assert (
        min(peak, optim.min_lr, optim.warmup_lr)
        <= rate
        <= max(peak, optim.min_lr, optim.warmup_lr) * (1 + 1e-12)
    )


@given(steps=st.integers(1, 30), epochs=st.integers(1, 30))
def test_rate_never_rises_after_the_warm_up(steps, epochs):
    optim = config(warmup_epochs=1)
    rates = [
        learning_rate(optim, step=s, steps_per_epoch=steps, epochs=epochs, batch_size=512)
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
    ours = parameter_groups(model, config(), get_layer_ids(model))
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=NO_DECAY_TOKENS)
    assert by_name(model, ours) == by_name(model, theirs)
    assert sorted(g["weight_decay"] for g in ours) == [0.0, 0.05]
    assert {g["lr_scale"] for g in ours} == {1.0}


@pytest.mark.parametrize("alias", ["deit_tiny_distilled", "deit_tiny"])
def test_layer_decay_equals_timms_on_its_own_deit(alias, deit):
    """But for the last norm: it stands with the heads, as in BEiT's code (optim_factory.py), not with the last block."""
    model, name = (
        deit(alias),
        {"deit_tiny": "deit_tiny_patch16_224"}.get(alias, "deit_tiny_distilled_patch16_224"),
    )
    theirs = timm.create_model(name, num_classes=5, img_size=32)
    expected = by_name(
        theirs, param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.7)
    )
    ours = by_name(model, parameter_groups(model, config(layer_decay=0.7), get_layer_ids(model)))
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
    ours = parameter_groups(model, config(layer_decay=0.8), get_layer_ids(model))
    assert by_name(model, ours) == by_name(model, theirs)
    assert len({g["lr_scale"] for g in ours}) > 3


def test_layer_decay_by_hand(deit):
    """12 blocks: embeddings are 13 layers below the heads."""
    model = deit()
    ours = by_name(model, parameter_groups(model, config(layer_decay=0.5), get_layer_ids(model)))
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
    groups = parameter_groups(model, config(layer_decay=decay), layers)
    learning = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(learning)
    scales = [by_name(model, groups)[f"{n}.bias"][0] for n in range(7) if n not in frozen]
    assert scales == sorted(scales)
    assert scales == pytest.approx([decay ** (6 - n) for n in range(7) if n not in frozen])


def test_tokens_timm_excludes_are_ours():
    names = timm.create_model("deit_tiny_distilled_patch16_224").no_weight_decay()
    assert names - {"reg_token"} == set(NO_DECAY_TOKENS)  # a DeiT has no registers


def test_frozen_parameters_are_left_out(deit):
    model = deit()
    model.pos_embed.requires_grad_(False)
    grouped = [p for g in parameter_groups(model, config()) for p in g["params"]]
    assert len(grouped) == len(list(model.parameters())) - 1
    assert all(p is not model.pos_embed for p in grouped)


def test_optimizer_starts_at_the_warm_up_rate_and_takes_a_new_one(deit):
    optimizer = build_optimizer(deit(), config())
    assert {g["lr"] for g in optimizer.param_groups} == {1e-6}
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
