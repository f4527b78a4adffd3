"""Whether images have several labels: by the user, the reader of the data, or copies in several class folders.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

from deitctl.config import TaskChoice
from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.file_types import is_image_start
from deitctl.data.labels import MIN_SEVERAL, count_images, encode_labels
from deitctl.data.readers.read_options import AUTO
from deitctl.data.subsets import Subset, make_multilabel, renumber
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.threads import DaemonThreads

MAX_IMAGES = 200_000
"""Trees of more are not searched for copies unless the user says that they have several labels an
image; these are then known by name and size, not by content."""
NUM_SAMPLED = 100
"""Names in several class folders by which it is seen whether these are copies or other images."""


def settle_labels(
    name: str,
    parts: Mapping[str, ImageDataset],
    task: TaskChoice,
    reporter: Reporter,
    *,
    is_tree: bool,
) -> Mapping[str, ImageDataset]:
    """Return the parts of some data, all of one label an image, or all of several and of the same classes.

    Of a tree of class folders an image in several of them becomes one image of several labels, if
    the task is multilabel, or auto and `MIN_SEVERAL` of the images lie in several; fewer may be
    mistakes.

    Args:
        name: of the data.
        parts: by name.
        task: what the user says.
        reporter: receives what was decided.
        is_tree: whether labels are those of folders.

    Raises:
        DataError: the task is classification, and images have several labels.
    """
    if task == CLASSIFICATION:
        if any(part.is_multilabel for part in parts.values()):
            raise DataError(
                f"{name} has several labels an image, and --task classification is for one.",
                "Leave --task out.",
            )
        return parts
    if is_tree and (task == MULTILABEL or has_copies(parts.values())):
        parts = {part: merge_copies(images) for part, images in parts.items()}
        counts = np.concatenate([images.labels.sum(axis=1) for images in parts.values()])
        reporter.note(
            f"{name}: task multilabel: {(counts > 1).sum():,} of {len(counts):,} images lie in "
            "several class folders."
        )
    if task == MULTILABEL or any(part.is_multilabel for part in parts.values()):
        return _share_classes({part: make_multilabel(images) for part, images in parts.items()})
    return parts


def _share_classes(parts: Mapping[str, ImageDataset]) -> dict[str, ImageDataset]:
    """Return the parts with the classes of all: where no image of one has a class, that is predicted
    wrongly there."""
    names = tuple(sorted(set(chain.from_iterable(part.class_names for part in parts.values()))))
    return {
        name: part if part.class_names == names else renumber(part, names)
        for name, part in parts.items()
    }


def drop_unused(dataset: ImageDataset) -> tuple[ImageDataset, tuple[str, ...]]:
    """Return images of several labels without the classes that none of them has, and these."""
    if not dataset.is_multilabel:
        return dataset, ()
    is_used = (count_images(dataset) > 0).tolist()
    if all(is_used):
        return dataset, ()
    names = tuple(compress(dataset.class_names, is_used))
    return renumber(dataset, names), tuple(
        name for name in dataset.class_names if name not in names
    )


def require_same_kind(name: str, train: ImageDataset, val: ImageDataset, task: TaskChoice) -> None:
    """Raise `DataError` if images have one label each where a model trains, and several where it is scored.

    Not where the user says that images have several: then these may be all that each has.
    """
    if task != AUTO or not train.is_multilabel:
        return
    has_several, is_scored_so = ((part.labels.sum(axis=1) > 1).any() for part in (train, val))
    if is_scored_so and not has_several:
        raise DataError(
            f"Validation images of {name} have several labels, and each of its training images has "
            "one at most.",
            "Give the training images all of theirs; if one is all that each has: --task multilabel.",
        )


def has_copies(parts: Iterable[ImageDataset]) -> bool:
    """Whether `MIN_SEVERAL` of the images of a tree lie in several class folders, under one name."""
    parts = list(parts)
    count = sum(len(part.labels) for part in parts)
    if count > MAX_IMAGES or any(part.is_multilabel for part in parts):
        return False
    named = [(part, rows) for part in parts for rows in _find_shared_names(part)]
    if not named or len(named) < MIN_SEVERAL * count:
        return False
    places = np.linspace(0, len(named) - 1, min(NUM_SAMPLED, len(named))).astype(int).tolist()
    # Numbered images have equal names in all folders, and other sizes.
    num_copies = sum(_are_copies(*named[place]) for place in places)
    return num_copies / len(places) * len(named) >= MIN_SEVERAL * count


def _find_shared_names(part: ImageDataset) -> list[list[int]]:
    """Return the images of each file name that is in several class folders."""
    rows_of: dict[str, list[int]] = {}
    for index in range(len(part.labels)):
        name = part.relative_path(index).replace("\\", "/").rpartition("/")[2]
        rows_of.setdefault(name, []).append(index)
    labels = part.labels
    return [
        rows
        for rows in rows_of.values()
        if len(rows) > 1 and any(labels[n] != labels[rows[0]] for n in rows)
    ]


def _are_copies(part: ImageDataset, rows: Sequence[int]) -> bool:
    """Whether two images of different classes have equal contents."""
    by_size: dict[int, list[int]] = {}
    for n in rows:
        by_size.setdefault(part.num_bytes(n), []).append(n)
    for same in by_size.values():
        label_of: dict[int, int] = {}
        for n in same if len(same) > 1 else ():
            digest = _digest_image(part, n)
            if digest and label_of.setdefault(digest, int(part.labels[n])) != part.labels[n]:
                return True
    return False


def merge_copies(part: ImageDataset) -> Subset:
    """Return each image of a tree once, with the labels of all class folders that it lies in.

    Copies have equal contents; in trees of more than `MAX_IMAGES` equal names and sizes.
    """
    count = len(part.labels)
    labels = encode_labels(part.labels, len(part.class_names))
    first = np.arange(count)
    contents = _list_contents(part)
    seen: dict[object, int] = {}
    for index, content in enumerate(contents):
        if content is not None:
            first[index] = seen.setdefault(content, index)
    # Equal images of one class stay as many as they are.
    merged = np.zeros((count, labels.shape[1]), np.bool_)
    np.logical_or.at(merged, first, labels)
    is_several = (merged.sum(axis=1) > 1)[first]
    is_taken = ~is_several | (first == np.arange(count))
    indices = np.flatnonzero(is_taken)
    return Subset(
        part, indices, np.where(is_several[:, None], merged, labels)[indices], part.class_names
    )


def _list_contents(part: ImageDataset) -> list[object]:
    """Return what is equal for copies of each image, None for an image that has none in another class."""
    count = len(part.labels)
    sizes = part.read_sizes()
    if count > MAX_IMAGES:
        names = (part.relative_path(n).replace("\\", "/").rpartition("/")[2] for n in range(count))
        return [
            (name, size) if size else None for name, size in zip(names, sizes.tolist(), strict=True)
        ]
    contents: list[object] = [None] * count
    candidates = _find_shared_sizes(sizes, part.labels)
    digest = partial(_digest_image, part)
    with DaemonThreads(count_cores()) as threads:
        for index, content in zip(candidates, threads.map(digest, candidates), strict=True):
            contents[index] = content or None
    return contents


def _digest_image(part: ImageDataset, index: int) -> int:
    """Return a digest of an image; 0 for a file that is none, as of many that are equal by their fault."""
    try:
        return part.digest(index) if is_image_start(part.read_start(index)) else 0
    except DataError:
        return 0


def _find_shared_sizes(sizes: NDArray[np.int64], labels: NDArray[np.generic]) -> list[int]:
    """Return the images that have the size of one of another class."""
    order = np.lexsort((labels, sizes))
    starts = np.flatnonzero(np.diff(sizes[order], prepend=-1))
    ordered = labels[order]
    differs = np.minimum.reduceat(ordered, starts) != np.maximum.reduceat(ordered, starts)
    lengths = np.diff(np.append(starts, len(order)))
    is_shared = np.repeat(differs, lengths) & (sizes[order] > 0)
    return list(np.sort(order[is_shared]).tolist())
