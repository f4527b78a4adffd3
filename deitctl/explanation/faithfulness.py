"""Deletion and insertion curves of token maps (RISE, Petsiuk et al. 2018, §4.3).

Deletion replaces patches by the mean color, the most important first; the sooner the probability
falls, the better the map. Insertion starts with a blurred image and restores patches; the sooner
the probability rises, the better. A random map is the baseline.

Letters: M maps, B images, G patches a side, S pixels a side, K classes, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_STEPS = 14  # at 224 pixels one row of patches each
Predict = Callable[[Tensor], Tensor]
"""From images [B,3,S,S] to probabilities [B,K]."""


def compute_deletion(
    predict: Predict, images: Tensor, maps: Tensor, classes: Tensor, num_steps: int = NUM_STEPS
) -> Tensor:
    """Return class probabilities while patches are deleted, [M,B,T+1]; see `compute_curves`."""
    mean_color = torch.zeros_like(images)  # of normalized images
    return compute_curves(predict, images, mean_color, maps, classes, num_steps)


def compute_insertion(
    predict: Predict, images: Tensor, maps: Tensor, classes: Tensor, num_steps: int = NUM_STEPS
) -> Tensor:
    """Return class probabilities while patches are restored, [M,B,T+1]; see `compute_curves`."""
    patch_size = images.shape[-1] // maps.shape[-1]
    blurred = blur(images, patch_size)  # a patch is unrecognizable at a deviation of its own size
    return compute_curves(predict, blurred, images, maps, classes, num_steps)


@torch.inference_mode()
def compute_curves(
    predict: Predict, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, num_steps: int
) -> Tensor:
    """Return class probabilities [M,B,T+1] while patches of `start` are replaced by those of `end`.

    Args:
        predict: the classifier.
        start, end: first and last image, normalized, [B,3,S,S]; predicted once for all maps.
        maps: importance of each patch, [M,B,G,G]; the highest is replaced first.
        classes: the class to follow, [B].
        num_steps: T, at most the number of patches; steps replace equally many patches as nearly as
            possible.
    """
    num_patches, patch_size = maps[0, 0].numel(), start.shape[-1] // maps.shape[-1]
    num_steps = min(num_steps, num_patches)
    # Stable: patches of equal weight in the order of the image, so that curves are reproducible.
    order = maps.flatten(2).argsort(dim=2, descending=True, stable=True)
    # [M,B,G,G]: the inverse permutation
    rank = order.argsort(dim=2).view_as(maps)

    def predict_class(images: Tensor) -> Tensor:
        return predict(images).gather(1, classes[:, None]).squeeze(1)

    curves = [predict_class(start).expand(len(maps), -1)]
    for step in range(1, num_steps):
        is_replaced = (rank < round(step * num_patches / num_steps)).unsqueeze(2)
        masks = is_replaced.repeat_interleave(patch_size, dim=3)
        masks = masks.repeat_interleave(patch_size, dim=4)  # [M,B,1,S,S]
        curves.append(torch.stack([predict_class(torch.where(m, end, start)) for m in masks]))
    return torch.stack([*curves, predict_class(end).expand(len(maps), -1)], dim=2)


def compute_area(curves: Tensor) -> Tensor:
    """Return the area under curves [...,T+1] by the trapezoidal rule: [...], 0..1."""
    return (curves[..., :-1] + curves[..., 1:]).mean(dim=-1) / 2


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images [B,3,S,S] by a Gaussian of `sigma` pixels, with mirrored edges."""
    # reflect padding must be smaller than the image
    radius = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    channels = images.shape[1]
    for shape, padding in (
        ((1, 1, -1, 1), (0, 0, radius, radius)),
        ((1, 1, 1, -1), (radius, radius, 0, 0)),
    ):
        weight = kernel.view(shape).expand(channels, -1, -1, -1)
        images = F.conv2d(F.pad(images, padding, mode="reflect"), weight, groups=channels)
    return images


def sample_random_maps(like: Tensor, seed: int) -> Tensor:
    """Return uniform random maps of the shape and device of `like`, [B,G,G]."""
    # On the CPU, so that the same seed gives the same maps on every device.
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(like.shape, generator=generator).to(like.device)
