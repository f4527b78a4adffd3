"""What a student sees on top of a view that comes again: a small movement that leaves the teacher's word standing.

Letters: B images, S pixels of a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.samplers import SampleKey


def student_affine(
    images: Tensor, keys: Sequence[SampleKey], config: AugmentConfig, seed: int
) -> Tensor:
    """Rotate, scale, shift, and where the recipe flips, flip each normalized image of [B,3,S,S].

    The movement is a function of `(seed, key)`, so it is new in every epoch though the view is not. What comes in from
    outside the image repeats its edge.
    """
    degrees, scaling, shift = config.student_affine
    if not any(config.student_affine):
        return images
    rows = []
    for key in keys:
        draw = rng.generator(seed, "on top", *key)
        angle = math.radians(draw.uniform(-degrees, degrees))
        scale = 1 / (1 + draw.uniform(-scaling, scaling))
        dx, dy = draw.uniform(-2 * shift, 2 * shift, 2).tolist()  # the grid is 2 wide
        mirror = -1.0 if draw.random() < config.hflip else 1.0
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        rows.append([[mirror * cos, sin, dx], [-mirror * sin, cos, dy]])
    theta = torch.tensor(rows, device=images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    edge = (
        1 - 1 / images.shape[-1]
    )  # the middle of the outermost pixel; MPS has no padding_mode="border" before torch 2.13
    return F.grid_sample(images, grid.clamp(-edge, edge), mode="bilinear", align_corners=False)
