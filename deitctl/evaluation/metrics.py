"""Measures of answers, each an average over images, never over batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Say for each image whether its label [B] is among the k best of scores [B,K]; k above K means all."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def percent(values: Tensor) -> float:
    """Return the share of images [B] that are true, in percent."""
    return 100.0 * float(values.double().mean())


BINS = 15  # of confidence (Guo et al. 2017, §5)


class Reliability(NamedTuple):
    """For bins of confidence of equal width: images, their mean confidence and accuracy in 0..1, [bins] each."""

    num_images: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """Sort images into bins ((m-1)/M, m/M] of confidence (Guo et al. 2017, Fig. 1); a bin without images has zeros.

    Args:
        confidence: the probability of each image's answer, [B] in 0..1.
        correct: whether it was right, [B].
        bins: how many.
    """
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.float64)
    for row, values in enumerate((torch.ones_like(confidence), confidence, correct)):
        sums[row].index_add_(0, index, values.double())
    return Reliability(
        sums[0].long(), sums[1] / sums[0].clamp(min=1), sums[2] / sums[0].clamp(min=1)
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their images (Guo et al. 2017, Eq. 3).

    Args:
        confidence: the probability of each image's answer, [B] in 0..1.
        correct: whether it was right, [B].
        bins: how many bins; 15 in that paper.
    """
    found = reliability(confidence, correct, bins)
    return float(
        (found.num_images * (found.accuracy - found.confidence).abs()).sum()
        / max(1, len(confidence))
    )


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of images on which two scores [B,K] choose the same class (1 - DeiT Table 4)."""
    return float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean()) if len(a) else 0.0
