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

from deitctl.config import AugmentConfig
from deitctl.data.many_draws import derive_seeds, draw_raw, to_doubles
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
        values[:, AFFINE] = draw_affines(augment, hw, derive_seeds((draws.seed, "on top"), keys))
    if augment.random_erase_prob:
        # A seed for each key: the same erasing on any number of processes, and after a resume.
        seeds = derive_seeds((draws.seed, "erase"), keys)
        values[:, ERASED] = draw_rectangles(augment.random_erase_prob, hw, seeds)
    return BatchTable(torch.from_numpy(values), torch.from_numpy(seeds))


def draw_rectangles(
    probability: float, hw: tuple[int, int], seeds: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return what `draw_erased` draws by the generator of each seed, [N,4].

    Args:
        probability: of erasing.
        hw: height and width of the images.
        seeds: of N images.
    """
    height, width = hw
    raw = draw_raw(seeds, 4)
    rows = np.flatnonzero(to_doubles(raw[:, 0]) < probability)
    first, second = to_doubles(raw[rows, 1]), to_doubles(raw[rows, 2])
    area = height * width * _scale(first, *ERASE_AREA)
    # By `math`: NumPy's exponential may be another in the last bit.
    logs = _scale(second, math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1]))
    ratio = np.array([math.exp(log) for log in logs.tolist()])
    h, w = (np.rint(np.sqrt(side)).astype(np.int64) for side in (area * ratio, area / ratio))
    # Two integers of 32 bits out of one of 64, as `Generator.integers` takes them (Lemire 2019).
    top = (raw[rows, 3] & np.uint64(0xFFFFFFFF)) * (height - h + 1).astype(np.uint64)
    left = (raw[rows, 3] >> np.uint64(32)) * (width - w + 1).astype(np.uint64)
    is_first = (h < height) & (w < width)
    for product, number in ((top, height - h + 1), (left, width - w + 1)):
        is_first &= (product & np.uint64(0xFFFFFFFF)).astype(np.int64) >= number
    top, left = ((product >> np.uint64(32)).astype(np.int64) for product in (top, left))
    rectangles = np.zeros((len(seeds), 4), np.int64)
    rectangles[rows] = np.stack([top, top + h, left, left + w], axis=1)
    for row in rows[~is_first].tolist():  # it is tried again
        draw = np.random.Generator(np.random.PCG64(seeds[row]))
        rectangles[row] = draw_erased(probability, hw, draw)
    return rectangles


def _scale(doubles: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return what `Generator.uniform(low, high)` makes of numbers from 0 to 1."""
    return low + (high - low) * doubles


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


def draw_affines(
    augment: AugmentConfig, hw: tuple[int, int], seeds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Draw a rotation, scale, translation and flip, the last only where the recipe flips, [N,6].

    With cached views the student would see the same pixels again; this gives it new ones each
    epoch, small enough for the teacher's targets of the view to hold.

    Args:
        augment: of the recipe.
        hw: height and width of the images.
        seeds: of N images.
    """
    degrees, scaling, shift = augment.student_affine
    height, width = hw
    doubles = to_doubles(draw_raw(seeds, 5)).T
    # By `math`: NumPy's functions may be others in the last bit.
    angles = [math.radians(angle) for angle in _scale(doubles[0], -degrees, degrees).tolist()]
    scale = 1 / (1 + _scale(doubles[1], -scaling, scaling))
    dx, dy = (_scale(d, -2 * shift, 2 * shift) for d in doubles[2:4])  # the grid is 2 wide
    mirror = np.where(doubles[4] < augment.hflip, -1.0, 1.0)
    cos = np.array([math.cos(angle) for angle in angles]) * scale
    sin = np.array([math.sin(angle) for angle in angles]) * scale
    # The grid is 2 wide and 2 high, whatever the image is.
    across, down = sin * (height / width), -mirror * sin * (width / height)
    return np.stack([mirror * cos, across, dx, down, cos, dy], axis=1)


def fill_mixing(table: BatchTable, groups: Sequence[MixGroup], slots: Sequence[int]) -> BatchTable:
    """Return a table with the mixing of a step, see `sample_mixup`.

    Args:
        table: of the images.
        groups: of the same images.
        slots: of each in the global batch.
    """
    if all(group.mix is None for group in groups):
        return table
    values = table.values.numpy().copy()
    values[:, PARTNER] = pair_offsets(slots)
    for rows, mix in groups:
        if mix is None:
            continue
        values[rows, LABEL_SHARES] = mix.lam, 1 - mix.lam
        if mix.bbox is None:
            values[rows, IMAGE_SHARES] = mix.lam, 1 - mix.lam
        else:
            values[rows, PASTED] = mix.bbox
    return BatchTable(torch.from_numpy(values), table.seeds)


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
