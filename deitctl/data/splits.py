"""Training, validation and test splits: holding one out, equal classes in both."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.groups import join_groups, number_groups
from deitctl.data.labels import count_images, number_labels
from deitctl.data.subsets import Subset
from deitctl.errors import DataError
from deitctl.names import find_names, reduce_name

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
    group_names: Sequence[str] | None = None,
) -> HeldOutSplit:
    """Hold out the images whose name has a hash in the first `fraction` of all hashes.

    An image's side depends on its own name alone, not on how many others there are, so that a model
    trained before images were added has not seen the validation images afterwards. Duplicates have
    the largest hash of their group, so that an added one moves the others to training at most. On
    top are three rules, so that every class is on both sides, each label of an image of several too:

    1. A class of one image is trained on, with the image's duplicates.
    2. A class of two or more of which everything is held out trains on the group of the largest
       hash.
    3. A class of two or more of which nothing is held out gives the group of the smallest hash that
       has no image without the class, and not the last training image of any class; where there is
       no such group, the image of the smallest hash that is not.

    With them a trained image can become a validation image: when its class, or that of a duplicate,
    grows and was subject to rule 1 or 2 before; and by rule 3, when everything that its class held
    out gets a duplicate in training. No rule is without exception: a class of one trains on it, so
    that with two images the other would have to be held out, whichever of the two came first.

    Images of one group name are never on two sides. The hashes are then those of the names of groups.
    As a few groups can all have large hashes, more are held out, or fewer, until they are between
    half of `fraction` of the images and twice that; rule 3 gives any group that has not the last
    training image of a class, and a class without one is not held out.

    Args:
        fraction: of the hashes, in (0,1).
        seed: of the hashes.
        groups: number of the group of duplicates that an image belongs to, [N]; None: no two images
            are duplicates.
        contents: what is hashed instead of the name, [N]; the name where it is empty.
        group_names: name of the group that an image belongs to, [N]; None: groups have no names.
    """
    names = list_relative_paths(dataset) if group_names is None else group_names
    if contents is not None:
        names = [c.hex() or name for c, name in zip(contents, names, strict=True)]
    own_hashes = hash_paths(names, seed)
    count = len(own_hashes)
    groups = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    if group_names is not None:
        groups = np.unique(join_groups(groups, number_groups(group_names)), return_inverse=True)[1]
    largest = np.zeros(count)
    np.maximum.at(largest, groups, own_hashes)
    hashes = largest[groups]
    held = hashes < fraction
    num_moved = int((own_hashes < fraction).sum() - held.sum())
    if group_names is not None:
        _fit_size(held, groups, hashes, fraction)
    _keep_classes_on_both_sides(
        held, dataset, groups, hashes, own_hashes, have_names=group_names is not None
    )
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    return HeldOutSplit(
        Subset(dataset, train, dataset.labels[train], dataset.class_names),
        Subset(dataset, val, dataset.labels[val], dataset.class_names, holds_out=True),
        num_moved,
        int(np.isin(groups[val], groups[train]).sum()),
    )


def _keep_classes_on_both_sides(
    held: NDArray[np.bool_],
    dataset: ImageDataset,
    groups: NDArray[np.int64],
    hashes: NDArray[np.float64],
    own_hashes: NDArray[np.float64],
    *,
    have_names: bool,
) -> None:
    """Move images or groups, in place, by the three rules of `hold_out`."""
    classes = list_members(dataset)
    for members in classes:
        if len(members) and held[members].all():
            last = groups[members[hashes[members].argmax()]]
            held[groups == last] = False
    left = count_labels(dataset.labels[~held], len(classes))
    for members in classes:
        if len(members) < 2 or held[members].any():
            continue
        for chosen in _list_choices(members, groups, hashes, own_hashes, have_names):
            taken = count_labels(dataset.labels[chosen], len(classes))
            if (left > taken)[taken > 0].all():
                held[chosen], left = True, left - taken
                break


def list_members(dataset: ImageDataset) -> list[NDArray[np.int64]]:
    """Return the images of each class, in rising order; one of several labels is in several."""
    if dataset.is_multilabel:
        return [np.flatnonzero(column) for column in dataset.labels.T]
    order = np.argsort(dataset.labels, kind="stable")
    return np.split(order, np.cumsum(count_images(dataset))[:-1])


def _list_choices(
    members: NDArray[np.int64],
    groups: NDArray[np.int64],
    hashes: NDArray[np.float64],
    own_hashes: NDArray[np.float64],
    have_names: bool,
) -> Iterator[NDArray[np.int64]]:
    """Yield what a class of which nothing is held out may give, the best first, see rule 3 of `hold_out`."""
    numbers, first, in_class = np.unique(groups[members], return_index=True, return_counts=True)
    sizes = np.bincount(groups)
    for place in np.lexsort((first, hashes[members[first]])).tolist():
        if have_names or in_class[place] == sizes[numbers[place]]:
            yield np.flatnonzero(groups == numbers[place])
    if not have_names:
        yield from members[np.argsort(own_hashes[members], kind="stable")][:, None]


def _fit_size(
    held: NDArray[np.bool_],
    groups: NDArray[np.int64],
    hashes: NDArray[np.float64],
    fraction: float,
) -> None:
    """Hold out more or fewer groups, in place, as far as the number of images takes it."""
    numbers, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    by_hash = np.argsort(hashes[first], kind="stable")
    least, most = fraction / 2 * len(groups), 2 * fraction * len(groups)
    for place in by_hash[::-1]:  # of the largest hash first
        if held.sum() > most and held[first[place]] and held.sum() - sizes[place] > 0:
            held[groups == numbers[place]] = False
    for place in by_hash:
        if held.sum() < least and not held[first[place]] and held.sum() + sizes[place] <= most:
            held[groups == numbers[place]] = True


def count_labels(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Count the images of each class among some labels, [K]."""
    is_multilabel = labels.ndim == 2
    counts: NDArray[np.int64] = (
        labels.sum(axis=0, dtype=np.int64)
        if is_multilabel
        else np.bincount(labels, minlength=num_classes)
    )
    return counts


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
    labels, places = (
        number_labels(dataset, class_names),
        find_names(dataset.class_names, class_names),
    )
    num_images = count_images(dataset).tolist()
    if missing := sorted(
        name
        for name, place, count in zip(dataset.class_names, places, num_images, strict=True)
        if place is None and count
    ):
        raise DataError(
            f"Class {missing[0]!r} is in the validation set but not in the training set"
            + (f" (and {len(missing) - 1} more)." if len(missing) > 1 else "."),
            _find_spelling(missing[0], class_names)
            or "Add images of it to the training set, or remove those of the validation set.",
        )
    return Subset(dataset, np.arange(len(labels)), labels, class_names)


def _find_spelling(name: str, others: Iterable[str]) -> str:
    """Return a hint where a class is there under a name of other case, spaces or hyphens."""
    same = next((other for other in others if reduce_name(other) == reduce_name(name)), "")
    return f"The training set has {same!r}: use one spelling." if same else ""
