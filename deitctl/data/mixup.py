"""Mixup and cutmix of a batch.

Drawn for the whole global batch, then applied to images and targets.

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

if TYPE_CHECKING:
    from deitctl.config import AugmentConfig


@dataclass(frozen=True)
class Mix:
    """The mixing of one batch; each image keeps the fraction `lam` of itself."""

    lam: float
    bbox: tuple[int, int, int, int] | None
    """For cutmix, the rectangle taken from the partner: top, bottom, left, right in pixels; None
    for mixup."""


def sample_mixup(config: AugmentConfig, img_size: int, seed: int, step: int) -> Mix | None:
    """Draw the mixing of a step, timm's `batch` mode as in DeiT; None for an unmixed batch."""
    draw = rng.generator(seed, "mix", step)
    if not (config.mixup or config.cutmix) or draw.random() >= config.mixup_prob:
        return None
    use_cutmix = bool(config.cutmix) and (
        not config.mixup or draw.random() < config.mixup_switch_prob
    )
    alpha = config.cutmix if use_cutmix else config.mixup
    # mixup: Zhang et al. 2018; both with alpha as in DeiT, Table 9.
    lam = float(draw.beta(alpha, alpha))
    return rand_bbox(img_size, lam, draw) if use_cutmix else Mix(lam, None)


def rand_bbox(img_size: int, lam: float, draw: np.random.Generator) -> Mix:
    """Draw cutmix's rectangle (Yun et al. 2019, §3.1).

    `lam` is corrected for what the border cuts off.
    """
    # As timm today: (side + 1) // 2 below keeps an odd side whole, which timm 0.3.2, DeiT's
    # version, cut by a pixel.
    side = int(img_size * math.sqrt(1 - lam))
    y, x = draw.integers(0, img_size, 2).tolist()
    top, bottom = max(0, y - side // 2), min(img_size, y + (side + 1) // 2)
    left, right = max(0, x - side // 2), min(img_size, x + (side + 1) // 2)
    return Mix(1 - (bottom - top) * (right - left) / img_size**2, (top, bottom, left, right))


def pair_indices(slots: Sequence[int]) -> Tensor:
    """Return each image's partner as an index [B]: slots 0 and 1 are a pair, 2 and 3, and so on.

    An image whose partner is missing is its own. Slots are places in the epoch's order, so pairs
    depend neither on the batch size, nor on the number of processes, nor on an unreadable image
    elsewhere.
    """
    # timm pairs the first with the last of a batch, so its pairs depend on the batch size.
    at = {slot: index for index, slot in enumerate(slots)}
    return torch.tensor(
        [at.get(slot ^ 1, index) for index, slot in enumerate(slots)], dtype=torch.int64
    )


def mix_targets(targets: Tensor, mix: Mix | None, partners: Tensor) -> Tensor:
    """Mix labels or teacher targets, [B,K], in the proportion in which their images are mixed."""
    return targets if mix is None else targets * mix.lam + targets[partners] * (1 - mix.lam)


def mix_images(images: Tensor, mix: Mix | None, partners: Tensor) -> Tensor:
    """Mix images [B,3,H,W] with their partners [B]."""
    if mix is None:
        return images
    if mix.bbox is None:
        return images * mix.lam + images[partners] * (1 - mix.lam)
    top, bottom, left, right = mix.bbox
    # Both partners change: in place, the second would get back its own pixels.
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[partners][:, :, top:bottom, left:right]
    return images
