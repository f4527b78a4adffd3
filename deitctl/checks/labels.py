"""Labels of images that have several: how many, of which classes, and which stand together.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from deitctl.checks.issues import Issue, report
from deitctl.checks.survey import Split
from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import count_images

BLOCK = 1 << 16
"""Images whose labels are counted at a time."""
MAX_PAIRS = 10
"""Pairs of classes that are counted for a person."""


@dataclass(frozen=True, kw_only=True)
class LabelPair:
    """Two classes that images have together."""

    classes: tuple[str, str]
    """The more frequent one first."""
    num_images: int
    """That have both."""


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """The labels of a split whose images have several."""

    per_image: float
    """Labels of an image, on average."""
    num_several: int
    """Images with two labels or more."""
    num_unlabeled: int
    """Images without a label."""
    images_per_class: dict[str, int]
    """By name."""
    pairs: tuple[LabelPair, ...]
    """The ten most frequent ones."""


def count_labels(dataset: ImageDataset) -> LabelCounts | None:
    """Count the labels of images; None where each has one."""
    if not dataset.is_multilabel:
        return None
    counts, per_class = dataset.labels.sum(axis=1), count_images(dataset)
    together = _count_together(dataset.labels)
    pairs = []
    for one, other in islice(_order_pairs(together), MAX_PAIRS):
        first, second = sorted((one, other), key=lambda n: (-per_class[n], n))
        classes = (dataset.class_names[first], dataset.class_names[second])
        pairs.append(LabelPair(classes=classes, num_images=int(together[one, other])))
    return LabelCounts(
        per_image=float(counts.mean()),
        num_several=int((counts > 1).sum()),
        num_unlabeled=int((counts == 0).sum()),
        images_per_class=dict(zip(dataset.class_names, per_class.tolist(), strict=True)),
        pairs=tuple(pairs),
    )


def check_labels(split: Split) -> Iterator[Issue]:
    """Report images without a label, and classes that say nothing beside others."""
    dataset, names = split.dataset, split.dataset.class_names
    unlabeled = np.flatnonzero(~dataset.labels.any(axis=1)).tolist()
    yield from report("no_label", len(unlabeled), map(dataset.name, unlabeled))
    counts, together = count_images(dataset), _count_together(dataset.labels)
    everywhere = [
        f"{split.name}: {names[n]}" for n in np.flatnonzero(counts == len(dataset.labels))
    ]
    yield from report("class_of_all", len(everywhere), everywhere)
    inseparable = [
        f"{split.name}: {names[one]} = {names[other]}, {counts[one]:,} images"
        for one, other in _order_pairs(together)
        if together[one, other] == counts[one] == counts[other] > 1
    ]
    yield from report("inseparable_classes", len(inseparable), inseparable)


def _count_together(labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return how many images have both of two classes, [K,K]."""
    counts = np.zeros((labels.shape[1],) * 2, np.int64)
    for start in range(0, len(labels), BLOCK):
        indicators = labels[start : start + BLOCK].astype(np.float32)  # for a fast product, exact
        counts += np.rint(indicators.T @ indicators).astype(np.int64)
    return counts


def _order_pairs(together: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of classes that stand together, the most frequent first."""
    ones, others = np.nonzero(np.triu(together, 1))
    order = np.argsort(-together[ones, others], kind="stable")
    return zip(ones[order].tolist(), others[order].tolist(), strict=True)
