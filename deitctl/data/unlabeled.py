"""Training images without labels, of which only a teacher speaks.

They follow the labeled ones in the training images, under the label -1 (of several labels an image a row of -1), so
that a loader, a teacher's cache and a batch have one numbering for both.

Letters: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.subsets import JoinedDataset, Subset, select
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home

REST = "rest"
"""The training images that `--fraction` leaves out, in place of a folder of others."""
MAX_COMPARED = 4 * 2**30
"""Bytes of unlabeled images that are read to compare them with training or validation images of the same size."""


def find_labeled(labels: Labels) -> NDArray[np.bool_]:
    """Return which images have labels, [N]; of several labels one without any may have that for its label."""
    is_labeled: NDArray[np.bool_] = labels >= 0
    return is_labeled if labels.ndim == 1 else is_labeled.all(axis=1)  # type: ignore[return-value]


def count_unlabeled(dataset: ImageDataset) -> int:
    """Return the number of images without labels."""
    if dataset.labels.dtype == np.bool_:
        return 0
    return int((~find_labeled(dataset.labels)).sum())


def select_labeled(dataset: ImageDataset) -> ImageDataset:
    """Return the images that have labels; the data itself where all have them."""
    if not count_unlabeled(dataset):
        return dataset
    part = select(dataset, np.flatnonzero(find_labeled(dataset.labels)))
    if not part.is_multilabel:
        return part
    return Subset(dataset, part.indices, part.labels > 0, part.class_names)


def add_unlabeled(train: ImageDataset, others: ImageDataset) -> ImageDataset:
    """Return training images, and behind them others whose labels are left out."""
    count, num_others = len(train.labels), len(others.labels)
    labels: Labels
    if train.is_multilabel:
        labels = np.full((count + num_others, len(train.class_names)), -1, np.int8)
    else:
        labels = np.full(count + num_others, -1, np.int64)
    labels[:count] = train.labels
    # read as the training images are
    others = others.with_bands(train.bands).with_value_range(train.value_range)
    others = others.with_augmentation(train.augmentation)
    ends = np.cumsum([count, num_others])
    return JoinedDataset((train, others), labels, train.class_names, ends)


def take_rest(all_images: ImageDataset, *taken: ImageDataset) -> ImageDataset:
    """Return the images of data that none of some parts of it has, in their order."""
    is_left = np.ones(len(all_images.labels), np.bool_)
    for part in taken:
        is_left[_find_indices(part, all_images)] = False
    return select(all_images, np.flatnonzero(is_left))


def _find_indices(part: ImageDataset, all_images: ImageDataset) -> NDArray[np.int64]:
    """Return the place of each image of a part in all images."""
    indices = np.arange(len(part.labels))
    while part is not all_images:
        if not isinstance(part, Subset):
            raise ValueError("the part is not of these images")
        indices, part = part.indices[indices], part.dataset
    return indices


def require_other_data(ref: str, data: str) -> None:
    """Raise `DataError` if images without labels are named as the data itself."""
    if os.path.realpath(expand_home(ref)) == os.path.realpath(expand_home(data)):
        raise DataError(
            f"--unlabelled {ref} is the data itself, whose images have labels.",
            f"Name other images; --fraction 0.1 --unlabelled {REST} trains on a tenth with labels and on the "
            "others without.",
        )


def leave_duplicates_out(
    images: ImageDataset,
    train: ImageDataset,
    val: ImageDataset,
    ref: str,
    reporter: Reporter,
) -> ImageDataset:
    """Return images without those whose files are, or are equal to, a training or a validation image's.

    Of others only files of one size are read. Copies that were encoded anew stay.

    Args:
        images: without labels.
        train: the training images with labels.
        val: the validation images.
        ref: how the first are named.
        reporter: receives how many are left out, if any.

    Raises:
        DataError: none is left.
    """
    count = len(images.labels)
    size_of = images.read_sizes().tolist()
    kinds = {"validation": val, "training": train} if train is not val else {"training": train}
    copies = dict.fromkeys(_find_same_files(images, train), "training")
    unsearched = []
    for kind, others in kinds.items():
        left = [index for index in range(count) if index not in copies]
        same = find_copies(images, left, size_of, others) if left else []
        if same is None:
            unsearched.append(kind)
        copies |= dict.fromkeys(same or (), kind)
    if len(copies) == count:
        kind = " or ".join(dict.fromkeys(copies.values()))
        raise DataError(
            f"{count:,} of {count:,} images of --unlabelled {ref} are {kind} images already.",
            f"Name others; --fraction 0.1 --unlabelled {REST} trains on a tenth with labels and on the others "
            "without.",
        )
    if unsearched:
        reporter.note(
            f"{ref} was not searched for {' and '.join(unsearched)} images: more than "
            f"{MAX_COMPARED // 2**30} GiB of its files have the size of one."
        )
    for kind in kinds:
        same = [index for index, its in copies.items() if its == kind]
        if same:
            reporter.warn(
                f"{len(same):,} of the {count:,} images of {ref} are equal to {kind} images, and are left "
                f"out: {images.name(min(same))} is the first."
            )
    return select(images, np.setdiff1d(np.arange(count), list(copies))) if copies else images


def _find_same_files(images: ImageDataset, others: ImageDataset) -> list[int]:
    """Return which images are files of others, however their folders are named."""
    folders: dict[str, str] = {}

    def resolve(name: str) -> str:
        folder, base = os.path.split(name)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], base)

    names = {resolve(others.name(index)) for index in range(len(others.labels))}
    return [n for n in range(len(images.labels)) if resolve(images.name(n)) in names]


def find_copies(
    images: ImageDataset, indices: Sequence[int], size_of: Sequence[int], others: ImageDataset
) -> list[int] | None:
    """Return which of some images have the bytes of one of others; None where too many would be read."""
    by_size: dict[int, list[int]] = {}
    for index, size in enumerate(others.read_sizes().tolist()):
        by_size.setdefault(size, []).append(index)
    candidates = [index for index in indices if size_of[index] and size_of[index] in by_size]
    if sum(size_of[index] for index in candidates) > MAX_COMPARED:
        return None
    sizes = {size_of[index] for index in candidates}
    digests = {others.digest(index) for size in sizes for index in by_size[size]} - {0}
    return [index for index in candidates if images.digest(index) in digests]
