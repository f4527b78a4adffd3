"""What happens to a batch on the device: normalize, erase, mix. All of it a function of keys and steps.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deitctl import rng
from deitctl.data.samplers import SampleKey
from deitctl.models.model_config import Preprocessing

if TYPE_CHECKING:
    from deitctl.config import AugmentConfig

ERASE_AREA = (
    0.02,
    1 / 3,
)  # timm's RandomErasing, which DeiT uses (Zhong et al. 2017 have 0.02..0.4)
ERASE_RATIO = (0.3, 1 / 0.3)


def normalize(pixels: Tensor, pre: Preprocessing) -> Tensor:
    """Turn uint8 [B,3,H,W] into the floats a model wants: (x / 255 - mean) / std per channel."""
    mean, std = _channels(pre.mean, pixels), _channels(pre.std, pixels)
    return pixels.float().div(255).sub(mean).div(std)


def renormalize(images: Tensor, old: Preprocessing, new: Preprocessing) -> Tensor:
    """Turn images normalized for one model into what another wants."""
    if (old.mean, old.std) == (new.mean, new.std):
        return images
    scale = _channels(old.std, images) / _channels(new.std, images)
    shift = (_channels(old.mean, images) - _channels(new.mean, images)) / _channels(new.std, images)
    return images * scale + shift


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32).view(1, 3, 1, 1)


def random_erase(
    images: Tensor, keys: Sequence[SampleKey], probability: float, seed: int
) -> Tensor:
    """Fill one random rectangle of some normalized images [B,3,H,W] with normal noise, in place (random erasing).

    The rectangle and its noise belong to `(seed, key)` of the image, not to the batch.
    """
    if not probability:
        return images
    height, width = images.shape[-2:]
    for image, key in zip(images, keys, strict=True):
        draw = rng.generator(seed, "erase", *key)
        if draw.random() >= probability:
            continue
        for _ in range(10):
            area = height * width * draw.uniform(*ERASE_AREA)
            ratio = math.exp(draw.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top, left = (
                    int(draw.integers(0, height - h + 1)),
                    int(draw.integers(0, width - w + 1)),
                )
                noise = torch.from_numpy(draw.standard_normal((3, h, w), dtype=np.float32))
                image[:, top : top + h, left : left + w] = noise.to(images.device)
                break
    return images


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: `share` of each image is its own, the rest its partner's."""

    share: float
    box: tuple[int, int, int, int] | None
    """For cutmix, the partner's rectangle: top, bottom, left, right in pixels; None for mixup."""


def sample_mixup(config: AugmentConfig, img_size: int, seed: int, step: int) -> Mix | None:
    """Draw how the whole batch of a step is mixed (timm's and DeiT's `batch` mode), None for not at all."""
    draw = rng.generator(seed, "mix", step)
    if not (config.mixup or config.cutmix) or draw.random() >= config.mixup_prob:
        return None
    cut = bool(config.cutmix) and (not config.mixup or draw.random() < config.mixup_switch_prob)
    strength = config.cutmix if cut else config.mixup
    share = float(draw.beta(strength, strength))
    return rand_bbox(img_size, share, draw) if cut else Mix(share, None)


def rand_bbox(img_size: int, share: float, draw: np.random.Generator) -> Mix:
    """Draw a rectangle of about 1 - share of the image (Yun et al. 2019, §3.1); `share` becomes what is really left."""
    side = int(img_size * math.sqrt(1 - share))
    y, x = draw.integers(0, img_size, 2).tolist()
    top, bottom = max(0, y - side // 2), min(img_size, y + (side + 1) // 2)
    left, right = max(0, x - side // 2), min(img_size, x + (side + 1) // 2)
    return Mix(1 - (bottom - top) * (right - left) / img_size**2, (top, bottom, left, right))


def pair_indices(slots: Sequence[int]) -> Tensor:
    """Pair neighbors, slot 0 with 1, 2 with 3: for each image [B] the index of its partner, its own where there is none.

    Slots are places in the epoch's order, so that who meets whom depends neither on the batch size nor on the processes
    nor on an image elsewhere that cannot be read.
    """
    at = {slot: index for index, slot in enumerate(slots)}
    return torch.tensor(
        [at.get(slot ^ 1, index) for index, slot in enumerate(slots)], dtype=torch.int64
    )


def mix_targets(words: Tensor, mix: Mix | None, other: Tensor) -> Tensor:
    """Mix distributions [B,K], true or a teacher's, as the images they are about are mixed, with partners `other` [B]."""
    return words if mix is None else words * mix.share + words[other] * (1 - mix.share)


def mix_images(images: Tensor, mix: Mix | None, other: Tensor) -> Tensor:
    """Mix images [B,3,H,W] with their partners `other` [B]."""
    if mix is None:
        return images
    if mix.box is None:
        return images * mix.share + images[other] * (1 - mix.share)
    top, bottom, left, right = mix.box
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[other][:, :, top:bottom, left:right]
    return images
