"""What a fine-tuning recipe leaves to its data: batch size, learning rate and warm-up."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Literal

from deitctl.config import Recipe
from deitctl.settings import override

NEW_HEAD_LR, OLD_HEAD_LR = 4e-4, 1e-4
"""Peak learning rates where the head is fitted to other classes than the weights', and where it is theirs."""
CUT_HEAD_INIT: Literal["ridge", "random"] = "random"
"""Of a new head where the weights' first blocks alone are kept: features in the middle of a network are separated by
large weights alone. Ten epochs of flowers-mini at 64 pixels, seed 0: first-epoch loss 1.66 instead of 2.97 with 3 of
deit_tiny's blocks, 1.66 instead of 3.11 with 6; of the last one 0.98 instead of 1.06, and 0.74 instead of 0.73."""
OTHERS_LAYER_DECAY = 0.9  # of models that are no DeiT
WARMUP_FRACTION = 0.1  # of the epochs
BATCH_SIZES = ((500, 8), (2_000, 16), (10_000, 32))
"""Batch size below a number of training images; FINETUNE's from there."""

MIN_SCRATCH_STEPS = 270
"""Those of digits-convnet on all digits, 6 epochs. On a tenth of them 6 epochs are 30 steps, after which regnety_002
had 32 % (--fraction 0.1), and after 60 epochs 94 %."""


def fit_to_data(
    recipe: Recipe,
    *,
    num_images: int,
    has_new_head: bool,
    is_deit: bool,
    fixed: Container[str] = (),
) -> Recipe:
    """Return a fine-tuning recipe with batch size, learning rate and warm-up for its data.

    A run on few images has few steps, so its batches are small. The rate is lower where the head is the weights' own.

    Args:
        recipe: with `fits_data`, else it is returned as it is.
        num_images: of the training set.
        has_new_head: whether the data's classes are others than those of the weights.
        is_deit: whether the model is a DeiT; convnets have more layers, and lower ones that need to change.
        fixed: names of settings that the user or a recipe file has chosen, which stay.
    """
    if not recipe.fits_data:
        return recipe
    sizes = (size for limit, size in BATCH_SIZES if num_images < limit)
    chosen: dict[str, float] = {
        "batch_size": next(sizes, recipe.batch_size),
        "optim.lr": NEW_HEAD_LR if has_new_head else OLD_HEAD_LR,
        "optim.layer_decay": recipe.optim.layer_decay if is_deit else OTHERS_LAYER_DECAY,
        "optim.warmup_epochs": min(recipe.optim.warmup_epochs, WARMUP_FRACTION * recipe.epochs),
    }
    return override(recipe, {name: value for name, value in chosen.items() if name not in fixed})


def give_steps(recipe: Recipe, num_images: int) -> Recipe:
    """Return a recipe of training from scratch with at least `MIN_SCRATCH_STEPS` steps.

    Args:
        recipe: of a teacher that has no weights.
        num_images: of its training set.
    """
    epochs = math.ceil(MIN_SCRATCH_STEPS * recipe.batch_size / max(1, num_images))
    return replace(recipe, epochs=max(recipe.epochs, epochs))
