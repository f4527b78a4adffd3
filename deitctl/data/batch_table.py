"""What is drawn for each image of a batch, as the table that the device transforms it by.

The draws are the host's, a function of (seed, key) or of (seed, step), so they are the same on any number of
processes and after a resume; the arithmetic is the device's, on all rows at once.

Letters: B images, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.mixup import MixGroup, pair_offsets
from deitctl.data.samplers import SampleKey
from deitctl.sizes import ImageSize, height_width

# timm's RandomErasing, which DeiT uses; Zhong et al. 2017 have 0.02 to 0.4
ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)

AFFINE = slice(0, 6)
"""The student's affine map, rows of a 2 x 3 matrix (`torch.nn.functional.affine_grid`)."""
ERASED = slice(6, 10)
"""The rectangle that is erased: top, bottom, left, right in pixels; of zeros nothing is."""
PASTED = slice(10, 14)
"""The rectangle that cutmix takes from the partner, likewise."""
IMAGE_SHARES = slice(14, 16)
"""Weights of the image's own pixels and of its partner's in mixup; 1 and 0 else."""
LABEL_SHARES = slice(16, 18)
"""Weights of the image's own labels and of its partner's."""
PARTNER = 18
"""Rows from an image to the one that it is mixed with: -1, 0 or 1."""
NUM_COLUMNS = 19
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class BatchTable(NamedTuple):
    """A row for each image of a batch."""

    values: Tensor
    """float32 [B,`NUM_COLUMNS`]."""
    seeds: Tensor
    """int64 [B], of the noise in the erased rectangle."""


class Parts(NamedTuple):
    """Which transforms a batch needs, which the host knows."""

    has_affine: bool
    has_erased: bool
    has_mixup: bool
    has_cutmix: bool


class TableDraws(NamedTuple):
    """How the table of a training's batches is drawn."""

    seed: int
    """Of the run."""
    uses_affine: bool
    """Whether the student sees views moved a little, because the same views come again."""


def draw_table(
    keys: Sequence[SampleKey], augment: AugmentConfig, img_size: ImageSize, draws: TableDraws
) -> BatchTable:
    """Draw what depends on the image: affine map and erased rectangle; nothing is mixed.

    Args:
        keys: of the batch.
        augment: of the recipe.
        img_size: of the views in pixels.
        draws: seed, and what is drawn.
    """
    hw = height_width(img_size)
    values = np.zeros((len(keys), NUM_COLUMNS), np.float32)
    values[:, AFFINE] = IDENTITY
    values[:, [IMAGE_SHARES.start, LABEL_SHARES.start]] = 1
    seeds = np.zeros(len(keys), np.int64)
    if draws.uses_affine and any(augment.student_affine):
        for row, key in enumerate(keys):
            values[row, AFFINE] = draw_affine(
                augment, hw, rng.generator(draws.seed, "on top", *key)
            )
    if augment.random_erase_prob:
        for row, key in enumerate(keys):
            # A seed for each key: the same erasing on any number of processes, and after a resume.
            seeds[row] = rng.derive_seed(draws.seed, "erase", *key)
            draw = np.random.Generator(np.random.PCG64(seeds[row]))
            values[row, ERASED] = draw_erased(augment.random_erase_prob, hw, draw)
    return BatchTable(torch.from_numpy(values), torch.from_numpy(seeds))


def draw_erased(
    probability: float, hw: tuple[int, int], draw: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the rectangle of random erasing: top, bottom, left, right; zeros for none."""
    if draw.random() >= probability:
        return 0, 0, 0, 0
    height, width = hw
    for _ in range(10):  # timm's number of tries
        area = height * width * draw.uniform(*ERASE_AREA)
        ratio = math.exp(draw.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top = int(draw.integers(0, height - h + 1))
            left = int(draw.integers(0, width - w + 1))
            return top, top + h, left, left + w
    return 0, 0, 0, 0


def draw_affine(
    augment: AugmentConfig, hw: tuple[int, int], draw: np.random.Generator
) -> tuple[float, ...]:
    """Draw a rotation, scale, translation and flip, the last only where the recipe flips.

    With cached views the student would see the same pixels again; this gives it new ones each
    epoch, small enough for the teacher's targets of the view to hold.
    """
    degrees, scaling, shift = augment.student_affine
    height, width = hw
    angle = math.radians(draw.uniform(-degrees, degrees))
    scale = 1 / (1 + draw.uniform(-scaling, scaling))
    dx, dy = draw.uniform(-2 * shift, 2 * shift, 2).tolist()  # the grid is 2 wide
    mirror = -1.0 if draw.random() < augment.hflip else 1.0
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    # The grid is 2 wide and 2 high, whatever the image is.
    across, down = sin * (height / width), -mirror * sin * (width / height)
    return mirror * cos, across, dx, down, cos, dy


def fill_mixing(table: BatchTable, groups: Sequence[MixGroup], slots: Sequence[int]) -> BatchTable:
    """Return a table with the mixing of a step, see `sample_mixup`.

    Args:
        table: of the images.
        groups: of the same images.
        slots: of each in the global batch.
    """
    if all(group.mix is None for group in groups):
        return table
    values = table.values.clone()
    values[:, PARTNER] = torch.from_numpy(pair_offsets(slots))
    for rows, mix in groups:
        if mix is None:
            continue
        values[rows, LABEL_SHARES] = torch.tensor([mix.lam, 1 - mix.lam])
        if mix.bbox is None:
            values[rows, IMAGE_SHARES] = torch.tensor([mix.lam, 1 - mix.lam])
        else:
            values[rows, PASTED] = torch.tensor(mix.bbox, dtype=torch.float32)
    return BatchTable(values, table.seeds)


def list_parts(augment: AugmentConfig, groups: Sequence[MixGroup], *, uses_affine: bool) -> Parts:
    """Return which transforms the images of some groups need."""
    mixes = [group.mix for group in groups if group.mix is not None]
    return Parts(
        has_affine=uses_affine and any(augment.student_affine),
        has_erased=augment.random_erase_prob > 0,
        has_mixup=any(mix.bbox is None for mix in mixes),
        has_cutmix=any(mix.bbox is not None for mix in mixes),
    )


def list_all_parts(augment: AugmentConfig, *, uses_affine: bool) -> Parts:
    """Return which transforms any batch of a training may need: the same for all, as a graph has it."""
    mixes = augment.mixup_prob > 0
    return Parts(
        has_affine=uses_affine and any(augment.student_affine),
        has_erased=augment.random_erase_prob > 0,
        has_mixup=mixes and augment.mixup > 0,
        has_cutmix=mixes and augment.cutmix > 0,
    )


def as_numbers(values: Tensor) -> NDArray[np.int64]:
    """Return columns of pixels of a table on the CPU."""
    return values.numpy().astype(np.int64)
