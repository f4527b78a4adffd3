"""Is what a map calls important so? Deletion and insertion curves (Petsiuk et al. 2018, RISE, §4.3), patch by patch.

Deletion paints the patches over with the mean color, the most important first; the sooner the class is lost, the
better the map. Insertion begins with a blurred image and brings the patches back; the sooner the class is found, the
better. A random map is the floor: whatever does no better has found nothing.

Letters: M maps, B images, G patches along a side, S pixels along one, K classes, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 14
"""Of a curve unless told: at 224 pixels a row's worth of patches each."""
Answer = Callable[[Tensor], Tensor]
"""From images [M,3,S,S] to probabilities [M,K]."""


def deletion(
    answer: Answer, images: Tensor, maps: Tensor, classes: Tensor, steps: int = STEPS
) -> Tensor:
    """Return the probability of each image's class while its patches go, [M,B,T+1]; see `all_gather_ints` for the arguments.

    `images` are normalized, so that the mean color is 0.
    """
    return all_gather_ints(answer, images, torch.zeros_like(images), maps, classes, steps)


def insertion(
    answer: Answer, images: Tensor, maps: Tensor, classes: Tensor, steps: int = STEPS
) -> Tensor:
    """Return the probability of each image's class while its patches come back, [M,B,T+1]; see `all_gather_ints`."""
    patch = (
        images.shape[-1] // maps.shape[-1]
    )  # the deviation: what a patch shows is gone from where it was
    return all_gather_ints(answer, blurred(images, patch), images, maps, classes, steps)


@torch.inference_mode()
def all_gather_ints(
    answer: Answer, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, steps: int
) -> Tensor:
    """Exchange one image for another, patch by patch, in the order of each of several maps; return the curves [M,B,T+1].

    Args:
        answer: the classifier.
        start, end: the image to begin and to end with, [B,3,S,S]; asked about once for all maps.
        maps: importance of each patch, [M,B,G,G]; the highest is exchanged first.
        classes: the class whose probability is followed, [B].
        steps: T, in which as nearly equally many patches are exchanged as can be, at most one for each patch.
    """
    patches, side = maps[0, 0].numel(), start.shape[-1] // maps.shape[-1]
    steps = min(steps, patches)
    rank = maps.flatten(2).argsort(dim=2, descending=True, stable=True).argsort(dim=2).view_as(maps)

    def follow(images: Tensor) -> Tensor:
        return answer(images).gather(1, classes[:, None]).squeeze(1)

    curves = [follow(start).expand(len(maps), -1)]
    for step in range(1, steps):
        done = (rank < round(step * patches / steps)).unsqueeze(2)
        pixels = done.repeat_interleave(side, dim=3).repeat_interleave(side, dim=4)
        curves.append(torch.stack([follow(torch.where(p, end, start)) for p in pixels]))
    return torch.stack([*curves, follow(end).expand(len(maps), -1)], dim=2)


def area(curves: Tensor) -> Tensor:
    """Return the area under curves [...,T+1] over the steps, by trapezia: [...], 0..1."""
    return (curves[..., :-1] + curves[..., 1:]).mean(dim=-1) / 2


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur images [B,3,S,S] by a Gaussian of deviation `sigma` pixels; edges are mirrored."""
    reach = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    channels = images.shape[1]
    for shape, pad in (
        ((1, 1, -1, 1), (0, 0, reach, reach)),
        ((1, 1, 1, -1), (reach, reach, 0, 0)),
    ):
        weight = kernel.view(shape).expand(channels, -1, -1, -1)
        images = F.conv2d(F.pad(images, pad, mode="reflect"), weight, groups=channels)
    return images


def random_maps(like: Tensor, seed: int) -> Tensor:
    """Return maps [B,G,G] that say nothing."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(like.shape, generator=draw).to(like.device)
