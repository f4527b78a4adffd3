"""The evaluation transform: resize and center crop.

Without torch, because ONNX inference needs none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.band_image import BandImage, has_bands
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing
from deitctl.sizes import ImageSize, height_width

Pixels = NDArray[np.uint8]
MAX_RESIZED_PIXELS = 2**24
"""Above this size of the resized image, only the part inside the crop is computed."""
MAX_ASPECT = 100
"""Above this ratio of height to width Pillow 12 filters columns before rows, and rounds
differently.

Pillow 13 chooses the cheaper order for every image. We follow the installed Pillow, as timm and
transformers do: pixels of tall images then differ by rounding between the versions."""
INTERPOLATION = {resample.name.lower(): resample for resample in Image.Resampling}
"""Pillow's filters by timm's names."""


def eval_transform(image: Image.Image, pre: Preprocessing) -> Pixels:
    """Resize and center-crop an RGB image: uint8 [C,H,W].

    The pixels are those of timm's `transforms_imagenet_eval`. A model of one channel sees its
    luminance.
    """
    target, (height, width) = pre.resize_to, pre.hw
    image = to_channels(image, pre.in_chans)
    resample = INTERPOLATION.get(pre.interpolation, Image.Resampling.BICUBIC)
    if pre.crop_mode == "squash":
        image = image.resize(height_width(target)[::-1], resample)
    else:
        scaled = get_resized_size(image.width, image.height, target)
        # 2 x 20,000 pixels would become 248 x 2,480,000: 1.8 GB, of which the crop shows a square.
        if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
            image = _resize_center(image, scaled, (width, height), resample)
        # As torchvision, which returns an image of the right size as it is; Pillow would copy it.
        elif scaled != image.size:
            image = image.resize(scaled, resample)
    left, top = get_crop_offset(image.width, width), get_crop_offset(image.height, height)
    # Pillow fills with black outside of the image, as torchvision pads.
    return to_chw(image.crop((left, top, left + width, top + height)))


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """Return an RGB image as a model of `in_chans` channels takes it: one of one as its luminance.

    Raises:
        DataError: it is RGB and the model takes bands, or the reverse, or another number of them.
    """
    bands = len(image.bands) if isinstance(image, BandImage) else 0
    if bands != (in_chans if has_bands(in_chans) else 0):
        raise DataError(
            f"The image has {bands or 3} bands, and the model takes {in_chans}.",
            "A model takes images of one number of bands.",
        )
    return image.convert("L") if in_chans == 1 else image


def get_resized_size(width: int, height: int, target: ImageSize) -> tuple[int, int]:
    """Return (width, height) with the short side at `target` pixels, or covering height and width.

    The other side is rounded down, as in timm and transformers; of a target that is no square it is
    rounded to the nearest, as in timm.
    """
    if not isinstance(target, int):
        ratio = min(height / target[0], width / target[1])
        return round(width / ratio), round(height / ratio)
    if width <= height:
        # int() of a float, as both have it: integer division differs where the product is not
        # exact.
        return target, int(target * height / width)
    return int(target * width / height), target


def has_extreme_aspect(width: int, height: int, pre: Preprocessing) -> bool:
    """Whether an image is so long that other programs resize it in gigabytes or round otherwise."""
    if height > MAX_ASPECT * width or width > MAX_ASPECT * height:
        return True
    across, down = get_resized_size(width, height, pre.resize_to)
    return pre.crop_mode != "squash" and across * down > MAX_RESIZED_PIXELS


def _resize_center(
    image: Image.Image, scaled: tuple[int, int], size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Return the center of `image` resized to `scaled`, at most `size`; each is (width, height).

    A value may differ by 1 from the crop of the resized image, because Pillow's box coordinates are
    floats.
    """
    bounds, box = [], []
    for length, resized, side in zip((image.width, image.height), scaled, size, strict=True):
        cropped, step = min(side, resized), length / resized
        start = get_crop_offset(resized, cropped) * step
        end = (get_crop_offset(resized, cropped) + cropped) * step
        # no filter reaches further than three pixels of the smaller image
        margin = 4 * max(1.0, step)
        first, last = max(0, math.floor(start - margin)), min(length, math.ceil(end + margin))
        bounds.append((first, last))
        box.append((start - first, end - first))
    (left, right), (top, bottom) = bounds
    (x0, x1), (y0, y1) = box
    return image.crop((left, top, right, bottom)).resize(
        (min(size[0], scaled[0]), min(size[1], scaled[1])), resample, box=(x0, y0, x1, y1)
    )


def get_crop_offset(length: int, size: int) -> int:
    """Return where a center crop of `size` pixels begins, with torchvision's rounding.

    Negative if the image is smaller.
    """
    # round() is to the even pixel, as torchvision's int(round()); transformers rounds down, one
    # pixel beside for a quarter of all sizes.
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def to_chw(image: Image.Image) -> Pixels:
    """Return an RGB image as uint8 [3,H,W], a gray one as [1,H,W], one of bands as [N,H,W]."""
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
