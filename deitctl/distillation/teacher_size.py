"""Input size of a teacher: of its student's aspect ratio, so that both see the same content of a view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.errors import ModelError
from deitctl.events import Reporter
from deitctl.models import catalog, timm_models
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.factory import find_architecture
from deitctl.models.introspect import CONVNET_STRIDE, describe_layers
from deitctl.models.own_shape import read_architecture
from deitctl.models.sources import has_weights, resolve_folder
from deitctl.recipes import get_finetune_recipe
from deitctl.sizes import ImageSize, format_size, height_width, make_size

ASPECT_WEIGHT = 4.0
"""Of the ratio of height and width, against that of the number of pixels, where patches allow no exact size."""


def fit_teacher_size(
    config: TrainConfig,
    student_size: ImageSize,
    named: Mapping[str, Any],
    *,
    built_in: bool,
    reporter: Reporter,
) -> TrainConfig:
    """Return a configuration whose teacher has an input of the student's height to width.

    Views are rendered at the teacher's size from the student's crop boxes, so another ratio would squeeze every
    one. Written into the configuration, so that caches of targets and fine-tuned teachers are those of this size.

    Args:
        config: the run.
        student_size: of its input in pixels, 0 for one that is square.
        named: settings of the user, who may have chosen the teacher's size.
        built_in: whether the data are the built-in digits.
        reporter: gets what was chosen, and is warned where the teacher cannot have it.
    """
    distill = config.distill
    if distill is None or named.get("distill.teacher_img_size"):
        return config
    height, width = height_width(student_size or 1)
    if not student_size and not has_weights(distill.teacher) and not distill.teacher_weights:
        return config  # both are square, and no model is looked at
    try:
        own_input = _find_own_size(distill, built_in, reporter)
    except ModelError:  # loading the teacher raises it again, if it comes to that
        own_input = None
    if own_input is None:
        return config
    own, step = distill.teacher_img_size or own_input[0], own_input[1]
    own_height, own_width = height_width(own)
    if own_height * width == own_width * height:
        return config
    ratio = f"the student's {format_size(make_size(height, width)) if student_size else 'square'}"
    if not step:
        reporter.warn(
            f"{distill.teacher} takes inputs of {format_size(own)} pixels alone: it sees every view of {ratio} "
            "squeezed. A DeiT, a ViT or a convnet as teacher takes the student's ratio."
        )
        return config
    size = choose_size(own, (height, width), step)
    reporter.note(
        f"The teacher's input is {format_size(size)} pixels instead of {format_size(own)}, for the ratio of {ratio}; "
        "--teacher-img-size decides otherwise."
    )
    return replace(config, distill=replace(distill, teacher_img_size=size))


def stretch_crops(recipe: Recipe) -> Recipe:
    """Return a teacher's recipe whose random crops have the aspect ratio of its input, as a student's have."""
    height, width = height_width(recipe.img_size or 1)
    augment = recipe.augment
    if height == width or augment.crop_scale == (1.0, 1.0):
        return recipe
    low, high = (ratio * width / height for ratio in augment.crop_ratio)
    return replace(recipe, augment=replace(augment, crop_ratio=(low, high)))


def choose_size(own: ImageSize, ratio: tuple[int, int], step: int) -> ImageSize:
    """Return the input size of a height to width near `ratio`, of about as many pixels as `own`.

    Args:
        own: size in pixels.
        ratio: height and width.
        step: pixels that both sides are multiples of.
    """
    target, area = ratio[0] / ratio[1], math.prod(height_width(own))

    def measure(sides: tuple[int, int]) -> float:
        height, width = sides
        return ASPECT_WEIGHT * abs(math.log(height / width / target)) + abs(
            math.log(height * width / area)
        )

    ideal = (math.sqrt(area * target), math.sqrt(area / target))
    rows, columns = (
        [step * n for n in range(max(1, int(side / step / 2)), int(2 * side / step) + 2)]
        for side in ideal
    )
    return make_size(*min(product(rows, columns), key=measure))


def _find_own_size(
    distill: DistillConfig, built_in: bool, reporter: Reporter
) -> tuple[ImageSize, int] | None:
    """Return a teacher's own input size and the pixels that both its sides are multiples of, 0 where it takes no
    other size; None for a caller's function, or a teacher that does not exist: loading it says so."""
    name, weights = distill.teacher, distill.teacher_weights
    for ref in filter(None, (weights, name)):
        if not has_weights(ref):
            continue
        folder = resolve_folder(ref, reporter, download_weights=False)
        if folder is not None:
            model_config = load_model_config(folder)
            size = model_config.preprocessing.img_size
            arch = read_architecture(model_config)
            args = {k: v for k, v in model_config.model_args.items() if k != "img_size"}
            step = arch.patch_size if arch else _find_step(model_config.architecture, args, size)
            return size, step
        if ref == name and (arch := find_architecture(ref, reporter)) is not None:
            return arch.img_size, arch.patch_size
    if (arch := catalog.find(name)) is not None:
        return arch.img_size, arch.patch_size
    if not timm_models.is_timm_model(name):
        return None
    own: ImageSize = 0
    if distill.finetune_teacher == "scratch":
        own = get_finetune_recipe("scratch", built_in=built_in).img_size
    own = own or timm_models.get_native_size(name)
    return own, _find_step(name, {}, own)


def _find_step(name: str, model_args: Mapping[str, Any], size: ImageSize) -> int:
    """Return the pixels that the sides of a timm model's input are multiples of; 0 if it takes one size alone."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):  # nothing is allocated
        model = timm_models.create_model(name, num_classes=2, img_size=size, model_args=model_args)
    if not describe_layers(model)["fixed_input_size"]:
        return CONVNET_STRIDE
    if not isinstance(model, VisionTransformer):  # of windows, whose biases are of one size
        return 0
    patch: Any = model.patch_embed.patch_size
    return math.lcm(*patch)
