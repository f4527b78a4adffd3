"""Groups of images that belong on one side of a split, by number: of named groups, and of duplicates.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deitctl.data.near_duplicates import ImageGroups


def number_groups(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each image's group, [N], from 0."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], np.int64)


def join_groups(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return groups in which images are together that are so in either grouping, or by a chain.

    Args:
        one: number of each image's group, [N], from 0.
        other: the same in another grouping.

    Returns:
        The first image of each image's group, [N].
    """
    groups = np.arange(len(one))
    while True:
        before = groups
        for numbers in (one, other):
            smallest = np.full(len(one), len(one))
            np.minimum.at(smallest, numbers, groups)
            groups = smallest[numbers]
        if np.array_equal(groups, before):
            return groups


def join_duplicates(
    named: NDArray[np.int64] | None,
    duplicates: ImageGroups | None,
    count: int,
    largest: float,
) -> tuple[NDArray[np.int64], str]:
    """Return groups with the duplicates of their images, as far as those do not join too many.

    Images of a fixed camera, X-rays and scans can all resemble each other.

    Args:
        named: number of each image's group, [N]; None: each is alone.
        duplicates: None: they were not looked for.
        count: N.
        largest: fraction of the images that a group may grow to; one that is larger stays.

    Returns:
        The groups, [N], and which duplicates are in them: `near`, `exact`, or empty for none.
    """
    named = np.arange(count) if named is None else named
    if duplicates is None:
        return named, ""
    limit = max(largest * count, np.bincount(named).max(initial=0))
    near = join_groups(named, duplicates.near)
    if np.bincount(near).max(initial=0) <= limit:
        return near, "near"
    return join_groups(named, duplicates.exact), "exact"
