"""What a run has to do with some data: whether it is the run's, and which images it was trained on.

The one rule by which `train --resume`, `eval`, `export` and calibration recognize a run's images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import name_labels, number_labels
from deitctl.data.run_data import RunData, SplitRows
from deitctl.data.splits import ALL, list_relative_paths
from deitctl.data.stores.address import get_public
from deitctl.data.subsets import Subset, select
from deitctl.names import canonicalize_name

MIN_FOUND = 0.95
"""Of a run's images that must be found for data elsewhere to be the run's."""
PLACES = {ALL: ("", "train"), "train": ("train",), "val": ("val", "test")}
"""Parts of data, by the part that a row names; the empty part is unsplit data."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AppliedSplit:
    """A run's split of data that may have changed since."""

    train: Subset
    val: Subset
    num_new: int
    """Images that were not there when the run began; they are in neither part."""
    missing: tuple[str, ...]
    """Paths of the run's images that are gone, or have other contents."""
    relabeled: tuple[str, ...]
    """Paths of the run's images that have another label now."""


@dataclass(frozen=True, eq=False)
class RunMatch:
    """What a run has to do with some data."""

    run: RunData
    is_same_place: bool
    """Whether the run found its data where this is."""
    is_own: bool
    """Whether it is the run's data: by its place, or by its images, as data is moved and packed."""
    split: AppliedSplit | None
    """Of its own data, if the run has split it."""
    train_masks: Mapping[str, Mask] | None
    """Of each part, which of its images the run was trained on, [N]; None: not known."""


def match_run(ref: str, parts: Mapping[str, ImageDataset], run: RunData) -> RunMatch:
    """Find a run's images in data.

    Args:
        ref: the data, as the user names it.
        parts: of the data, by name; unsplit data has the empty name.
        run: the run.
    """
    is_same_place = is_place_of(run, ref)
    rows = run.rows
    if rows is None:
        return RunMatch(run, is_same_place, is_same_place, None, None)
    extra_rows, rows = rows.take(extra=True), rows.take(extra=False)
    row_of = _find_rows(parts, rows, is_same_place)
    found_rows = np.unique(np.concatenate([np.zeros(0, np.int64), *row_of.values()]))
    num_found = int((found_rows >= 0).sum())
    is_own = is_same_place or num_found >= MIN_FOUND * max(1, len(rows.paths))
    split = None
    name = "" if "" in parts else "train"
    has_split = rows.is_held_out and ("val" not in parts or run.is_fold)
    if is_own and has_split and name in parts:
        split = _apply_rows(parts[name], row_of[name], rows)
    # A last entry for images that have no row.
    trained_on = np.array([*(s == "train" for s in rows.splits), False], np.bool_)
    masks = {name: trained_on[numbers] for name, numbers in row_of.items()}
    if extra_rows.paths:
        for name, numbers in _find_rows(parts, extra_rows, is_same_place=False).items():
            masks[name] = masks[name] | (numbers >= 0)
    is_known = is_own or all((numbers >= 0).all() for numbers in row_of.values())
    is_known |= any(mask.any() for mask in masks.values())
    return RunMatch(run, is_same_place, is_own, split, masks if is_known else None)


def apply_split(dataset: ImageDataset, run: RunData, ref: str) -> AppliedSplit:
    """Split data as a run did: the same images, in the same order, under the same class numbers.

    Args:
        dataset: the run's data as it is now, which has no validation images.
        run: the run, which has rows.
        ref: the data, as the user names it.
    """
    if run.rows is None:
        raise ValueError(f"{run.folder} does not say how it split its data")
    rows = run.rows.take(extra=False)
    return _apply_rows(dataset, _find_rows({"": dataset}, rows, is_place_of(run, ref))[""], rows)


def is_place_of(run: RunData, ref: str) -> bool:
    """Whether a run found its data where `ref` is."""
    real, real_other = (
        os.path.realpath(os.path.expanduser(get_public(place) or "digits"))
        for place in (ref, run.ref)
    )
    return real == real_other


def _find_rows(
    parts: Mapping[str, ImageDataset], rows: SplitRows, is_same_place: bool
) -> dict[str, NDArray[np.int64]]:
    """Return the row of each image of each part, -1 for none.

    A table may list an image twice: each takes a row of its own where there is one, of its own
    label if possible.
    """
    numbers_of: dict[str, list[int]] = {}
    for number, path in enumerate(rows.paths):
        numbers_of.setdefault(path, []).append(number)
    row_labels = _reduce_names(rows.labels)
    taken: set[int] = set()
    row_of = {}
    for part, dataset in parts.items():
        labels = _reduce_names(name_labels(dataset))
        row_of[part] = np.full(len(labels), -1, np.int64)
        for index, path in enumerate(list_relative_paths(dataset)):
            numbers = numbers_of.get(path, [])
            if is_same_place and any(part in PLACES[rows.parts[number]] for number in numbers):
                # The file is in its place: a look at its size is enough.
                numbers = [n for n in numbers if part in PLACES[rows.parts[n]]]
                size = dataset.num_bytes(index)
                equal = [n for n in numbers if rows.num_bytes[n] == size]
            else:
                equal = _find_equal(dataset, index, rows, numbers)
            if equal:
                label = labels[index]
                number = min(equal, key=lambda n: (n in taken, row_labels[n] != label, n))
                row_of[part][index] = number
                taken.add(number)
    return row_of


def _reduce_names(labels: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the classes of images as they compare: in canonical form and one order."""
    reduced = {names: tuple(sorted(map(canonicalize_name, names))) for names in set(labels)}
    return [reduced[names] for names in labels]


def _find_equal(
    dataset: ImageDataset, index: int, rows: SplitRows, numbers: Sequence[int]
) -> list[int]:
    """Return which rows are of an image's contents: by digest, or size where there is none."""
    if not numbers:
        return []
    digest = dataset.digest(index) if any(rows.digests[n] for n in numbers) else 0
    if digest:
        return [n for n in numbers if rows.digests[n] == digest]
    size = dataset.num_bytes(index)
    return [n for n in numbers if rows.num_bytes[n] == size]


def _apply_rows(dataset: ImageDataset, row_of: NDArray[np.int64], rows: SplitRows) -> AppliedSplit:
    index_of = dict(zip(row_of.tolist(), range(len(row_of)), strict=True))
    order = [n for n in range(len(rows.paths)) if n in index_of]
    indices = np.array([index_of[n] for n in order], np.int64)
    row_labels = _reduce_names(rows.labels)
    labels_now = _reduce_names(name_labels(select(dataset, indices)))
    used = set(chain.from_iterable((*row_labels, *labels_now)))
    class_names = tuple(name for name in dataset.class_names if canonicalize_name(name) in used)
    labels = number_labels(dataset, class_names)
    is_train = np.array([rows.splits[n] == "train" for n in order], np.bool_)
    train, val = indices[is_train], indices[~is_train]
    return AppliedSplit(
        Subset(dataset, train, labels[train], class_names),
        Subset(dataset, val, labels[val], class_names, holds_out=True),
        len(row_of) - len(indices),
        tuple(path for n, path in enumerate(rows.paths) if n not in index_of),
        tuple(
            rows.paths[n]
            for n, label in zip(order, labels_now, strict=True)
            if row_labels[n] != label
        ),
    )
