"""What a user should hear of a run's batch and resolution, before it or instead of it."""

from __future__ import annotations

from torch import nn

from deitctl.config import Recipe
from deitctl.events import Reporter
from deitctl.models.introspect import has_few_patches


def warn_about_sizes(
    recipe: Recipe,
    num_images: int,
    model: nn.Module,
    img_size: int,
    early_size: int,
    reporter: Reporter,
) -> None:
    """Say where batch and early epochs are not what the recipe asks for, or may cost accuracy.

    Args:
        recipe: as asked for.
        images: of the training data.
        model: the student.
        img_size: side of its input, pixels.
        early_size: the same in the early epochs, 0 without any.
        reporter: told.
    """
    if recipe.batch_size > num_images:
        reporter.note(
            f"A batch is all {num_images} training images, which are fewer than {recipe.batch_size}."
        )
    if (
        recipe.progressive_resize.fraction
        and recipe.progressive_resize.scale < 1
        and early_size in (0, img_size)
    ):
        why = "images are too small" if early_size else "the run is too short"
        reporter.note(f"No early epochs of smaller images: {why}.")
    elif early_size:
        reporter.note(
            f"{recipe.early_epochs} of {recipe.epochs} epochs at {early_size} pixels, the others at {img_size}."
        )
        if has_few_patches(model, early_size):
            reporter.warn(
                f"Images of {early_size} pixels are so few patches that early epochs of them may cost accuracy "
                "(ten points at 2 x 2 patches, docs/recipes.md). A recipe without -fast, or a larger --img-size, does not."
            )
