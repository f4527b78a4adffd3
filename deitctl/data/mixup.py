"""Mixup and cutmix of a batch.

Drawn for each group of neighbors in the global batch, then applied to images and targets.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deitctl import rng
from deitctl.sizes import ImageSize, height_width

if TYPE_CHECKING:
    from deitctl.config import AugmentConfig


@dataclass(frozen=True)
class Mix:
    """How images are mixed with their partners; each keeps the fraction `lam` of itself."""

    lam: float
    bbox: tuple[int, int, int, int] | None
    """For cutmix, the rectangle taken from the partner: top, bottom, left, right in pixels; None
    for mixup."""


class MixGroup(NamedTuple):
    """Images of a batch that share a draw."""

    rows: slice
    mix: Mix | None
    """None: unmixed."""


def sample_mixup(
    config: AugmentConfig, img_size: ImageSize, seed: int, step: int, slots: Sequence[int]
) -> list[MixGroup]:
    """Draw the mixing of a step's images, timm's `batch` mode in each group of neighbors.

    DeiT's batch of 1024 is that of 16 processes (deit/README_deit.md: 2 nodes, 8 GPUs each,
    main.py `--batch-size` 64), and each draws for its own images (engine.py calls timm's Mixup in
    each process). One draw for all of a batch has the same mean, and over the steps four times the
    standard deviation.

    Args:
        config: probabilities, Beta parameters and `mixup_group_size`.
        img_size: of the images in pixels.
        seed: of the run.
        step: of the run.
        slots: place of each image in the global batch, ascending.

    Returns:
        The groups that `slots` are of, in order. A group is a function of `(seed, step)` and its
        number, so a part of the batch has the groups of the whole.
    """
    pairs = -(-config.mixup_group_size // 2)  # a group holds whole pairs
    groups, start = [], 0
    for number, members in groupby(slot // 2 // pairs for slot in slots):
        stop = start + len(list(members))
        draw = rng.generator(seed, "mix", step, number)
        groups.append(MixGroup(slice(start, stop), _sample_mix(config, img_size, draw)))
        start = stop
    return groups


def _sample_mix(
    config: AugmentConfig, img_size: ImageSize, draw: np.random.Generator
) -> Mix | None:
    if not (config.mixup or config.cutmix) or draw.random() >= config.mixup_prob:
        return None
    use_cutmix = bool(config.cutmix) and (
        not config.mixup or draw.random() < config.mixup_switch_prob
    )
    alpha = config.cutmix if use_cutmix else config.mixup
    # mixup: Zhang et al. 2018; both with alpha as in DeiT, Table 9.
    lam = float(draw.beta(alpha, alpha))
    return rand_bbox(img_size, lam, draw) if use_cutmix else Mix(lam, None)


def rand_bbox(img_size: ImageSize, lam: float, draw: np.random.Generator) -> Mix:
    """Draw cutmix's rectangle (Yun et al. 2019, §3.1).

    `lam` is corrected for what the border cuts off.
    """
    # As timm today: (side + 1) // 2 below keeps an odd side whole, which timm 0.3.2, DeiT's
    # version, cut by a pixel.
    height, width = height_width(img_size)
    rows, columns = (int(side * math.sqrt(1 - lam)) for side in (height, width))
    y, x = (int(draw.integers(0, side)) for side in (height, width))
    top, bottom = max(0, y - rows // 2), min(height, y + (rows + 1) // 2)
    left, right = max(0, x - columns // 2), min(width, x + (columns + 1) // 2)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


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


def mix_targets(targets: Tensor, groups: Sequence[MixGroup], partners: Tensor) -> Tensor:
    """Mix labels or teacher targets, [B,K], in the proportion in which their images are mixed.

    Of several labels too, each class by itself (timm's `mixup_target` with `multi_label`).
    """
    if all(group.mix is None for group in groups):
        return targets
    mixed = torch.empty_like(targets)
    for rows, mix in groups:
        if mix is None:
            mixed[rows] = targets[rows]
        else:
            _blend(targets, mix.lam, rows, partners, out=mixed[rows])
    return mixed


def mix_images(images: Tensor, groups: Sequence[MixGroup], partners: Tensor) -> Tensor:
    """Mix images [B,3,H,W] with their partners [B]."""
    if all(group.mix is None for group in groups):
        return images
    # Apart from the input: in place, the second of two partners would get back its own pixels. By
    # slices, whose bounds the host knows, so that no accelerator is waited for.
    mixed = torch.empty_like(images)
    for rows, mix in groups:
        if mix is not None and mix.bbox is None:
            _blend(images, mix.lam, rows, partners, out=mixed[rows])
            continue
        mixed[rows] = images[rows]
        if mix is not None and mix.bbox is not None:
            top, bottom, left, right = mix.bbox
            patches = images[:, :, top:bottom, left:right]
            mixed[rows, :, top:bottom, left:right] = patches[partners[rows]]
    return mixed


def _blend(values: Tensor, lam: float, rows: slice, partners: Tensor, *, out: Tensor) -> None:
    torch.mul(values[rows], lam, out=out)
    out += values[partners[rows]].mul_(1 - lam)
