"""Copies of images: the same pixels, and nearly the same by hashes that differ in a few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
BITS = 128
NEAR = 9
"""Bits of 128 in which copies differ at most. docs/check.md has the measurements: recompressed, shrunk and 2 % cropped
copies of real images lie within it (98 % of them or more), the two most alike of different images 21 apart."""


FARTHEST = 4096
"""Neighbors that a hash is compared with; of a set of more near copies, some pairs are left out."""


@dataclass(frozen=True)
class DuplicateGroups:
    """Images that have a twin, and one twin of each, by how the two are related; by image number."""

    across_parts: tuple[Index, Index]
    """Validation images, and for each a training image."""
    across_classes: tuple[Index, Index]
    in_class: tuple[Index, Index]


def exact_twins(
    digests: NDArray[np.uint8], parts: NDArray[np.integer], labels: NDArray[np.integer]
) -> DuplicateGroups:
    """Find images with equal digests.

    Args:
        digests: bytes [N,16].
        parts: of each image its part, [N], in ascending order; training is 0.
        labels: of each image its class, [N], the same numbers in all parts.
    """
    same = group(digests)
    first = _first_of(same)
    first_in_part = _first_of(group(np.stack([same, parts.astype(np.int64)], axis=1)))
    here = np.arange(len(same))
    leaks = parts[first] != parts
    repeats = first_in_part != here
    clash = repeats & (labels[first_in_part] != labels)
    copies = repeats & ~clash
    return DuplicateGroups(
        (here[leaks], first[leaks]),
        (here[clash], first_in_part[clash]),
        (here[copies], first_in_part[copies]),
    )


def near_twins(
    hashes: NDArray[np.uint8],
    digests: NDArray[np.uint8],
    parts: NDArray[np.integer],
    labels: NDArray[np.integer],
) -> DuplicateGroups:
    """Find images whose hashes, bytes [N,16], differ in `NEAR` bits or fewer while their pixels differ.

    The other arguments are those of `exact_twins`.
    """
    originals = np.flatnonzero(
        _first_of(group(digests)) == np.arange(len(digests))
    )  # copies are reported as such
    twin = np.full((3, len(hashes)), -1, dtype=np.int64)
    for low, high in near_pairs(hashes[originals], NEAR):
        a, b = originals[low], originals[high]
        relation = np.where(parts[a] != parts[b], 0, np.where(labels[a] != labels[b], 1, 2))
        twin[relation, b] = a
    return DuplicateGroups(*((np.flatnonzero(row >= 0), row[row >= 0]) for row in twin))


def near_pairs(hashes: NDArray[np.uint8], distance: int) -> Iterator[tuple[Index, Index]]:
    """Yield all pairs of hashes, bytes [N,16], that differ in `distance` bits or fewer; a pair may come again.

    Of distance + 2 blocks of bits, at least two are equal in such a pair. So hashes are sorted by every two blocks,
    and only neighbors that agree in both are compared: 55 sorts for a distance of 9 instead of N^2 comparisons.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64).reshape(len(hashes), 2)
    bits = np.unpackbits(hashes, axis=1)
    count = distance + 2
    keys = [
        _pack(bits[:, start::count]) for start in range(count)
    ]  # neighboring bits resemble each other: spread them
    width = np.uint64(-(-BITS // count))
    for one, other in combinations(keys, 2):
        key = one << width | other
        order = np.argsort(key, kind="stable")
        key = key[order]
        left, step = np.arange(len(key) - 1), 1
        while len(left) and step <= FARTHEST:
            left = left[key[left] == key[left + step]]
            a, b = order[left], order[left + step]
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= distance
            if close.any():
                yield np.minimum(a, b)[close], np.maximum(a, b)[close]
            step += 1
            left = left[left < len(key) - step]


def group(rows: NDArray[np.generic]) -> Index:
    """Number the distinct rows of a matrix [N,K]; equal rows get equal numbers, [N]."""
    flat = (
        np.ascontiguousarray(rows)
        .view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
        .ravel()
    )
    return np.unique(flat, return_inverse=True)[1].astype(np.int64)


def _first_of(groups: Index) -> Index:
    """Return for each member of each group the lowest place in it, [N]."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _pack(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    packed = np.zeros(len(bits), dtype=np.uint64)
    for column in bits.T:
        packed = packed << np.uint64(1) | column
    return packed
