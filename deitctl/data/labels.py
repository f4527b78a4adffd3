"""Labels of datasets: counted, named, and numbered by other class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import FileDataset, ImageDataset, Labels
from deitctl.names import find_names

MIN_SEVERAL = 0.05
"""Of images that must be in several classes for the data to have several labels an image; fewer may
be mistakes."""


def count_images(dataset: ImageDataset) -> NDArray[np.int64]:
    """Count the images of each class, [K]; one of several labels counts in each of its classes, one
    without a label in none."""
    labels = dataset.labels
    if dataset.is_multilabel:
        is_of_class = labels if labels.dtype == np.bool_ else labels > 0
        counts: NDArray[np.int64] = is_of_class.sum(axis=0, dtype=np.int64)
        return counts
    return np.bincount(labels[labels >= 0], minlength=len(dataset.class_names))


def weigh_classes(dataset: ImageDataset, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the weights of the images of each class, [K]; which images count where as in `count_images`."""
    labels = dataset.labels
    if dataset.is_multilabel:
        columns = [weights[labels[:, k] > 0].sum(dtype=np.float64) for k in range(labels.shape[1])]
        return np.array(columns, np.float64)
    is_labeled = labels >= 0
    num_classes = len(dataset.class_names)
    sums = np.bincount(labels[is_labeled], weights[is_labeled], minlength=num_classes)
    return sums.astype(np.float64)


def find_used_classes(dataset: ImageDataset) -> set[str]:
    """Return the classes that have an image."""
    return {dataset.class_names[label] for label in np.flatnonzero(count_images(dataset))}


def list_labels(dataset: ImageDataset) -> list[tuple[int, ...]]:
    """Return the labels of each image, in rising order: one, or of several labels none, one or more.

    One that has no label has none here.
    """
    if not dataset.is_multilabel:
        return [(label,) if label >= 0 else () for label in dataset.labels.tolist()]
    labels: list[list[int]] = [[] for _ in range(len(dataset.labels))]
    for index, label in np.argwhere(dataset.labels > 0).tolist():
        labels[index].append(label)
    return list(map(tuple, labels))


def name_labels(dataset: ImageDataset) -> list[tuple[str, ...]]:
    """Return the classes of each image by name, in the order of the class names."""
    names = dataset.class_names
    return [tuple(names[label] for label in labels) for labels in list_labels(dataset)]


def name_label(dataset: ImageDataset, index: int) -> tuple[str, ...]:
    """Return the classes of an image by name, in the order of the class names."""
    label = dataset.labels[index]
    if not dataset.is_multilabel:
        return (dataset.class_names[label],) if label >= 0 else ()
    return tuple(dataset.class_names[n] for n in np.flatnonzero(label > 0))


def find_rarest(dataset: ImageDataset) -> NDArray[np.int64]:
    """Return one class of each image, [N]: of several labels the one of the fewest images, K for none."""
    if not dataset.is_multilabel:
        return dataset.labels.astype(np.int64, copy=False)
    by_count = np.argsort(count_images(dataset), kind="stable")
    rarest = by_count[dataset.labels[:, by_count].argmax(axis=1)]
    return np.where(dataset.labels.any(axis=1), rarest, len(dataset.class_names))


def number_labels(dataset: ImageDataset, class_names: Sequence[str]) -> Labels:
    """Return a dataset's labels by other class names; names are compared in canonical form.

    Returns:
        Of one label an image int64 [N], -1 for a missing class; of several bool [N,K], in which a
        missing class is left out.
    """
    places = find_names(dataset.class_names, class_names)
    # The last entry is that of images without a label, -1.
    mapping = np.array([-1 if place is None else place for place in (*places, None)], np.int64)
    if not dataset.is_multilabel:
        return mapping[dataset.labels]
    labels = np.zeros((len(dataset.labels), len(class_names)), np.bool_)
    for column, place in enumerate(mapping[:-1].tolist()):
        if place >= 0:
            labels[:, place] |= dataset.labels[:, column] > 0
    if dataset.labels.dtype != np.int8:
        return labels
    signed = labels.astype(np.int8)
    signed[(dataset.labels < 0).any(axis=1)] = -1
    return signed


def drop_empty_classes(dataset: FileDataset) -> tuple[FileDataset, list[str]]:
    """Keep the classes that have an image, in lexicographic order.

    Returns the names of the others too.
    """
    used = find_used_classes(dataset)
    names = tuple(sorted(used))
    if names == dataset.class_names:  # labels may be mapped from a file, and stay so
        return dataset, []
    empty = [name for name in dataset.class_names if name not in used]
    return replace(dataset, labels=number_labels(dataset, names), class_names=names), empty


def encode_labels(labels: Labels, num_classes: int) -> NDArray[np.bool_]:
    """Return labels of one an image, [N], as multi-hot, [N,K]; one without a label, -1, has no class."""
    encoded = np.zeros((len(labels), num_classes), np.bool_)
    labeled = np.flatnonzero(labels >= 0)
    encoded[labeled, labels[labeled]] = True
    return encoded


def describe_labels(labels: Labels) -> str:
    """Say how many images have several labels, [N,K], and how many none."""
    counts = labels.sum(axis=1)
    num_none = int((counts == 0).sum())
    none = f", {num_none:,} none" if num_none else ""
    return (
        f"{int((counts > 1).sum()):,} of {len(counts):,} images have several of the "
        f"{labels.shape[1]:,} classes{none}"
    )
