"""Transforms of a batch on the device: normalization, random erasing, student's affine map.

Letters: B images, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl import rng
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import Preprocessing

if TYPE_CHECKING:
    from deitctl.config import AugmentConfig

# timm's RandomErasing, which DeiT uses; Zhong et al. 2017 have 0.02 to 0.4
ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)


def normalize(pixels: Tensor, pre: Preprocessing) -> Tensor:
    """Turn uint8 [B,C,H,W] into a model's input: (x / 255 - mean) / std per channel, float32."""
    mean, std = _as_channels(pre.mean, pixels), _as_channels(pre.std, pixels)
    # On the device, so that uint8 goes over the bus: a quarter of the bytes.
    return pixels.float().div(255).sub(mean).div(std)


def renormalize(images: Tensor, old: Preprocessing, new: Preprocessing) -> Tensor:
    """Turn images normalized for one model into another model's input."""
    if (old.mean, old.std) == (new.mean, new.std):
        return images
    new_std = _as_channels(new.std, images)
    scale = _as_channels(old.std, images) / new_std
    shift = (_as_channels(old.mean, images) - _as_channels(new.mean, images)) / new_std
    return images * scale + shift


def to_model_channels(images: Tensor, in_chans: int) -> Tensor:
    """Return images [B,C,H,W] as a model of `in_chans` takes them: one of one channel sees of RGB,
    whose channels are normalized alike, the luminance.

    By the weights of ITU-R 601-2, Pillow's for gray images.
    """
    if in_chans != 1 or images.shape[1] != 3:
        return images
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _as_channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32).view(1, -1, 1, 1)


def random_erase(
    images: Tensor, keys: Sequence[SampleKey], probability: float, seed: int
) -> Tensor:
    """Fill one random rectangle of some normalized images [B,C,H,W] with normal noise, in place.

    Random erasing in timm's `pixel` mode. Rectangle and noise are a function of `(seed, key)`, not
    of the batch.
    """
    if not probability:
        return images
    height, width = images.shape[-2:]
    for image, key in zip(images, keys, strict=True):
        # A generator for each key: the same erasing on any number of processes, and after a resume.
        draw = rng.generator(seed, "erase", *key)
        if draw.random() >= probability:
            continue
        for _ in range(10):  # timm's number of tries
            area = height * width * draw.uniform(*ERASE_AREA)
            ratio = math.exp(draw.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top = int(draw.integers(0, height - h + 1))
                left = int(draw.integers(0, width - w + 1))
                # Of mean 0 and deviation 1, as normalized images have.
                noise = torch.from_numpy(draw.standard_normal((len(image), h, w), dtype=np.float32))
                image[:, top : top + h, left : left + w] = noise.to(images.device)
                break
    return images


def student_affine(
    images: Tensor, keys: Sequence[SampleKey], config: AugmentConfig, seed: int
) -> Tensor:
    """Rotate, scale, translate and flip each normalized image of [B,C,H,W].

    Flips only where the recipe flips.

    With cached views the student would see the same pixels again; this gives it new ones each
    epoch, small enough for the teacher's targets of the view to hold. A function of `(seed, key)`.
    Pixels from outside repeat the edge.
    """
    degrees, scaling, shift = config.student_affine
    if not any(config.student_affine):
        return images
    height, width = images.shape[-2:]
    rows = []
    for key in keys:
        draw = rng.generator(seed, "on top", *key)
        angle = math.radians(draw.uniform(-degrees, degrees))
        scale = 1 / (1 + draw.uniform(-scaling, scaling))
        dx, dy = draw.uniform(-2 * shift, 2 * shift, 2).tolist()  # the grid is 2 wide
        mirror = -1.0 if draw.random() < config.hflip else 1.0
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        # The grid is 2 wide and 2 high, whatever the image is.
        across, down = sin * (height / width), -mirror * sin * (width / height)
        rows.append([[mirror * cos, across, dx], [down, cos, dy]])
    theta = torch.tensor(rows, device=images.device)
    # theta [B,2,3], grid [B,H,W,2] in -1..1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Clamped to the middle of the outermost pixel: MPS has no padding_mode="border" before torch
    # 2.13.
    edge = torch.tensor([1 - 1 / width, 1 - 1 / height], device=images.device)
    return F.grid_sample(images, grid.clamp(-edge, edge), mode="bilinear", align_corners=False)
