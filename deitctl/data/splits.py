"""Training, validation and test splits: holding one out, equal classes in both."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import (
    ImageDataset,
    Subset,
    number_labels,
)
from deitctl.errors import DataError
from deitctl.names import reduce_name

SPLITS = ("train", "val", "test")
ALL = "all"
"""Name of the images of every split together."""


@dataclass(frozen=True)
class HeldOutSplit:
    """Data without validation images, split in two."""

    train: Subset
    val: Subset
    num_moved: int = 0
    """Images trained on only because a duplicate of theirs is."""
    num_leaked: int = 0
    """Images held out although a duplicate of theirs is trained on: their class has no others."""


def hold_out(
    dataset: ImageDataset,
    fraction: float,
    seed: int,
    groups: NDArray[np.int64] | None = None,
    contents: Sequence[bytes] | None = None,
) -> HeldOutSplit:
    """Hold out the images whose name has a hash in the first `fraction` of all hashes.

    An image's side depends on its own name alone, not on how many others there are, so that a model
    trained before images were added has not seen the validation images afterwards. Duplicates have
    the largest hash of their group, so that an added one moves the others to training at most. On
    top are three rules, so that every class is on both sides:

    1. A class of one image is trained on, with the image's duplicates.
    2. A class of two or more of which everything is held out trains on the group of the largest
       hash.
    3. A class of two or more of which nothing is held out gives the group of the smallest hash that
       has no image of another class, and is not all of the class; where there is no such group, the
       image of the smallest hash.

    With them a trained image can become a validation image: when its class, or that of a duplicate,
    grows and was subject to rule 1 or 2 before; and by rule 3, when everything that its class held
    out gets a duplicate in training. No rule is without exception: a class of one trains on it, so
    that with two images the other would have to be held out, whichever of the two came first.

    Args:
        fraction: of the hashes, in (0,1).
        seed: of the hashes.
        groups: number of the group of duplicates that an image belongs to, [N]; None: no two images
            are duplicates.
        contents: what is hashed instead of the name, [N]; the name where it is empty.
    """
    paths = list_relative_paths(dataset)
    if contents is not None:
        paths = [c.hex() or path for c, path in zip(contents, paths, strict=True)]
    own_hashes = hash_paths(paths, seed)
    count = len(own_hashes)
    groups = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    largest, sizes = np.zeros(count), np.bincount(groups, minlength=count)
    np.maximum.at(largest, groups, own_hashes)
    hashes = largest[groups]
    held = hashes < fraction
    num_moved = int((own_hashes < fraction).sum() - held.sum())
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    classes = np.split(np.argsort(dataset.labels, kind="stable"), np.cumsum(counts)[:-1])
    for members in classes:
        if len(members) and held[members].all():
            last = groups[members[hashes[members].argmax()]]
            held[groups == last] = False
    for members in classes:
        if len(members) > 1 and not held[members].any():
            numbers, which, in_class = np.unique(
                groups[members], return_inverse=True, return_counts=True
            )
            free = ((in_class == sizes[numbers]) & (in_class < len(members)))[which]
            first = members[np.where(free, hashes[members], np.inf).argmin()]
            if free.any():
                held[groups == groups[first]] = True
            else:
                held[members[own_hashes[members].argmin()]] = True
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    return HeldOutSplit(
        Subset(dataset, train, dataset.labels[train], dataset.class_names),
        Subset(dataset, val, dataset.labels[val], dataset.class_names, holds_out=True),
        num_moved,
        int(np.isin(groups[val], groups[train]).sum()),
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
    labels = number_labels(dataset, class_names)
    if missing := sorted(
        dataset.class_names[n] for n in np.unique(dataset.labels[labels < 0]).tolist()
    ):
        raise DataError(
            f"Class {missing[0]!r} is in the validation set but not in the training set"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else "."),
            _find_spelling(missing[0], class_names)
            or "Give both the same class folders, or remove the extra ones from the validation set.",
        )
    return Subset(dataset, np.arange(len(labels)), labels, class_names)


def _find_spelling(name: str, others: Iterable[str]) -> str:
    """Return a hint where a class is there under a name of other case, spaces or hyphens."""
    same = next((other for other in others if reduce_name(other) == reduce_name(name)), "")
    return f"The training set has {same!r}: use one spelling." if same else ""
