"""Top-k accuracy, calibration error, per-class scores and confusions: means over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.records import hidden

Classes = NDArray[np.int64]
"""A class index per image, [N]."""
BINS = 15  # of confidence (Guo et al. 2017, §5)


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose confidence is in (lower, upper]."""

    lower: float
    """Lower end of the bin's confidences, 0..1."""
    upper: float
    """Upper end of the bin's confidences, 0..1."""
    num_images: int
    """Images in the bin."""
    confidence: float
    """Their mean confidence, 0..1."""
    accuracy: float
    """Their accuracy, 0..1."""


@dataclass(frozen=True)
class ClassScore:
    """One class of the data."""

    num_images: int
    """Images labeled with the class."""
    recall: float
    """Percent of them that are predicted as the class: its top-1 accuracy."""
    precision: float
    """Percent of the images predicted as the class that have its label; 0 if there are none."""
    f1: float
    """Harmonic mean of recall and precision, percent."""
    title: str
    """Its name for people, which the key is not where classes are WordNet ids."""
    label: int = hidden()
    """Index of the class in the data."""


def topk_correct(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return whether each label [B] is among the k largest logits of [B,K]; k above K means all."""
    topk = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (topk == labels[:, None]).any(dim=1)


def mean_percent(values: Tensor) -> float:
    """Return the percentage of images [B] that are true."""
    # In float64: float32 counts exactly only up to 2**24 images.
    return 100.0 * float(values.double().mean())


def compute_reliability(
    confidence: Tensor, correct: Tensor, bins: int = BINS
) -> list[ReliabilityBin]:
    """Return the bins of the reliability diagram that hold images (Guo et al. 2017, Fig. 1).

    Args:
        confidence: probability of each image's prediction, [B] in 0..1.
        correct: whether it is right, [B].
        bins: bins of equal width.
    """
    rows = zip(*(values.tolist() for values in _bin(confidence, correct, bins)), strict=True)
    return [
        ReliabilityBin(n / bins, (n + 1) / bins, count, mean, accuracy)
        for n, (count, mean, accuracy) in enumerate(rows)
        if count
    ]


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Return the mean gap of confidence and accuracy, weighted by images (Guo et al. 2017, Eq. 3).

    Args:
        confidence: probability of each image's prediction, [B] in 0..1.
        correct: whether it is right, [B].
        bins: bins of equal width.
    """
    count, mean, accuracy = _bin(confidence, correct, bins)
    return float((count * (accuracy - mean).abs()).sum() / max(1, len(confidence)))


def _bin(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, mean confidence and accuracy of the bins ((m-1)/M, m/M], [bins] each.

    An empty bin has zeros.
    """
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.float64)
    for row, values in enumerate((torch.ones_like(confidence), confidence, correct)):
        sums[row].index_add_(0, index, values.double())
    count = sums[0].clamp(min=1)
    return sums[0].long(), sums[1] / count, sums[2] / count


def score_classes(
    labels: Classes, preds: Classes, class_names: Sequence[str], titles: Sequence[str] | None = None
) -> dict[str, ClassScore]:
    """Return recall, precision and F1 of every class that has images.

    Args:
        labels: class of each image, [N] in 0..K-1.
        preds: predicted class, [N]; K or more for a class that the data does not have.
        class_names: names of the K classes.
        titles: their names for people; None: the same.
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(
        labels, preds, labels=np.arange(len(class_names)), zero_division=0
    )
    rows = zip(*(values.tolist() for values in scores), strict=True)
    return {
        class_names[label]: ClassScore(
            images,
            100 * recall,
            100 * precision,
            100 * f1,
            title=(titles or class_names)[label],
            label=label,
        )
        for label, (precision, recall, f1, images) in enumerate(rows)
        if images
    }


def score_evenly(
    labels: Classes,
    preds: Classes,
    num_classes: int,
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, float]:
    """Return balanced accuracy and macro F1, 0..1, in which each class that has images counts alike.

    They are scikit-learn's `balanced_accuracy_score`, and `f1_score` of those classes.

    Args:
        labels: class of each image, [N] in 0..K-1.
        preds: predicted class, [N]; K for a class that the data does not have.
        num_classes: K.
        weights: how often each image counts, [N]; None: once.
    """
    hits = labels == preds
    hit_weights = hits.astype(np.float64) if weights is None else hits * weights
    size = num_classes + 1
    labeled = np.bincount(labels, weights, minlength=size)[:num_classes]
    predicted = np.bincount(preds, weights, minlength=size)[:num_classes]
    correct = np.bincount(labels, hit_weights, minlength=size)[:num_classes]
    used = labeled > 0
    recalls = correct[used] / labeled[used]
    f1 = 2 * correct[used] / (labeled[used] + predicted[used])
    return float(recalls.mean()), float(f1.mean())


def count_confusions(
    labels: Classes, preds: Classes, limit: int | None = None
) -> list[tuple[int, int, int]]:
    """Return (label, other predicted class, number of images), most frequent first."""
    wrong = labels != preds
    pairs, counts = np.unique(np.stack([labels[wrong], preds[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(int(pairs[0, n]), int(pairs[1, n]), int(counts[n])) for n in order]
