"""What happens to each class: how much of it is found, how much of what is called it is it, and what it is taken for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class ClassScore(NamedTuple):
    """Of one class: its images, and recall, precision and F1 in percent."""

    label: int
    num_images: int
    recall: float
    precision: float
    f1: float


class Confusion(NamedTuple):
    """Images of class `label` that were called `answer`, another one."""

    label: int
    answer: int
    num_images: int


def score_classes(labels: Counts, answers: Counts, classes: int) -> list[ClassScore]:
    """Score every class that has images; a class that is never named has a precision of 0.

    Args:
        labels: class of each image, [N], in 0..classes-1.
        answers: what the model says, [N]; `classes` where it is none of them.
        classes: how many the data has.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        labels, answers, labels=np.arange(classes), zero_division=0
    )
    return [
        ClassScore(
            c, int(images[c]), 100 * float(recall[c]), 100 * float(precision[c]), 100 * float(f1[c])
        )
        for c in range(classes)
        if images[c]
    ]


def confusions(labels: Counts, answers: Counts, most: int = 0) -> list[Confusion]:
    """Return what is taken for what, most often first; `most` 0 means all."""
    wrong = labels != answers
    pairs, counts = np.unique(np.stack([labels[wrong], answers[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[: most or None]
    return [Confusion(int(pairs[0, n]), int(pairs[1, n]), int(counts[n])) for n in order]
