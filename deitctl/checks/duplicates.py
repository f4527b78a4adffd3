"""Duplicate images: the same pixels, or nearly the same by hashes that differ in a few bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from deitctl.checks.image_info import JoinedImages
from deitctl.checks.issues import Issue, Remedy, report
from deitctl.data.labels import MIN_SEVERAL
from deitctl.data.near_duplicates import (
    MAX_DISTANCE,
    find_first,
    find_near_pairs,
    group_rows,
)

Index = NDArray[np.int64]


@dataclass(frozen=True)
class DuplicateGroups:
    """Indices of images that have a duplicate, and of one duplicate of each, by relation."""

    across_splits: tuple[Index, Index]
    """Validation images, and for each a training image."""
    across_classes: tuple[Index, Index]
    in_class: tuple[Index, Index]


def check_duplicates(
    images: JoinedImages,
    digests: NDArray[np.uint8],
    hashes: NDArray[np.uint8],
    readable: NDArray[np.bool_],
    hashed: NDArray[np.bool_],
) -> Iterator[Issue]:
    """Report duplicates and near duplicates.

    Args:
        images: of all splits, N.
        digests: of their pixels, bytes [N,16].
        hashes: see `difference_hash`, bytes [N,16].
        readable: images that have a digest, [N].
        hashed: images that have a hash, [N].
    """
    splits = np.repeat(np.arange(len(images.datasets)), images.counts)
    labels = _join_labels(images)
    at = np.flatnonzero(readable)
    exact = find_exact_duplicates(digests[at], splits[at], labels[at])
    yield from _report_groups("duplicate", exact, images, at, " = ")
    at = np.flatnonzero(hashed)
    near = find_near_duplicates(hashes[at], digests[at], splits[at], labels[at])
    yield from _report_groups("near_duplicate", near, images, at, " ~ ")


def _join_labels(images: JoinedImages) -> Index:
    """Number the labels of all splits, equal for the same class, or classes, by name.

    Images without classes are of one class.
    """
    number_of: dict[tuple[str, ...], int] = {}
    labels = [np.zeros(0, dtype=np.int64)]
    for dataset in images.datasets:
        if dataset.is_multilabel:
            sets, row_of = np.unique(dataset.labels, axis=0, return_inverse=True)
            named = [tuple(dataset.class_names[n] for n in np.flatnonzero(row)) for row in sets]
            rows = row_of.reshape(-1).astype(np.int64)
        else:
            named = [(name,) for name in dataset.class_names] or [()]
            rows = dataset.labels.astype(np.int64)
        numbers = [number_of.setdefault(names, len(number_of)) for names in named]
        labels.append(np.array(numbers, dtype=np.int64)[rows])
    return np.concatenate(labels)


def _report_groups(
    kind: str, groups: DuplicateGroups, images: JoinedImages, at: Index, sign: str
) -> Iterator[Issue]:
    for relation, (some, others) in asdict(groups).items():
        code = f"{kind}_{relation}"
        if code == "duplicate_across_classes" and _may_have_several(images, len(some)):
            code = "images_of_several_classes"
        pairs = _DuplicatePairs(code, at[some], at[others], images)
        examples = (f"{image}{sign}{other}" for image, other in pairs)
        yield from report(pairs.code, len(some), examples, remedies=pairs.make_remedies)


def _may_have_several(images: JoinedImages, num_copies: int) -> bool:
    """Whether so many images of one label each are there under another, too, that these may be no mistakes."""
    are_of_one = not any(dataset.is_multilabel for dataset in images.datasets)
    return are_of_one and num_copies >= MIN_SEVERAL * sum(images.counts)


@dataclass(frozen=True)
class _DuplicatePairs:
    """Images, and a duplicate of each, by index."""

    code: str
    some: Index
    others: Index
    images: JoinedImages

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for a, b in zip(self.some.tolist(), self.others.tolist(), strict=True):
            yield self.images.name(a), self.images.name(b)

    def make_remedies(self) -> Iterator[Remedy]:
        for image, other in self:
            if self.code == "duplicate_across_splits":
                # deleted from training, so that validation stays comparable
                yield self._delete(other, image)
            elif self.code == "duplicate_in_class":
                yield self._delete(image, other)
            else:
                yield Remedy(image, self.code, "review", other)

    def _delete(self, extra: str, original: str) -> Remedy:
        """Delete one of two, unless they are one file, listed twice or behind a link."""
        # deleting one name of a file, or the target of a link, would delete the image
        linked = os.path.realpath(extra) == os.path.realpath(original)
        if extra == original or (linked and not os.path.islink(extra)):
            return Remedy(extra, self.code, "review", original)
        return Remedy(extra, self.code, "delete")


def find_exact_duplicates(
    digests: NDArray[np.uint8], splits: NDArray[np.integer], labels: NDArray[np.integer]
) -> DuplicateGroups:
    """Find images with equal digests.

    Args:
        digests: bytes [N,16].
        splits: index of each image's split, [N], in ascending order; training is 0.
        labels: of each image, [N], the same numbers in all splits.
    """
    same = group_rows(digests)
    first = find_first(same)
    # within a split, so that a leaked image does not hide a duplicate beside it
    first_in_split = find_first(group_rows(np.stack([same, splits.astype(np.int64)], axis=1)))
    here = np.arange(len(same))
    leaks = splits[first] != splits
    repeats = first_in_split != here
    mislabeled = repeats & (labels[first_in_split] != labels)
    in_class = repeats & ~mislabeled
    return DuplicateGroups(
        (here[leaks], first[leaks]),
        (here[mislabeled], first_in_split[mislabeled]),
        (here[in_class], first_in_split[in_class]),
    )


def find_near_duplicates(
    hashes: NDArray[np.uint8],
    digests: NDArray[np.uint8],
    splits: NDArray[np.integer],
    labels: NDArray[np.integer],
) -> DuplicateGroups:
    """Find images whose hashes, bytes [N,16], differ in `MAX_DISTANCE` bits or fewer, not their pixels.

    The other arguments are those of `find_exact_duplicates`.
    """
    # exact duplicates are reported as such
    distinct = np.flatnonzero(find_first(group_rows(digests)) == np.arange(len(digests)))
    other = np.full((3, len(hashes)), -1, dtype=np.int64)
    for low, high in find_near_pairs(hashes[distinct], MAX_DISTANCE):
        a, b = distinct[low], distinct[high]
        relation = np.where(splits[a] != splits[b], 0, np.where(labels[a] != labels[b], 1, 2))
        other[relation, b] = a
    return DuplicateGroups(*((np.flatnonzero(row >= 0), row[row >= 0]) for row in other))
