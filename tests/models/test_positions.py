"""Fixed position embeddings are big_vision's, of DeiTs and of timm's vision transformers, and are not trained."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from deitctl.errors import ConfigError
from deitctl.models.positions import fix_positions, make_sincos_positions


def test_the_formula_by_hand():
    """MoCo v3's: sine and cosine of the column, then of the row, at wavelengths from 1 to 10,000."""
    positions = make_sincos_positions((2, 3), 8)
    row, column = 1, 2
    expected = [
        *(math.sin(column / w) for w in (1, 10_000)),
        *(math.cos(column / w) for w in (1, 10_000)),
        *(math.sin(row / w) for w in (1, 10_000)),
        *(math.cos(row / w) for w in (1, 10_000)),
    ]
    assert positions.shape == (6, 8)
    assert positions[row * 3 + column].tolist() == pytest.approx(expected)


def test_a_deits_patches_get_them_and_its_tokens_none(deit):
    model = deit("deit_tiny_distilled", img_size=32)
    fix_positions(model, fill=True)
    assert not model.pos_embed.requires_grad
    assert model.pos_embed[:, :2].abs().max() == 0
    assert torch.equal(model.pos_embed[0, 2:], make_sincos_positions((2, 2), 192))


def test_timms_pooled_vit_gets_them():
    model = timm.create_model(
        "vit_small_patch16_224",
        img_size=(32, 48),
        embed_dim=16,
        depth=1,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    )
    fix_positions(model, fill=True)
    assert torch.equal(model.pos_embed[0], make_sincos_positions((2, 3), 16))
    assert not model.pos_embed.requires_grad


def test_those_of_weights_are_kept_and_not_trained(deit):
    model = deit()
    before = model.pos_embed.clone()
    fix_positions(model, fill=False)
    assert torch.equal(model.pos_embed, before)
    assert not model.pos_embed.requires_grad


@pytest.mark.parametrize("model", [nn.Linear(3, 4), nn.Conv2d(3, 4, 2)])
def test_a_model_without_positions_is_refused(model: nn.Module):
    with pytest.raises(ConfigError, match="no position embeddings"):
        fix_positions(model, fill=True)
