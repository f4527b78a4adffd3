"""What happens to one image in training: a view, uint8 [3,S,S], that is a function of its key.

Normalization happens on the device, for the whole batch; evaluation's view is in eval_view.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.decode import LARGE
from deitctl.data.eval_transform import Pixels, channels_first
from deitctl.data.lazy_jpeg import Box, LazyJpeg
from deitctl.data.rand_augment import rand_augment

NARROW = 8
"""Pixels of a side below which a crop is Pillow's to resize."""
VIEWS_VERSION = 3
"""Goes up when `train_transform` gives other pixels for the same arguments, so that no stored word of a teacher outlives them."""


def train_transform(
    img: Image.Image | LazyJpeg,
    config: AugmentConfig,
    img_size: int,
    seed: int,
    view: int,
    index: int,
) -> Pixels:
    """Return a view of RGB image `index`, a function of `(seed, view, index)`: crop, flip, affine map, colors.

    Another `img_size` gives the same view in another resolution. A change of what is drawn here, or in which order,
    raises `VIEWS_VERSION`.

    Raises:
        DataError: a `LazyJpeg` that is damaged.
    """
    draw = rng.generator(seed, "view", view, index)
    image = resized_crop(img, crop_box(img.size, config, draw), img_size)
    if draw.random() < config.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if any(config.affine):
        image = small_affine(image, config.affine, draw)
    if config.rand_augment:
        image = rand_augment(config.rand_augment)(image, draw)
    elif config.color_jitter:
        image = color_jitter(image, config.color_jitter, draw)
    return channels_first(image)


def crop_box(size: tuple[int, int], config: AugmentConfig, draw: np.random.Generator) -> Box:
    """Draw a random resized crop (Szegedy et al. 2015) in pixels; ten tries, then the largest central crop.

    A scale of (1, 1) is the whole image, whatever its aspect ratio.
    """
    width, height = size
    if config.crop_scale == (1.0, 1.0):
        return 0, 0, width, height
    low, high = (math.log(r) for r in config.crop_ratio)
    for _ in range(10):
        area = width * height * draw.uniform(*config.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image | LazyJpeg, box: Box, size: int) -> Image.Image:
    """Cut a box out of an RGB image and resize it to a square by torch's bicubic, which is antialiased as Pillow's is.

    It takes half of Pillow's time; a value is beside Pillow's by 2 of 255 at most. Pillow does what is very large, whose
    copies would be too, and what is very narrow, where torch's rounding differs more. A JPEG's box of twice the size
    or more is decoded at a half, a quarter or an eighth first (docs/benchmarks.md says how much that changes).
    """
    width, height = box[2] - box[0], box[3] - box[1]
    if isinstance(image, LazyJpeg) and (shrink := image.shrink_for(width, height, size)) > 1:
        left, top, right, bottom = (side / shrink for side in box)
        return image.shrunk(shrink).resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
        )
    if width * height > LARGE or min(width, height) < NARROW:
        whole = image.shrunk(1) if isinstance(image, LazyJpeg) else image
        if width * height <= LARGE:
            whole, box = whole.crop(box), (0, 0, width, height)
        return whole.resize((size, size), Image.Resampling.BICUBIC, box=box)
    cut = image.cut(box) if isinstance(image, LazyJpeg) else np.asarray(image.crop(box))
    pixels = (
        torch.from_numpy(cut.copy()).unsqueeze(0).permute(0, 3, 1, 2)
    )  # channels last in memory
    shown = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return Image.fromarray(shown.permute(0, 2, 3, 1)[0].numpy())


def small_affine(
    image: Image.Image, strength: tuple[float, float, float], draw: np.random.Generator
) -> Image.Image:
    """Rotate by up to `strength[0]` degrees, scale by up to a share `[1]`, shift by up to a share `[2]` of the side."""
    degrees, scaling, shift = strength
    angle = math.radians(draw.uniform(-degrees, degrees))
    scale = 1 / (1 + draw.uniform(-scaling, scaling))
    dx, dy = draw.uniform(-shift, shift, 2) * image.width
    cos, sin, center = math.cos(angle) * scale, math.sin(angle) * scale, (image.width - 1) / 2
    matrix = (
        cos,
        sin,
        center - cos * (center + dx) - sin * (center + dy),
        -sin,
        cos,
        center + sin * (center + dx) - cos * (center + dy),
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def color_jitter(image: Image.Image, strength: float, draw: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, by factors in 1 ± strength (torchvision's jitter)."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in draw.permutation(3):
        image = kinds[which](image).enhance(
            float(draw.uniform(max(0.0, 1 - strength), 1 + strength))
        )
    return image
