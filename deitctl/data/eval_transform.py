"""The one view of an image that evaluation, prediction and proofs use. No torch here: an ONNX file needs none."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.models.model_config import Preprocessing

Pixels = NDArray[np.uint8]
MAX_RESIZED_PIXELS = 2**24
"""Pixels of a resized image above which only what the crop keeps of it is computed."""
MAX_ASPECT = 100
"""Times as tall as wide from which on Pillow 12.3 resizes the columns first, and rounds otherwise."""
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def eval_transform(image: Image.Image, pre: Preprocessing) -> Pixels:
    """Resize, crop the center: uint8 [3,S,S], to the pixel what timm's `transforms_imagenet_eval` does."""
    size, target = pre.img_size, pre.resize_to
    resample = INTERPOLATION.get(pre.interpolation, Image.Resampling.BICUBIC)
    if pre.crop_mode == "squash":
        image = image.resize((target, target), resample)
    else:
        scaled = resized(image.width, image.height, target)
        if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
            image = _resize_center(image, scaled, size, resample)
        elif scaled != image.size:
            image = image.resize(scaled, resample)
    left, top = center(image.width, size), center(image.height, size)
    return to_chw(
        image.crop((left, top, left + size, top + size))
    )  # outside the image: black, as torchvision pads


def resized(width: int, height: int, target: int) -> tuple[int, int]:
    """Return width and height of an image whose short side becomes `target` pixels (timm and transformers round down)."""
    return (
        (target, int(target * height / width))
        if width <= height
        else (int(target * width / height), target)
    )


def has_extreme_aspect(width: int, height: int, pre: Preprocessing) -> bool:
    """Say whether an image is so long that it is resized in a way of its own: other programs would take gigabytes."""
    if height > MAX_ASPECT * width or width > MAX_ASPECT * height:
        return True
    across, down = resized(width, height, pre.resize_to)
    return pre.crop_mode != "squash" and across * down > MAX_RESIZED_PIXELS


def _resize_center(
    image: Image.Image, scaled: tuple[int, int], size: int, resample: Image.Resampling
) -> Image.Image:
    """Return the middle of `image` resized to `scaled`, at most `size` a side: a ribbon 20,000 times as long as wide
    would take gigabytes. A value may differ by one from that of the whole, resized: Pillow's coordinates are floats.
    """
    lengths, cut, box = (image.width, image.height), [], []
    for length, whole in zip(lengths, scaled, strict=True):
        kept, step = min(size, whole), length / whole
        start, end = center(whole, kept) * step, (center(whole, kept) + kept) * step
        margin = 4 * max(
            1.0, step
        )  # no filter looks further than three pixels of the smaller image
        first, last = max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))
        cut.append((first, last))
        box.append((start - first, end - first))
    (left, right), (top, bottom) = cut
    (x0, x1), (y0, y1) = box
    return image.crop((left, top, right, bottom)).resize(
        (min(size, scaled[0]), min(size, scaled[1])), resample, box=(x0, y0, x1, y1)
    )


def center(length: int, size: int) -> int:
    """Return where a centerd cut of `size` pixels begins; negative where the image is smaller (torchvision's rounding)."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def to_chw(image: Image.Image) -> Pixels:
    """Return an RGB image as uint8 [3,H,W]."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
