"""Training, validation and test splits: their names, holding one out, equal classes in both."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import (
    ImageDataset,
    Subset,
    find_used_classes,
    number_labels,
)
from deitctl.errors import DataError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid")
TEST_NAMES = ("test",)
SPLIT_NAMES = {"train": TRAIN_NAMES, "val": VAL_NAMES, "test": TEST_NAMES}
"""Names of folders, and values of a table's column, that are read as a split; in order of
preference."""


def find_splits(names: Iterable[str]) -> dict[str, str]:
    """Return which of some folder or split names is `train`, which `val` and which `test`."""
    names = set(names)
    splits: dict[str, str] = {}
    for split, choices in SPLIT_NAMES.items():
        for name in choices:
            if name in names:
                splits.setdefault(split, name)
    return splits


class HeldOut(Subset):
    """The validation images of data that has none of its own."""


@dataclass(frozen=True)
class HeldOutSplit:
    """Data without validation images, split in two."""

    train: Subset
    val: HeldOut
    num_moved: int = 0
    """Images trained on only because a duplicate of theirs is."""


def hold_out(
    dataset: ImageDataset, fraction: float, seed: int, groups: NDArray[np.int64] | None = None
) -> HeldOutSplit:
    """Hold out the images whose name has a hash in the first `fraction` of all hashes.

    An image's side depends on its own name alone, not on how many others there are, so that a model
    trained before images were added has not seen the validation images afterwards. Three rules on
    top, none of which moves an image from training to validation when others are added, but for the
    last:

    1. An image of a group is held out only if every image of the group is below the threshold.
    2. A class of which nothing is held out gives the image of the smallest hash.
    3. A class of two or more of which everything is held out trains on the image of the largest
       hash, and so does a class of one image. When such a class grows, that image can become a
       validation image. No rule is without exception: a class of one trains on it, so that with
       two images the other would have to be held out, whichever of the two came first.

    Args:
        fraction: of the hashes, in (0,1).
        seed: of the hashes.
        groups: number of the group of duplicates that an image belongs to, [N]; None: no two images
            are duplicates.
    """
    hashes = hash_paths(list_relative_paths(dataset), seed)
    below = hashes < fraction
    held = below.copy()
    if groups is not None:
        held &= (np.bincount(groups, weights=~below) == 0)[groups]
    num_moved = int((below & ~held).sum())
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    by_class = np.split(np.argsort(dataset.labels, kind="stable"), np.cumsum(counts)[:-1])
    for members in by_class:
        if len(members) < 2:
            held[members] = False
        elif not held[members].any():
            held[members[hashes[members].argmin()]] = True
        elif held[members].all():
            held[members[hashes[members].argmax()]] = False
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    return HeldOutSplit(
        Subset(dataset, train, dataset.labels[train], dataset.class_names),
        HeldOut(dataset, val, dataset.labels[val], dataset.class_names),
        num_moved,
    )


def hash_paths(paths: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Hash each path to a number in [0,1), uniformly; a function of the path and the seed alone."""
    hashes = (
        blake2b(f"{seed}\x1f{path}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        for path in paths
    )
    numbers = np.frombuffer(b"".join(hashes), dtype=">u8")
    return (numbers >> np.uint64(11)).astype(np.float64) / 2.0**53


def list_relative_paths(dataset: ImageDataset) -> list[str]:
    """Return each image's path below the data, spelled the same on every system.

    With `/`, without `./`, and in Unicode's composed form, which macOS decomposes.
    """
    return [_normalize_path(dataset.relative_path(i)) for i in range(len(dataset.labels))]


def _normalize_path(path: str) -> str:
    if not path.isascii():
        path = unicodedata.normalize("NFC", path)
    return posixpath.normpath(path.replace(os.sep, "/"))


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
