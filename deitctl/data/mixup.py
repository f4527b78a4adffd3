"""Mixup and cutmix of a batch: what is drawn for each group of neighbors in the global batch.

`batch_transforms.py` applies it to images and targets. Letters: B images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def pair_offsets(slots: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows from each image to its partner, [B]: slots 0 and 1 are a pair, 2 and 3, and so on.

    An image whose partner is missing is its own. Slots are places in the epoch's order, so pairs
    depend neither on the batch size, nor on the number of processes, nor on an unreadable image
    elsewhere.

    Args:
        slots: of each image in the global batch, ascending, so that partners are neighbors.
    """
    # timm pairs the first with the last of a batch, so its pairs depend on the batch size.
    places = np.asarray(slots, np.int64)
    offsets = np.zeros(len(places), np.int64)
    is_pair = (places[:-1] ^ 1) == places[1:]
    offsets[:-1] += is_pair
    offsets[1:] -= is_pair
    return offsets
