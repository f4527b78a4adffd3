"""Checks and choices that follow from the shape of a model and of its input, before data is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from deitctl.config import Recipe, TrainConfig
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.convert import resize_architecture
from deitctl.models.factory import find_architecture
from deitctl.models.own_shape import require_model_args, reshape
from deitctl.models.sources import resolve_folder
from deitctl.settings import MODEL_ARGS, convert
from deitctl.sizes import ImageSize, format_size, height_width

CHANNELS = (0, 1, 3)
"""Of `in_chans`: the model's own, gray, RGB."""


def require_input_shape(model: str, named: Mapping[str, Any], reporter: Reporter) -> None:
    """Refuse a shape, a size or a number of channels that the named model cannot have.

    Args:
        model: as `build_model`.
        named: settings by dotted name, those of `model.` among them.
        reporter: of what resolving the model shows.

    Raises:
        ConfigError: a setting that does not fit.
        ModelError: the model cannot be built so.
    """
    in_chans = convert(named.get("recipe.in_chans", 0), int, "--in-chans")
    if in_chans not in CHANNELS:
        raise ConfigError(
            f"--in-chans {in_chans} is not possible: images are read as gray (1) or RGB (3).",
            "Of files with more bands, write three that matter as RGB.",
        )
    model_args = {
        name.removeprefix(MODEL_ARGS): convert(value, Any, name)
        for name, value in named.items()
        if name.startswith(MODEL_ARGS)
    }
    size: ImageSize = convert(named.get("recipe.img_size", 0), ImageSize, "--img-size")
    if not model_args and not isinstance(size, tuple):
        return
    arch = find_architecture(model, reporter)
    require_model_args(model_args, arch)
    if arch is not None:
        own = reshape(arch, model_args)
        if size:
            resize_architecture(own, size)
    elif resolve_folder(model, reporter, download_weights=False) is None:
        with torch.device("meta"):  # nothing is allocated: the constructor says what it refuses
            timm_models.create_model(model, num_classes=2, img_size=size, model_args=model_args)


def fit_crop_ratio(
    config: TrainConfig, named: Mapping[str, Any], reporter: Reporter
) -> TrainConfig:
    """Return a configuration whose random crops have the aspect ratio of an input that is not square.

    timm keeps 3/4 to 4/3 for every input, and so stretches what evaluation does not. Written into the
    recipe, so that the views, and what is cached of them, are those of these crops.

    Args:
        config: the run.
        named: settings of the user, who may have chosen ratios.
        reporter: gets what was chosen.
    """
    height, width = height_width(_find_size(config, reporter))
    augment = config.recipe.augment
    is_named = any(name.endswith("augment.crop_ratio") for name in named)
    if height == width or is_named or augment.crop_scale == (1.0, 1.0):
        return config
    low, high = (ratio * width / height for ratio in augment.crop_ratio)
    reporter.note(
        f"Random crops are {low:.3g} to {high:.3g} times as wide as high, as the input of "
        f"{format_size((height, width))} pixels is {width / height:.3g} times."
    )
    recipe: Recipe = replace(config.recipe, augment=replace(augment, crop_ratio=(low, high)))
    return replace(config, recipe=recipe)


def _find_size(config: TrainConfig, reporter: Reporter) -> ImageSize:
    """Return the input size of a run, 0 for a model's own that is square."""
    if config.recipe.img_size:
        return config.recipe.img_size
    folder = resolve_folder(config.model, reporter, download_weights=False)
    return load_model_config(folder).preprocessing.img_size if folder else 0
