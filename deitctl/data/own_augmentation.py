"""An augmentation of the caller's: a function of a training view and a generator."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from deitctl import rng
from deitctl.data.own_functions import name_function
from deitctl.errors import DeitctlError, ExtensionError


class Augmentation(Protocol):
    """Returns a view of the same size and mode; all its draws are the generator's, so that the view is
    the same in every process and after a resume."""

    def __call__(self, image: Image.Image, generator: np.random.Generator, /) -> Image.Image: ...


def apply_augmentation(
    augmentation: Augmentation, view: Image.Image, seed: int, number: int, index: int
) -> Image.Image:
    """Return a view that was augmented by the caller's function.

    Args:
        augmentation: the function.
        view: of the recipe's augmentation, cropped and resized.
        seed: of the views.
        number: of the view.
        index: of the image.

    Raises:
        ExtensionError: the function fails, or returns no image of that size and mode.
    """
    what = f"The augmentation {name_function(augmentation)}"
    try:
        augmented = augmentation(view, rng.generator(seed, "own-view", number, index))
    except (DeitctlError, MemoryError):
        raise
    except Exception as error:
        raise ExtensionError.from_exception(what, error) from error
    if not isinstance(augmented, Image.Image):
        raise ExtensionError(
            f"{what} returned a {type(augmented).__name__}.", "It returns a Pillow image."
        )
    if (augmented.size, augmented.mode) != (view.size, view.mode):
        raise ExtensionError(
            f"{what} returned an image of {augmented.width} x {augmented.height} pixels and mode "
            f"{augmented.mode}, of one of {view.width} x {view.height} and {view.mode}.",
            "It keeps both.",
        )
    return augmented
