"""Training and validation splits: their names, holding one out, equal classes in both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from deitctl import rng
from deitctl.data.dataset import (
    ImageDataset,
    Subset,
    find_used_classes,
    number_labels,
    select,
)
from deitctl.errors import DataError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
"""In order of preference: `test` is validated on only where nothing else is there."""


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """Return which of some folder or split names is `train` and which `val`; empty if none is."""
    names = set(names)
    splits: dict[str, str] = {}
    for split, choices in (("train", TRAIN_NAMES), ("val", VAL_NAMES)):
        for name in choices:
            if name in names:
                splits.setdefault(split, name)
    return splits


def hold_out(dataset: ImageDataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a dataset into training and validation, stratified by class.

    The same seed gives the same split.

    A class's split depends on that class alone, so adding images to one class leaves the others'
    splits as they are.

    Args:
        fraction: of every class that is held out, rounded; at least one image of two or more, none
            of one.
        seed: of the split.
    """
    held = np.zeros(len(dataset.labels), dtype=bool)
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    by_class = np.split(np.argsort(dataset.labels, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in enumerate(by_class):
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        if count > 0:
            held[rng.generator(seed, "hold-out", label).permutation(members)[:count]] = True
    return select(dataset, np.flatnonzero(~held)), select(dataset, np.flatnonzero(held))


def relabel(dataset: ImageDataset, class_names: tuple[str, ...]) -> Subset:
    """Number a dataset's labels by other class names.

    Raises:
        DataError: a class that has images is not among `class_names`.
    """
    if missing := sorted(find_used_classes(dataset).difference(class_names)):
        raise DataError(
            f"Class {missing[0]!r} is in the validation set but not in the training set"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else "."),
            "Give both the same class folders, or remove the extra ones from the validation set.",
        )
    labels = number_labels(dataset, class_names)
    return Subset(dataset, np.arange(len(labels)), labels, class_names)
