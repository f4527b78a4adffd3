"""What happens to one picture: the exact way for evaluation, and a view that is a function of its key for training.

Both return uint8 [3,S,S]; normalisation happens on the device, for the whole batch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from deitctl import rng
from deitctl.card import IMAGENET_MEAN, Preprocessing
from deitctl.config import AugmentConfig
from deitctl.errors import ConfigError

Pixels = NDArray[np.uint8]
MOST_RESIZED = 2**24
"""Pixels of a resized picture above which only what the crop keeps of it is computed."""
VIEWS_VERSION = 1
"""Goes up when `train_view` gives other pixels for the same arguments, so that no stored word of a teacher outlives them."""
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def eval_view(image: Image.Image, pre: Preprocessing) -> Pixels:
    """Resize, crop the centre: to the pixel what timm's `transforms_imagenet_eval` does."""
    size, target = pre.img_size, pre.resize_to
    resample = INTERPOLATION.get(pre.interpolation, Image.Resampling.BICUBIC)
    if pre.crop_mode == "squash":
        image = image.resize((target, target), resample)
    else:
        width, height = image.size
        short = min(width, height)
        scaled = (target, int(target * height / width)) if width == short else (int(target * width / height), target)
        if scaled[0] * scaled[1] > MOST_RESIZED:
            image = _resize_centre(image, scaled, size, resample)
        elif scaled != image.size:
            image = image.resize(scaled, resample)
    left, top = _centre(image.width, size), _centre(image.height, size)
    return _pixels(image.crop((left, top, left + size, top + size)))  # outside the picture: black, as torchvision pads


def _resize_centre(image: Image.Image, scaled: tuple[int, int], size: int, resample: Image.Resampling) -> Image.Image:
    """Return the middle of `image` resized to `scaled`, at most `size` a side: a ribbon 20,000 times as long as wide
    would take gigabytes. A value may differ by one from that of the whole, resized: Pillow's coordinates are floats.
    """
    lengths, cut, box = (image.width, image.height), [], []
    for length, whole in zip(lengths, scaled, strict=True):
        kept, step = min(size, whole), length / whole
        start, end = _centre(whole, kept) * step, (_centre(whole, kept) + kept) * step
        margin = 4 * max(1.0, step)  # no filter looks further than three pixels of the smaller picture
        first, last = max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))
        cut.append((first, last))
        box.append((start - first, end - first))
    (left, right), (top, bottom) = cut
    (x0, x1), (y0, y1) = box
    return image.crop((left, top, right, bottom)).resize(
        (min(size, scaled[0]), min(size, scaled[1])), resample, box=(x0, y0, x1, y1)
    )


def _centre(length: int, size: int) -> int:
    """Return where a centred cut of `size` pixels begins; negative where the picture is smaller (torchvision's rounding)."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def train_view(image: Image.Image, config: AugmentConfig, img_size: int, seed: int, view: int, index: int) -> Pixels:
    """Return a view of picture `index`, a function of `(seed, view, index)`: crop, flip, affine map, colours.

    Another `img_size` gives the same view in another resolution. A change of what is drawn here, or in which order,
    raises `VIEWS_VERSION`.
    """
    draw = rng.generator(seed, "view", view, index)
    box = crop_box(image.size, config, draw)
    image = image.resize((img_size, img_size), Image.Resampling.BICUBIC, box=box)
    if draw.random() < config.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if any(config.affine):
        image = small_affine(image, config.affine, draw)
    if config.rand_augment:
        with rng.scope(seed, "rand-augment", view, index):  # timm draws from Python's and NumPy's globals
            image = _rand_augment(config.rand_augment, img_size)(image)
    elif config.color_jitter:
        image = color_jitter(image, config.color_jitter, draw)
    return _pixels(image)


def crop_box(
    size: tuple[int, int], config: AugmentConfig, draw: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a random resized crop (Szegedy et al. 2015) in pixels; ten tries, then the largest central crop.

    A scale of (1, 1) is the whole picture, whatever its aspect ratio.
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


def small_affine(image: Image.Image, strength: tuple[float, float, float], draw: np.random.Generator) -> Image.Image:
    """Rotate by up to `strength[0]` degrees, scale by up to a share `[1]`, shift by up to a share `[2]` of the side."""
    degrees, scaling, shift = strength
    angle = math.radians(draw.uniform(-degrees, degrees))
    scale = 1 / (1 + draw.uniform(-scaling, scaling))
    dx, dy = draw.uniform(-shift, shift, 2) * image.width
    cos, sin, centre = math.cos(angle) * scale, math.sin(angle) * scale, (image.width - 1) / 2
    matrix = (
        cos, sin, centre - cos * (centre + dx) - sin * (centre + dy),
        -sin, cos, centre + sin * (centre + dx) - cos * (centre + dy),
    )  # fmt: skip
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def color_jitter(image: Image.Image, strength: float, draw: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, by factors in 1 ± strength (torchvision's jitter)."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in draw.permutation(3):
        image = kinds[which](image).enhance(float(draw.uniform(max(0.0, 1 - strength), 1 + strength)))
    return image


def require_rand_augment(spec: str) -> None:
    """Raise `ConfigError` if timm does not understand a RandAugment string."""
    _rand_augment(spec, 224)


@lru_cache(maxsize=4)
def _rand_augment(spec: str, img_size: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(min(255, round(255 * m)) for m in IMAGENET_MEAN)
    # as timm's transforms_imagenet_train sets it up, which is DeiT's
    hparams = {
        "translate_const": int(img_size * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BICUBIC,
    }  # fmt: skip
    try:
        return rand_augment_transform(spec, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"rand_augment = {spec!r} is not understood.", "Example: rand-m9-mstd0.5-inc1.") from error


def _pixels(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
