"""Shapes that a model cannot have are refused before data is opened; crops have the input's aspect ratio."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, ModelError
from deitctl.recipes import DIGITS, FINETUNE
from deitctl.training.configure import build_config
from deitctl.training.input_shape import cuts_blocks, fit_crop_ratio

WIDE = TrainConfig(model="deit_tiny", data="d", recipe=replace(FINETUNE, img_size=(64, 128)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model_args.embed_dim": "100"}, ConfigError, "does not divide into 6 heads"),
        ({"recipe.img_size": "30x64"}, ModelError, "do not fill 30x64"),
        (
            {"recipe.img_size": "60", "model_args.patch_size": 8},
            ModelError,
            "patches of 8 pixels, which do not fill 60",
        ),
        ({"recipe.in_chans": 300}, ConfigError, "Images have 1 to 256 bands"),
        (
            {"model": "vit_tiny_patch16_224", "model_args.embed_dim": 100},
            ModelError,
            "timm cannot build vit_tiny_patch16_224",
        ),
        (
            {"model": "vit_tiny_patch16_224", "recipe.img_size": "30x64"},
            ModelError,
            "vit_tiny_patch16_224 has patches of 16 pixels, which do not fill 30x64",
        ),
    ],
)
def test_a_shape_is_refused_before_data_is_opened(settings, error, message, reporter):
    with pytest.raises(error, match=message):
        build_config({"data": "/nonexistent", **settings}, reporter=reporter)


def test_first_blocks_alone_are_known_before_the_weights_are_loaded(reporter):
    config = TrainConfig(model="deit_tiny", data="d", recipe=FINETUNE, model_args={"depth": 3})
    assert cuts_blocks(config, reporter)
    assert not cuts_blocks(replace(config, model_args={"depth": 12}), reporter)
    assert not cuts_blocks(replace(config, recipe=replace(FINETUNE, pretrained=False)), reporter)


def test_crops_of_a_wide_input_are_as_wide(reporter):
    config = fit_crop_ratio(WIDE, {}, reporter)
    assert config.recipe.augment.crop_ratio == (1.5, 8 / 3)
    assert "1.5 to 2.67 times as wide as high" in reporter.notes[0]


def test_ratios_that_were_named_and_square_inputs_are_left(reporter):
    assert fit_crop_ratio(WIDE, {"recipe.augment.crop_ratio": "1,2"}, reporter) == WIDE
    square = replace(WIDE, recipe=DIGITS)
    assert fit_crop_ratio(square, {}, reporter) == square
    assert not reporter.notes
