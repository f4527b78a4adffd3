"""Duplicate images: the same pixels, or nearly the same by hashes that differ in a few bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from deitctl.checks.image_info import JoinedImages
from deitctl.checks.issues import Issue, Remedy, report

Index = NDArray[np.int64]
HASH_BITS = 128
MAX_DISTANCE = 9
"""Bits of 128 in which near duplicates differ at most. docs/results/check.md has the measurements:
recompressed, shrunk and 2 % cropped copies of real images lie within it (98 % of them or more), the
two most alike of different images 21 apart."""
MAX_NEIGHBORS = 4096
"""That a hash is compared with; of a set of more near duplicates, some pairs are left out."""


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
    """Number the classes of all splits by name; images without classes are of one class."""
    names = sorted({name for dataset in images.datasets for name in dataset.class_names})
    number = {name: i for i, name in enumerate(names)}
    labels = [np.zeros(0, dtype=np.int64)]
    for dataset in images.datasets:
        numbers = np.array([number[n] for n in dataset.class_names] or [-1], dtype=np.int64)
        labels.append(numbers[dataset.labels])
    return np.concatenate(labels)


def _report_groups(
    kind: str, groups: DuplicateGroups, images: JoinedImages, at: Index, sign: str
) -> Iterator[Issue]:
    for relation, (some, others) in asdict(groups).items():
        pairs = _DuplicatePairs(f"{kind}_{relation}", at[some], at[others], images)
        examples = (f"{image}{sign}{other}" for image, other in pairs)
        yield from report(pairs.code, len(some), examples, remedies=pairs.make_remedies)


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
    first = _find_first(same)
    # within a split, so that a leaked image does not hide a duplicate beside it
    first_in_split = _find_first(group_rows(np.stack([same, splits.astype(np.int64)], axis=1)))
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
    distinct = np.flatnonzero(_find_first(group_rows(digests)) == np.arange(len(digests)))
    other = np.full((3, len(hashes)), -1, dtype=np.int64)
    for low, high in find_near_pairs(hashes[distinct], MAX_DISTANCE):
        a, b = distinct[low], distinct[high]
        relation = np.where(splits[a] != splits[b], 0, np.where(labels[a] != labels[b], 1, 2))
        other[relation, b] = a
    return DuplicateGroups(*((np.flatnonzero(row >= 0), row[row >= 0]) for row in other))


def find_near_pairs(hashes: NDArray[np.uint8], distance: int) -> Iterator[tuple[Index, Index]]:
    """Yield pairs of hashes, bytes [N,16], that differ in `distance` bits or fewer, some twice.

    Of distance + 2 blocks of bits, at least two are equal in such a pair. So hashes are sorted by
    every two blocks, and only neighbors that agree in both are compared: 55 sorts for a distance of
    9 instead of N^2 comparisons.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64).reshape(len(hashes), 2)
    bits = np.unpackbits(hashes, axis=1)
    count = distance + 2
    # neighboring bits resemble each other, so a block takes every count-th bit
    keys = [_pack(bits[:, start::count]) for start in range(count)]
    width = np.uint64(-(-HASH_BITS // count))
    for one, other in combinations(keys, 2):
        key = one << width | other
        order = np.argsort(key, kind="stable")
        key = key[order]
        left, step = np.arange(len(key) - 1), 1
        while len(left) and step <= MAX_NEIGHBORS:
            # equal keys are neighbors: those that end here need no larger step
            left = left[key[left] == key[left + step]]
            a, b = order[left], order[left + step]
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= distance
            if close.any():
                yield np.minimum(a, b)[close], np.maximum(a, b)[close]
            step += 1
            left = left[left < len(key) - step]


def group_rows(rows: NDArray[np.generic]) -> Index:
    """Number the distinct rows of a matrix [N,K]; equal rows get equal numbers, [N]."""
    # rows as single values, because np.unique with axis=0 compares them column by column
    flat = (
        np.ascontiguousarray(rows)
        .view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
        .ravel()
    )
    return np.unique(flat, return_inverse=True)[1].astype(np.int64)


def _find_first(groups: Index) -> Index:
    """Return for each member of each group the first index in it, [N]."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _pack(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    packed = np.zeros(len(bits), dtype=np.uint64)
    for column in bits.T:
        packed = packed << np.uint64(1) | column
    return packed
