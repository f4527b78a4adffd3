"""A share of the training images: of every class alike, chosen by name."""

from __future__ import annotations

import math

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import find_rarest
from deitctl.data.splits import hash_paths, list_relative_paths
from deitctl.data.subsets import select


def take_fraction(train: ImageDataset, fraction: float, seed: int) -> ImageDataset:
    """Return a share of the training images, of every class alike, in their order.

    Of each class those whose name has the smallest hashes, and one at least, so that a smaller share
    is part of a larger one. Of several labels an image counts in the class of its labels that has the
    fewest images, and those without a label are a class too.

    Args:
        train: all of them.
        fraction: the share in (0,1], as `fraction` of Ultralytics, which takes the first images; 1: all.
        seed: of the hashes, that of the split.
    """
    if fraction == 1:
        return train
    labels, paths = find_rarest(train), list_relative_paths(train)
    # Other hashes than those that hold images out, whose smallest are all held out.
    hashes = hash_paths((f"fraction\x1f{path}" for path in paths), seed)
    order = np.lexsort((hashes, labels))
    sizes = np.unique(labels, return_counts=True)[1].tolist()
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    counts = [max(1, math.floor(fraction * size + 0.5)) for size in sizes]
    chosen = [order[start : start + count] for start, count in zip(starts, counts, strict=True)]
    return select(train, np.sort(np.concatenate(chosen)))
