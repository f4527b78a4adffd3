"""3-Augment and the simple random crop of DeiT-III (arXiv 2204.07118 §3.2; deit/augment.py).

The released code draws from Python's and torch's global generators; here everything is drawn from the view's own. Given
the same draws the pixels are the released code's, to the bit, for they are Pillow's there and here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from deitctl.data.band_image import from_pixels

BLUR_RADIUS = (0.1, 2.0)  # deit/augment.py: GaussianBlur(radius_min, radius_max), in pixels
NUM_OPERATIONS = 3
PADDING = 4
"""Pixels mirrored around an image before the simple random crop (deit/augment.py: RandomCrop(padding=4))."""


def three_augment(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Turn an RGB image gray, solarize it or blur it, each in a third of the cases.

    A grayscale image takes the same operations; to be gray changes nothing there.

    Args:
        image: cropped and resized.
        draw: the view's generator.
    """
    # The radius is drawn in each case, so that what follows does not depend on the operation.
    operation, radius = int(draw.integers(NUM_OPERATIONS)), float(draw.uniform(*BLUR_RADIUS))
    if operation == 0:
        return image.convert("L").convert(image.mode)
    if operation == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(radius))


def cover(size: tuple[int, int], hw: tuple[int, int]) -> tuple[int, int]:
    """Return height and width to which an image is resized, so that it just covers a view.

    For a square view as torchvision's `Resize(side)`: the shorter side is met, the longer one is rounded down.

    Args:
        size: width and height of the image in pixels.
        hw: height and width of the view.
    """
    width, height = size
    rows, columns = hw
    if rows * width >= columns * height:
        return rows, max(columns, int(rows * width / height))
    return max(rows, int(columns * height / width)), columns


def pad_and_crop(image: Image.Image, hw: tuple[int, int], draw: np.random.Generator) -> Image.Image:
    """Mirror the border of an image by `PADDING` pixels, and cut a view out of it at a random place.

    As torchvision's `RandomCrop(size, padding=4, padding_mode="reflect")`.

    Args:
        image: resized to cover the view, of 5 pixels a side or more.
        hw: height and width of the view.
        draw: the view's generator.
    """
    pixels = np.asarray(image)
    border = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))[: pixels.ndim]
    padded = np.pad(pixels, border, mode="reflect")
    rows, columns = hw
    top = int(draw.integers(0, padded.shape[0] - rows + 1))
    left = int(draw.integers(0, padded.shape[1] - columns + 1))
    return from_pixels(np.ascontiguousarray(padded[top : top + rows, left : left + columns]))
