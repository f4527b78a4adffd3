"""Is what a map calls important so? Deletion and insertion curves (Petsiuk et al. 2018, RISE, §4.3), patch by patch.

Deletion paints the patches over with the mean colour, the most important first; the sooner the class is lost, the
better the map. Insertion begins with a blurred picture and brings the patches back; the sooner the class is found, the
better. A random map is the floor: whatever does no better has found nothing.

Letters: B pictures, G patches along a side, S pixels along a side, K classes, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR = 1 / 20
"""Deviation of the blur, as a share of the picture's side: of 224 pixels 11, where RISE's kernel is 11 pixels wide."""
STEPS = 14
"""Of a curve unless told: at 224 pixels a row's worth of patches each."""
Answer = Callable[[Tensor], Tensor]
"""From pictures [M,3,S,S] to probabilities [M,K]."""


def deletion(answer: Answer, images: Tensor, maps: Tensor, classes: Tensor, steps: int = STEPS) -> Tensor:
    """Return the probability of each picture's class while its patches go, [B,T+1]; see `exchange` for the arguments.

    `images` are normalised, so that the mean colour is 0.
    """
    return exchange(answer, images, torch.zeros_like(images), maps, classes, steps)


def insertion(answer: Answer, images: Tensor, maps: Tensor, classes: Tensor, steps: int = STEPS) -> Tensor:
    """Return the probability of each picture's class while its patches come back, [B,T+1]; see `exchange`."""
    return exchange(answer, blurred(images), images, maps, classes, steps)


@torch.inference_mode()
def exchange(answer: Answer, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, steps: int) -> Tensor:
    """Exchange one picture for another, patch by patch, in the order of a map; return the curve [B,T+1].

    Args:
        answer: the classifier.
        start, end: the picture to begin and to end with, [B,3,S,S].
        maps: importance of each patch, [B,G,G]; the highest is exchanged first.
        classes: the class whose probability is followed, [B].
        steps: T, in which equally many patches are exchanged; no more than there are patches are made.
    """
    patches = maps[0].numel()
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
    side = start.shape[-1] // maps.shape[-1]
    curve = []
    for step in range(min(steps, patches) + 1):
        done = rank < round(step * patches / min(steps, patches))
        pixels = done[:, None].repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
        curve.append(answer(torch.where(pixels, end, start)).gather(1, classes[:, None]).squeeze(1))
    return torch.stack(curve, dim=1)


def area(curve: Tensor) -> Tensor:
    """Return the area under curves [B,T+1] over the share of patches exchanged, 0..1, by trapezia: [B], 0..1."""
    return (curve[:, :-1] + curve[:, 1:]).mean(dim=1) / 2


def blurred(images: Tensor, share: float = BLUR) -> Tensor:
    """Blur pictures [B,3,S,S] by a Gaussian whose deviation is a share of their side; edges are mirrored."""
    sigma = share * images.shape[-1]
    reach = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    channels = images.shape[1]
    for shape, pad in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
        weight = kernel.view(shape).expand(channels, -1, -1, -1)
        images = F.conv2d(F.pad(images, pad, mode="reflect"), weight, groups=channels)
    return images


def random_maps(like: Tensor, seed: int) -> Tensor:
    """Return maps [B,G,G] that say nothing."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(like.shape, generator=draw).to(like.device)
