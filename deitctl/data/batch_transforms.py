"""Transforms of a batch on the device: normalization, student's affine map, random erasing, mixing.

Each works on all rows at once by the table that the host has drawn (`batch_table.py`): nothing is read from the
device, and nothing is copied to it. Letters: B images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.constants import place_once
from deitctl.data.batch_table import (
    AFFINE,
    ERASED,
    IMAGE_SHARES,
    LABEL_SHARES,
    PARTNER,
    PASTED,
    BatchTable,
    Parts,
    as_numbers,
)
from deitctl.data.noise import sample_noise
from deitctl.models.model_config import Preprocessing

ROWS_AT_A_TIME = 128
"""Images whose noise an accelerator computes together, which bounds the memory of its integers."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of ITU-R 601-2, Pillow's for gray images."""


def normalize(pixels: Tensor, pre: Preprocessing) -> Tensor:
    """Turn uint8 [B,C,H,W] into a model's input: (x / 255 - mean) / std per channel, float32."""
    mean, std = as_channels(pre.mean, pixels.device), as_channels(pre.std, pixels.device)
    # On the device, so that uint8 goes over the bus: a quarter of the bytes.
    return pixels.float().div(255).sub(mean).div(std)


def renormalize(images: Tensor, old: Preprocessing, new: Preprocessing) -> Tensor:
    """Turn images normalized for one model into another model's input."""
    if (old.mean, old.std) == (new.mean, new.std):
        return images
    device = images.device
    new_std = as_channels(new.std, device)
    scale = as_channels(old.std, device) / new_std
    shift = (as_channels(old.mean, device) - as_channels(new.mean, device)) / new_std
    return images * scale + shift


def to_model_channels(images: Tensor, in_chans: int) -> Tensor:
    """Return images [B,C,H,W] as a model of `in_chans` takes them: one of one channel sees of RGB,
    whose channels are normalized alike, the luminance.
    """
    if in_chans != 1 or images.shape[1] != 3:
        return images
    return (images * as_channels(LUMINANCE, images.device)).sum(1, keepdim=True)


def as_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers of the channels as float32 [1,C,1,1]."""
    return place_once(values, device, lambda: torch.tensor(values).view(1, -1, 1, 1))


def transform_batch(
    pixels: Tensor, table: BatchTable, parts: Parts, preprocessing: Preprocessing
) -> Tensor:
    """Turn views into what the student sees: normalized, moved a little, erased, mixed.

    Args:
        pixels: uint8 [B,C,H,W].
        table: of these images, on the same device.
        parts: of the transforms, those that are needed.
        preprocessing: of the student.
    """
    images = normalize(pixels, preprocessing)
    if parts.has_affine:
        images = student_affine(images, table.values[:, AFFINE])
    if parts.has_erased:
        images = random_erase(images, table)
    return mix_images(images, table, parts)


def student_affine(images: Tensor, theta: Tensor) -> Tensor:
    """Move each normalized image of [B,C,H,W] by its affine map [B,6]; pixels from outside repeat the edge."""
    height, width = images.shape[-2:]
    # theta [B,2,3], grid [B,H,W,2] in -1..1
    grid = F.affine_grid(theta.reshape(-1, 2, 3), list(images.shape), align_corners=False)
    # Clamped to the middle of the outermost pixel: MPS has no padding_mode="border" before torch
    # 2.13.
    x, y = (
        part.clamp(1 / side - 1, 1 - 1 / side)
        for part, side in zip(grid.unbind(-1), (width, height), strict=True)
    )
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def random_erase(images: Tensor, table: BatchTable) -> Tensor:
    """Fill the erased rectangle of normalized images [B,C,H,W] with normal noise, perhaps in place.

    Random erasing in timm's `pixel` mode; the noise is of mean 0 and deviation 1, as normalized images.
    """
    boxes = table.values[:, ERASED]
    if torch.compiler.is_compiling():
        return _erase_by_masks(images, boxes, table.seeds)
    if images.device.type != "cpu":
        for first in range(0, len(images), ROWS_AT_A_TIME):
            rows = slice(first, first + ROWS_AT_A_TIME)
            images[rows] = _erase_by_masks(images[rows], boxes[rows], table.seeds[rows])
        return images
    channels, _, width = images.shape[1:]
    for row, (top, bottom, left, right) in enumerate(as_numbers(boxes).tolist()):
        if bottom:  # on a CPU the noise of the rectangle alone
            seeds = table.seeds[row : row + 1]
            noise = sample_noise(seeds, channels, (top, bottom), (left, right), width)
            images[row, :, top:bottom, left:right] = noise[0]
    return images


def _erase_by_masks(images: Tensor, boxes: Tensor, seeds: Tensor) -> Tensor:
    channels, height, width = images.shape[1:]
    noise = sample_noise(seeds, channels, (0, height), (0, width), width)
    return torch.where(find_inside(boxes, height, width), noise, images)


def find_inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are inside of rectangles [B,4] of top, bottom, left, right, [B,1,H,W]."""
    y = torch.arange(height, device=boxes.device)[:, None]
    x = torch.arange(width, device=boxes.device)
    top, bottom, left, right = boxes[:, :, None, None, None].unbind(1)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def mix_images(images: Tensor, table: BatchTable, parts: Parts) -> Tensor:
    """Mix images [B,C,H,W] with their partners: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019)."""
    if not (parts.has_mixup or parts.has_cutmix):
        return images
    partners = images.index_select(0, find_partners(table))
    mixed = images
    if parts.has_mixup:
        own, other = _as_factors(table.values[:, IMAGE_SHARES], images)
        mixed = images * own + partners * other
    if parts.has_cutmix:
        inside = find_inside(table.values[:, PASTED], *images.shape[-2:])
        mixed = torch.where(inside, partners, mixed)
    return mixed


def mix_targets(targets: Tensor, table: BatchTable, parts: Parts) -> Tensor:
    """Mix labels or teacher targets, [B,K], in the proportion in which their images are mixed.

    Of several labels too, each class by itself (timm's `mixup_target` with `multi_label`).
    """
    if not (parts.has_mixup or parts.has_cutmix):
        return targets
    own, other = _as_factors(table.values[:, LABEL_SHARES], targets)
    return targets * own + targets.index_select(0, find_partners(table)) * other


def find_partners(table: BatchTable) -> Tensor:
    """Return the row of the image that each is mixed with, [B]."""
    offsets = table.values[:, PARTNER].long()
    return torch.arange(len(offsets), device=offsets.device) + offsets


def _as_factors(shares: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of weights [B,2] as factors of `like`, [B,...]."""
    own, other = shares.unbind(1)
    shape = (-1, *(1,) * (like.ndim - 1))
    return own.view(shape), other.view(shape)
