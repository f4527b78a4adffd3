"""Training images of other sources beside the data's own, each source with a weight.

They follow the data's images in one numbering, under its classes. No split is made of them: validation images are the
data's alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.draws import count_weighted
from deitctl.data.labels import number_labels
from deitctl.data.layout import name_some
from deitctl.data.open import DatasetSplits
from deitctl.data.subsets import JoinedDataset, Subset, make_multilabel, select
from deitctl.data.unlabeled import MAX_COMPARED, find_copies
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.names import find_names


def choose_extra(
    data: DatasetSplits, ref: str, train: ImageDataset, val: ImageDataset, reporter: Reporter
) -> ImageDataset:
    """Return the images of a source that are trained on, under the classes of the data.

    Args:
        data: the source; its training images are taken, or all where it has no such split.
        ref: how it is named.
        train: the data's own training images.
        val: the validation images, whose copies are left out; those that were encoded anew stay.
        reporter: receives what is left out.

    Raises:
        DataError: nothing is left, or images have several labels and the data's have one.
    """
    parts = data.list_parts()
    images = parts.get("train", parts.get("", next(iter(parts.values()), None)))
    if images is None or not len(images.labels):
        raise DataError(f"--extra-data {ref} has no images.", "Name another, or leave it out.")
    if images.is_multilabel and not train.is_multilabel:
        raise DataError(
            f"Images of --extra-data {ref} have several labels, and those of the data have one.",
            "Name images of one label each, or use --task multilabel for the data.",
        )
    images = make_multilabel(images) if train.is_multilabel else images
    images = _leave_copies_out(_take_classes(images, ref, train, reporter), ref, val, reporter)
    images = images.with_bands(train.bands).with_value_range(train.value_range)
    return images.with_augmentation(train.augmentation)


def _take_classes(
    images: ImageDataset, ref: str, train: ImageDataset, reporter: Reporter
) -> ImageDataset:
    """Return the images of the classes that the data has."""
    labels = number_labels(images, train.class_names)
    indices = (
        np.flatnonzero(labels >= 0) if labels.ndim == 1 else _find_labels(images.labels, labels)
    )
    others = [
        repr(name)
        for name, place in zip(
            images.class_names, find_names(images.class_names, train.class_names), strict=True
        )
        if place is None
    ]
    if not len(indices):
        raise DataError(
            f"--extra-data {ref} has no image of a class of the data: its classes are {name_some(others)}, the data's "
            f"{name_some(map(repr, train.class_names))}.",
            "Name its classes as the data's.",
        )
    if len(indices) < len(labels):
        reporter.warn(
            f"{len(labels) - len(indices):,} of the {len(labels):,} images of {ref} are left out: the data has no "
            f"class {name_some(others)}."
        )
    return Subset(images, indices, labels[indices], train.class_names)


def _find_labels(before: Labels, now: Labels) -> NDArray[np.int64]:
    """Return the images of several labels, [N,K], that have one of them left, or had none of the classes."""
    return np.flatnonzero((now > 0).any(axis=1) | (before == 0).all(axis=1))


def _leave_copies_out(
    images: ImageDataset, ref: str, val: ImageDataset, reporter: Reporter
) -> ImageDataset:
    """Return images without those whose files are equal to a validation image's."""
    count = len(images.labels)
    copies, are_all = find_copies(images, range(count), images.read_sizes().tolist(), val)
    if not are_all:
        reporter.note(
            f"Not all of {ref} was searched for validation images: more than {MAX_COMPARED // 2**30} GiB would have "
            "been read."
        )
    if len(copies) == count:
        raise DataError(
            f"All {count:,} images of --extra-data {ref} are validation images of the data.",
            "Name other images.",
        )
    if copies:
        reporter.warn(
            f"{len(copies):,} of the {count:,} images of {ref} are equal to validation images, and are left out: "
            f"{images.name(min(copies))} is the first."
        )
    return select(images, np.setdiff1d(np.arange(count), copies)) if copies else images


def add_extra(
    train: ImageDataset, extra: Sequence[ImageDataset], weights: Sequence[float]
) -> ImageDataset:
    """Return training images, and behind them those of other sources.

    Args:
        train: of the data itself.
        extra: of each source, under the same classes.
        weights: of each source: how many times its images come in an epoch; empty: once.
    """
    if not extra:
        return train
    labels = np.concatenate([part.labels for part in (train, *extra)])
    ends = np.cumsum([len(part.labels) for part in (train, *extra)])
    part_weights = (1.0, *(weights or [1.0] * len(extra)))
    return JoinedDataset((train, *extra), labels, train.class_names, ends, part_weights)


def settle_weights(extra: Sequence[ImageDataset], weights: Sequence[float]) -> list[float]:
    """Return how many times an epoch the images of each source come, of whole draws; see `WeightedDraws`."""
    counts: Counter[float] = Counter()
    for images, weight in zip(extra, weights, strict=True):
        counts[weight] += len(images.labels)
    return [count_weighted(weight, counts[weight]) / counts[weight] for weight in weights]


def describe_extra(images: ImageDataset, ref: str, weight: float) -> str:
    """Return what is trained on beside the data, in a sentence."""
    times = "" if weight == 1 else f", each {weight:.3g} times an epoch"
    return f"{len(images.labels):,} images of {ref} are trained on too{times}; none of them is validated on."


def require_other_source(ref: str, data: str) -> None:
    """Raise `DataError` if a source beside the data is the data itself."""
    if os.path.realpath(expand_home(ref)) == os.path.realpath(expand_home(data)):
        raise DataError(
            f"--extra-data {ref} is the data itself, which is trained on already.",
            "Name another source.",
        )
