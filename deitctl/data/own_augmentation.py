"""An augmentation of the caller's: a function of a training view and a generator."""

from __future__ import annotations

import hashlib
import inspect
from typing import Protocol

import numpy as np
from PIL import Image

from deitctl import rng
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


def name_function(function: object) -> str:
    """Return the name of a caller's function or of an object's class, with its module."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def identify_function(function: object) -> str:
    """Return a string that changes with a function's name, its source, and its object's attributes.

    What it calls or reads elsewhere is not seen.
    """
    code = function if inspect.isroutine(function) else type(function)
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):  # typed into an interpreter
        source = ""
    attributes = "" if code is function else repr(sorted(vars(function).items()))
    digest = hashlib.sha256(f"{source}\x1f{attributes}".encode()).hexdigest()[:16]
    return f"{name_function(function)} {digest}"
