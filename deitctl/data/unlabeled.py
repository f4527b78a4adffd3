"""Training images without labels, of which only a teacher speaks.

They follow the labeled ones in the training images, under the label -1 (of several labels an image a row of -1), so
that a loader, a teacher's cache and a batch have one numbering for both.

Letters: N images, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.subsets import JoinedDataset, Subset, select
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.threads import map_patiently

REST = "rest"
"""The training images that `--fraction` leaves out, in place of a folder of others."""
MAX_COMPARED = 4 * 2**30
"""Bytes that are read to compare unlabeled or extra images with training or validation images."""


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

    Of others only files of one size are read, unless one side was packed. Copies that were encoded anew stay.

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
        same, are_all = find_copies(images, left, size_of, others)
        if not are_all:
            unsearched.append(kind)
        copies |= dict.fromkeys(same, kind)
    if len(copies) == count:
        kind = " or ".join(dict.fromkeys(copies.values()))
        raise DataError(
            f"{count:,} of {count:,} images of --unlabelled {ref} are {kind} images already.",
            f"Name others; --fraction 0.1 --unlabelled {REST} trains on a tenth with labels and on the others "
            "without.",
        )
    if unsearched:
        reporter.note(
            f"Not all of {ref} was searched for {' and '.join(unsearched)} images: more than "
            f"{MAX_COMPARED // 2**30} GiB would have been read."
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


class Copies(NamedTuple):
    """Which images have the bytes of one of others."""

    indices: list[int]
    are_all: bool
    """Whether no more were possible: those of other sizes, or all, can be too many to read."""


def find_copies(
    images: ImageDataset, indices: Sequence[int], size_of: Sequence[int], others: ImageDataset
) -> Copies:
    """Return which of some images have the bytes of one of others, as both were before packing.

    Packing changes sizes and records digests: where one side has them, the other is read whole.

    Args:
        images: of which some are looked for.
        indices: of these.
        size_of: bytes of each image of all.
        others: the images that they may be copies of.
    """
    sizes_of = others.read_sizes().tolist()
    recorded, recorded_of = _list_recorded(images), _list_recorded(others)
    digests_of = set(recorded_of) - {0}
    copies = [index for index in indices if recorded[index] in digests_of]
    left = [index for index in indices if recorded[index] not in digests_of]
    unread = [index for index in left if size_of[index] and not recorded[index]]
    unread_others = [n for n, size in enumerate(sizes_of) if size and not recorded_of[n]]
    wide = unread if digests_of else [], unread_others if any(recorded[n] for n in left) else []
    num_bytes = sum(size_of[n] for n in wide[0]) + sum(sizes_of[n] for n in wide[1])
    is_wide = num_bytes <= MAX_COMPARED
    sizes = {size_of[n] for n in unread} & {sizes_of[n] for n in unread_others}
    same = [n for n in unread if size_of[n] in sizes]
    if sum(size_of[n] for n in same) > MAX_COMPARED:
        return Copies(copies, are_all=False)
    read = wide[0] if is_wide and wide[0] else same
    read_others = (
        wide[1] if is_wide and wide[1] else [n for n in unread_others if sizes_of[n] in sizes]
    )
    digests_of |= set(_digest_images(others, read_others)) - {0}
    digest_of = dict(zip(read, _digest_images(images, read), strict=True))
    copies += [n for n in left if (recorded[n] or digest_of.get(n, 0)) in digests_of]
    return Copies(sorted(copies), is_wide)


def _list_recorded(images: ImageDataset) -> list[int]:
    """Return the digests of images that are recorded, 0 for those that are not."""
    digests = images.recorded_digests
    return [0] * len(images.labels) if digests is None else digests.tolist()


def _digest_images(images: ImageDataset, indices: Sequence[int]) -> list[int]:
    return list(map_patiently(images.digest, indices, num_threads=count_cores()))
