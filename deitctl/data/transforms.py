"""The training transform: one augmented view of an image, uint8 [C,H,W], a function of its key.

Normalization and erasing run on the device for the whole batch (batch_transforms.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.band_image import from_pixels
from deitctl.data.decode import LARGE
from deitctl.data.eval_transform import Pixels, to_chw
from deitctl.data.lazy_jpeg import Box, LazyJpeg
from deitctl.data.own_augmentation import Augmentation, apply_augmentation
from deitctl.data.rand_augment import parse_rand_augment
from deitctl.data.three_augment import cover, pad_and_crop, three_augment
from deitctl.sizes import ImageSize, height_width

NARROW = 8
"""Side in pixels below which Pillow resizes a crop: there torch's rounding differs more."""
VIEWS_VERSION = 4
"""Increased when `train_transform` gives other pixels for the same arguments; cached teacher
targets are then stale."""


def train_transform(
    image: Image.Image | LazyJpeg,
    config: AugmentConfig,
    img_size: ImageSize,
    seed: int,
    view: int,
    index: int,
    augmentation: Augmentation | None = None,
) -> Pixels:
    """Return a view of RGB image `index` as uint8 [3,H,W], see `render_view`."""
    return to_chw(render_view(image, config, img_size, seed, view, index, augmentation))


def render_view(
    image: Image.Image | LazyJpeg,
    config: AugmentConfig,
    img_size: ImageSize,
    seed: int,
    view: int,
    index: int,
    augmentation: Augmentation | None = None,
) -> Image.Image:
    """Return a view of RGB image `index`: crop, flip, affine map, colors.

    It is a function of `(seed, view, index)`.

    `augmentation` is the caller's own, which comes last.

    Another `img_size` gives the same view at another resolution. A change of what is drawn, or of
    the order of draws, must increase `VIEWS_VERSION`.

    Raises:
        DataError: a `LazyJpeg` that is damaged.
    """
    # timm draws from global generators, so its views depend on the workers and cannot be resumed.
    draw = rng.generator(seed, "view", view, index)
    if config.crop_mode == "src":
        hw = height_width(img_size)
        covering = resized_crop(image, (0, 0, *image.size), cover(image.size, hw))
        augmented = pad_and_crop(covering, hw, draw)
    else:
        augmented = resized_crop(image, sample_crop_box(image.size, config, draw), img_size)
    if draw.random() < config.hflip:
        augmented = augmented.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if any(config.affine):
        augmented = random_affine(augmented, config.affine, draw)
    if config.three_augment:
        augmented = three_augment(augmented, draw)
    if config.rand_augment:
        augmented = parse_rand_augment(config.rand_augment)(augmented, draw)
    # timm ignores color jitter where RandAugment is on, and so does DeiT; DeiT-III jitters last.
    elif config.color_jitter:
        augmented = color_jitter(augmented, config.color_jitter, draw)
    if augmentation is not None:
        augmented = apply_augmentation(augmentation, augmented, seed, view, index)
    return augmented


def sample_crop_box(size: tuple[int, int], config: AugmentConfig, draw: np.random.Generator) -> Box:
    """Draw the box of a random resized crop (Szegedy et al. 2015).

    Ten tries, then the largest central crop.

    As torchvision's `RandomResizedCrop`, except that a scale of (1, 1) takes the whole image at any
    aspect ratio.

    Args:
        size: width and height of the image in pixels.
        config: `crop_scale` and `crop_ratio` are used.
        draw: the view's generator.
    """
    width, height = size
    # A recipe that does not crop: with torchvision's rule the aspect ratio would crop nevertheless.
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


def resized_crop(image: Image.Image | LazyJpeg, box: Box, size: ImageSize) -> Image.Image:
    """Crop a box out of an RGB image and resize it to the input's size, bicubic and antialiased.

    By torch, which takes half of Pillow's time; values differ from Pillow's by 2 of 255 at most. A
    JPEG's box of four times the size or more is first decoded at 1/2, 1/4 or 1/8, which changes a
    photo's view by half a level of 255 or less in the mean (docs/results/speed.md).
    """
    width, height = box[2] - box[0], box[3] - box[1]
    hw = height_width(size)
    if isinstance(image, LazyJpeg) and (shrink := image.choose_shrink(width, height, size)) > 1:
        return _resize_reduced(image.decode_scaled(shrink), box, shrink, hw)
    if width * height > LARGE or min(width, height) < NARROW:
        full = image.decode_scaled(1) if isinstance(image, LazyJpeg) else image
        if width * height <= LARGE:  # else the crop would be a large copy
            full, box = full.crop(box), (0, 0, width, height)
        return full.resize(hw[::-1], Image.Resampling.BICUBIC, box=box)
    cropped = image.crop(box)
    # channels last
    pixels = torch.from_numpy(np.array(cropped, order="C")).unsqueeze(0).permute(0, 3, 1, 2)
    # uint8 channels last is the layout that torch's vectorized CPU kernel takes.
    resized = F.interpolate(pixels, hw, mode="bicubic", antialias=True)
    return from_pixels(resized.permute(0, 2, 3, 1)[0].numpy())


def _resize_reduced(
    reduced: Image.Image, box: Box, shrink: int, hw: tuple[int, int]
) -> Image.Image:
    """Resize a full image's box out of the image decoded at 1/shrink."""
    left, top, right, bottom = (side / shrink for side in box)
    first, last = (math.floor(left), math.floor(top)), (math.ceil(right), math.ceil(bottom))
    # Cut out first, as in full: else the filter mixes what lies outside into the edges.
    within = (left - first[0], top - first[1], right - first[0], bottom - first[1])
    return reduced.crop((*first, *last)).resize(hw[::-1], Image.Resampling.BICUBIC, box=within)


def random_affine(
    image: Image.Image, strength: tuple[float, float, float], draw: np.random.Generator
) -> Image.Image:
    """Rotate, scale and translate at random.

    `strength`: degrees, fraction of the size, fraction of the side.
    """
    degrees, scaling, shift = strength
    angle = math.radians(draw.uniform(-degrees, degrees))
    scale = 1 / (1 + draw.uniform(-scaling, scaling))
    dx, dy = draw.uniform(-shift, shift, 2) * image.size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    matrix = (
        cos,
        sin,
        x - cos * (x + dx) - sin * (y + dy),
        -sin,
        cos,
        y + sin * (x + dx) - cos * (y + dy),
    )
    # The matrix maps output to input pixels, hence the inverse of the motion.
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def color_jitter(image: Image.Image, strength: float, draw: np.random.Generator) -> Image.Image:
    """Change brightness, contrast, saturation in random order, as torchvision does.

    By factors in 1 ± `strength`.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    # timm's jitter of one number, DeiT's, leaves the hue alone.
    for which in draw.permutation(3):
        factor = float(draw.uniform(max(0.0, 1 - strength), 1 + strength))
        image = kinds[which](image).enhance(factor)
    return image
