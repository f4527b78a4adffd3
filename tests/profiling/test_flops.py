"""The formula is hand-computed for a small model, and what torch counts for every kind of DeiT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from deitctl.models.catalog import Architecture
from deitctl.models.flops import compute_deit_flops
from deitctl.models.introspect import freeze_backbone
from deitctl.profiling.flops import compute_flops, count_flops

SMALL = Architecture(
    alias="x",
    name="x",
    tag="",
    url="",
    embed_dim=4,
    num_heads=2,
    depth=2,
    patch_size=2,
    img_size=4,
    distilled=True,
    top1=0.0,
)


def test_the_formula_by_hand():
    # 4 patches and 2 prefix tokens, 6 tokens of width 4, 3 classes, patches of 2 x 2 x 3 = 12 numbers
    embed = 2 * 4 * 12 * 4
    first = 2 * 6 * 4 * 12 + 2 * (2 * 6 * 6 * 4) + 2 * 6 * 4 * 4 + 2 * (2 * 6 * 4 * 16)
    last = 2 * 6 * 4 * 12 + 2 * (2 * 2 * 6 * 4) + 2 * 2 * 4 * 4 + 2 * (2 * 2 * 4 * 16)
    heads = 2 * (2 * 4 * 3)
    found = compute_deit_flops(SMALL, num_classes=3, img_size=4)
    assert found.forward == embed + first + last + heads
    assert found.step == found.forward + 2 * (first + last + heads) + embed


def test_a_plain_model_has_one_token_less_and_one_head():
    found = compute_deit_flops(replace(SMALL, distilled=False), num_classes=3, img_size=4)
    embed = 2 * 4 * 12 * 4
    first = 24 * 5 * 16 + 4 * 25 * 4
    last = 6 * 5 * 16 + 4 * 5 * 4 + 18 * 16
    assert found.forward == embed + first + last + 2 * 4 * 3


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled", "deit3_small"])
@pytest.mark.parametrize("learns", [True, False], ids=["all", "head"])
def test_torch_counts_what_the_formula_says(alias, learns, deit):
    model = deit(alias, classes=7, img_size=48)
    if not learns:
        freeze_backbone(model)
    assert compute_flops(model, 48) == count_flops(model, 48)


def test_deit_tiny_has_the_papers_operations():
    arch = timm.create_model("deit_tiny_patch16_224")
    found = count_flops(arch, 224)
    # timm's and the paper's count of multiplications
    assert found.forward / 2 == pytest.approx(1.25e9, rel=0.01)


def test_counting_leaves_the_model_as_it_was(deit):
    model = deit().train()
    count_flops(model, 32)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_other_models_are_counted_with_batch_norms_in_training():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.train().append(nn.Linear(4, 5))
    conv, head = 2 * 30 * 30 * 4 * 27, 2 * 4 * 5
    # no gradient for the image
    assert compute_flops(model, 32) == (conv + head, 2 * conv + 3 * head)


def test_a_frozen_model_has_no_backward_pass():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 5)).requires_grad_(False)
    assert compute_flops(model, 2) == (120, 120)
    assert torch.is_grad_enabled()
