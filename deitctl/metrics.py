"""Measures of answers, each an average over pictures, never over batches."""

from __future__ import annotations

import torch
from torch import Tensor


def topk_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Say for each picture whether its label [B] is among the k best of scores [B,K]; k above K means all."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their pictures (Guo et al. 2017, Eq. 3).

    Args:
        confidence: the probability of each picture's answer, [B] in 0..1.
        correct: whether it was right, [B].
        bins: how many bins; 15 in that paper.
    """
    if len(confidence) == 0:
        return 0.0
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # bin m is ((m-1)/M, m/M]
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, index, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of pictures on which two scores [B,K] choose the same class (1 - DeiT Table 4)."""
    return float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean()) if len(a) else 0.0
