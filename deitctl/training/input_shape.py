"""Checks and choices that follow from the shape of a model and of its input, before data is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from deitctl.config import MAX_CHANS, Recipe, TrainConfig
from deitctl.data.band_image import has_bands
from deitctl.errors import ConfigError, ModelError
from deitctl.events import Reporter
from deitctl.models import timm_models
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.convert import resize_architecture
from deitctl.models.factory import find_architecture
from deitctl.models.own_shape import require_model_args, reshape
from deitctl.models.sources import has_weights, resolve_folder
from deitctl.settings import MODEL_ARGS, convert
from deitctl.sizes import ImageSize, format_size, height_width


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
    if not 0 <= in_chans <= MAX_CHANS:
        raise ConfigError(
            f"--in-chans {in_chans} is not possible.", f"Images have 1 to {MAX_CHANS} bands."
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
            timm_models.require_filled(
                timm_models.create_model(
                    model, num_classes=2, img_size=size, model_args=model_args
                ),
                model,
                size,
            )


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
    height, width = height_width(find_size(config, reporter))
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


def refit_crop_ratio(
    before: TrainConfig, now: TrainConfig, named: Mapping[str, Any], reporter: Reporter
) -> TrainConfig:
    """Return a run's configuration with another input size, with crops that stretch as those before did.

    Args:
        before: the run, whose crops are of its input's aspect ratio.
        now: the same with another size.
        named: settings of the user, who may have chosen ratios.
        reporter: gets what was chosen.
    """
    (old_height, old_width), size = (
        height_width(find_size(before, reporter)),
        find_size(now, reporter),
    )
    height, width = height_width(size)
    scale = (width / height if height else 1.0) / (old_width / old_height if old_height else 1.0)
    augment = now.recipe.augment
    is_named = any(name.endswith("augment.crop_ratio") for name in named)
    if scale == 1 or is_named or augment.crop_scale == (1.0, 1.0):
        return now
    low, high = (ratio * scale for ratio in augment.crop_ratio)
    reporter.note(
        f"Random crops are {low:.3g} to {high:.3g} times as wide as high, {scale:.3g} times what they were, as the "
        f"input of {format_size(size)} pixels is."
    )
    recipe: Recipe = replace(now.recipe, augment=replace(augment, crop_ratio=(low, high)))
    return replace(now, recipe=recipe)


def fit_color(config: TrainConfig, named: Mapping[str, Any], reporter: Reporter) -> TrainConfig:
    """Return a configuration whose augmentation has no operation on colors, where images are of bands.

    Args:
        config: the run.
        named: settings of the user.
        reporter: gets what was left out.

    Raises:
        ConfigError: the user named an operation on colors.
    """
    augment, in_chans = config.recipe.augment, config.recipe.in_chans
    fields = ("rand_augment", "color_jitter", "three_augment")
    if not has_bands(in_chans) or not any(getattr(augment, field) for field in fields):
        return config
    for field in fields:
        value = next((v for n, v in named.items() if n.endswith(f"augment.{field}")), None)
        if value not in (None, "", 0, 0.0, "0", "0.0", False, "false"):
            raise ConfigError(
                f"augment.{field} changes colors, which images of {in_chans} bands have not.",
                "Leave it out; crops, flips, augment.affine, erasing and mixing act on every band.",
            )
    reporter.note(
        f"Images of {in_chans} bands have no colors: RandAugment, 3-Augment and color jitter of the recipe "
        "are left out."
    )
    augment = replace(augment, rand_augment="", color_jitter=0.0, three_augment=False)
    return replace(config, recipe=replace(config.recipe, augment=augment))


def find_in_chans(model: str, named: Mapping[str, Any], reporter: Reporter) -> int:
    """Return the channels that settings name, or those of the model folder that they start from; else 0."""
    in_chans: int = convert(named.get("recipe.in_chans", 0), int, "--in-chans")
    folder = resolve_folder(model, reporter, download_weights=False) if has_weights(model) else None
    if in_chans or folder is None:
        return in_chans
    own = load_model_config(folder).preprocessing.in_chans
    return own if has_bands(own) else 0


def cuts_blocks(config: TrainConfig, reporter: Reporter) -> bool:
    """Return whether a run keeps the first blocks alone of the weights that it starts from."""
    depth = config.model_args.get("depth")
    starts = config.recipe.pretrained or config.weights or has_weights(config.model)
    if depth is None or not starts:
        return False
    try:
        arch = find_architecture(config.weights or config.model, reporter)
    except (
        ModelError
    ):  # a lone file of a shape of its own, whose blocks are known when it is loaded
        return False
    return arch is not None and depth < arch.depth


def find_size(config: TrainConfig, reporter: Reporter) -> ImageSize:
    """Return the input size of a run, 0 for a model's own that is square."""
    if config.recipe.img_size:
        return config.recipe.img_size
    folder = resolve_folder(config.model, reporter, download_weights=False)
    if folder is None and has_weights(config.model):  # a lone file, which may state it
        arch = find_architecture(config.model, reporter)
        return arch.img_size if arch and isinstance(arch.img_size, tuple) else 0
    return load_model_config(folder).preprocessing.img_size if folder else 0
