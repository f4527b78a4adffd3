"""What a report of images with several labels each shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deitctl.evaluation.multilabel_bootstrap import MultilabelComparison
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.report.contents import Curves, Facts

MAX_CURVES = 200
"""Classes whose F1 is drawn by the threshold, those of lowest average precision."""


@dataclass(frozen=True, kw_only=True)
class HardImage:
    """An image that the model predicts badly."""

    name: str
    thumbnail: bytes
    """JPEG of the image as the model sees it."""
    loss: float
    """Binary cross-entropy, mean over the classes."""
    missed: Sequence[tuple[str, float]]
    """Its labels that are not predicted, with their probabilities."""
    wrong: Sequence[tuple[str, float]]
    """Predicted classes that it has not."""
    hits: Sequence[tuple[str, float]]
    """Its labels that are predicted."""


@dataclass(frozen=True, kw_only=True)
class LabelsSection:
    """One result of the report."""

    result: MultilabelResult
    facts: Facts
    """Model, head rule, preprocessing."""
    hard_images: Sequence[HardImage]
    """Those of the highest loss."""


@dataclass(frozen=True, kw_only=True)
class LabelsContents:
    """All that a report of several labels an image shows."""

    title: str
    created: str
    """Date and time."""
    version: str
    """Of deitctl."""
    command: str
    """The command line that makes the report again."""
    facts: Facts
    """Data, device, speed."""
    sections: Sequence[LabelsSection]
    """One or more results on the same images."""
    comparisons: Sequence[MultilabelComparison] = ()
    curves: Curves | None = None
    """The log of the run that trained the model."""


def compute_threshold_curves(
    result: MultilabelResult, label: int, points: int = 51
) -> tuple[list[float], list[float], list[float]]:
    """Return F1, precision and recall of a class at thresholds from 0 to 1, [points] each, 0..1;
    the precision is NaN where no image is predicted to have it."""
    order = np.argsort(-result.probs[:, label])
    probs, labels = result.probs[order, label], result.labels[order, label]
    # Probabilities fall, so those at a threshold or above are the first so many.
    predicted = np.searchsorted(-probs, -np.linspace(0, 1, points), side="right")
    hits = np.concatenate([[0], labels.cumsum()])[predicted]
    f1 = 2 * hits / np.maximum(predicted + labels.sum(), 1)
    precision = np.where(predicted > 0, hits / np.maximum(predicted, 1), np.nan)
    recall = hits / max(1, labels.sum())
    return f1.tolist(), precision.tolist(), recall.tolist()
