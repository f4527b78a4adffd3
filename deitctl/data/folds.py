"""Folds: parts of the training images, each of which one of several runs holds out.

Letters: N images, K classes, G groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.extra import add_extra
from deitctl.data.fraction import take_fraction
from deitctl.data.group_names import MAX_NAMED, name_groups
from deitctl.data.groups import join_duplicates, number_groups
from deitctl.data.near_duplicates import MAX_BYTES, MAX_IMAGES, group_duplicates
from deitctl.data.splits import hash_paths, list_members, list_relative_paths
from deitctl.data.subsets import Subset
from deitctl.data.unlabeled import add_unlabeled, take_rest
from deitctl.errors import DataError
from deitctl.events import Reporter

MAX_GROUP = 1.5
"""Size of a group of near duplicates, in folds, above which only equal images are kept together."""


@dataclass(frozen=True, eq=False)
class FoldedData:
    """Images, each of which one of several runs validates on."""

    name: str
    """Of the data."""
    images: ImageDataset
    fold_of: NDArray[np.int64]
    """Which fold holds out each image, from 1, [N]."""
    num_folds: int
    group_names: Sequence[str] | None
    """Of each image, [N]; None: images have no groups with names."""
    fraction: float = 1.0
    """Share of the training images of each fold that is used, see `take_fraction`."""
    seed: int = 0
    """Of that choice."""
    extra: tuple[ImageDataset, ...] = ()
    """Training images of every fold that are of other sources, one after the other."""
    extra_weight: tuple[float, ...] = ()
    """How many times the images of each source come in an epoch; empty: once."""
    unlabeled: ImageDataset | None = None
    """Training images of every fold that have no labels."""
    uses_rest: bool = False
    """Whether the training images that the fraction leaves out are used without labels."""

    def list_datasets(self) -> list[ImageDataset]:
        """Return all images, those of other sources and those without labels behind."""
        return [
            self.images,
            *self.extra,
            *([] if self.unlabeled is None else [self.unlabeled]),
        ]

    def split(self, fold: int) -> tuple[ImageDataset, Subset]:
        """Return the training and validation images of the run of a fold, from 1."""
        is_held = self.fold_of == fold
        train, val = np.flatnonzero(~is_held), np.flatnonzero(is_held)
        labels, names = self.images.labels, self.images.class_names
        others = Subset(self.images, train, labels[train], names)
        labeled = take_fraction(others, self.fraction, self.seed)
        unlabeled = take_rest(others, labeled) if self.uses_rest else self.unlabeled
        labeled = add_extra(labeled, self.extra, self.extra_weight)
        return (
            labeled if unlabeled is None else add_unlabeled(labeled, unlabeled),
            Subset(self.images, val, labels[val], names, holds_out=True),
        )


def split_folds(
    name: str,
    images: ImageDataset,
    num_folds: int,
    *,
    seed: int,
    group_by: str,
    reporter: Reporter,
) -> FoldedData:
    """Divide images into folds: every class evenly, no group and no near duplicates in two of them.

    Args:
        name: of the data.
        images: all that are trained on or validated on.
        num_folds: how many, 2 or more.
        seed: of the division, which is a function of it and of the images' paths and labels.
        group_by: see `name_groups`; empty: there are no groups with names.
        reporter: receives what was decided, and warnings where figures would be wrong.

    Raises:
        DataError: fewer groups than folds, or a class that one fold would hold out as a whole.
    """
    group_names = name_groups(images, group_by, name) if group_by else None
    duplicates = group_duplicates(images, reporter)
    named = None if group_names is None else number_groups(group_names)
    groups, joined = join_duplicates(named, duplicates, len(images.labels), MAX_GROUP / num_folds)
    hashes = hash_paths(list_relative_paths(images) if group_names is None else group_names, seed)
    _require_groups(name, images, groups, num_folds, group_by, reporter)
    fold_of = 1 + assign_folds(images.labels, groups, hashes, num_folds)
    sizes = np.bincount(fold_of)[1:]
    _report(name, sizes, group_names, group_by, joined, reporter)
    return FoldedData(name, images, fold_of, num_folds, group_names)


def assign_folds(
    labels: Labels, groups: NDArray[np.int64], hashes: NDArray[np.float64], num_folds: int
) -> NDArray[np.int64]:
    """Return the fold of each image, [N] from 0: groups whole, classes as evenly as these let them be.

    Iterative stratification (Sechidis et al. 2011) of groups: the class of the fewest images left
    comes first, its largest group first. A group goes where its classes have the smallest part of
    their images, weighted by what it has of each; of equals, where there are the fewest images. Those
    of several labels without one are a class too.

    Args:
        labels: int64 [N], or bool [N,K].
        groups: number of each image's group, [N].
        hashes: decides among groups of one size: the largest of its images', [N].
        num_folds: folds, no more than groups.
    """
    numbers, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    largest = np.zeros(len(numbers))
    np.maximum.at(largest, groups, hashes)
    counts = _count_by_group(labels, groups)
    groups_of: dict[int, list[int]] = defaultdict(list)
    left: dict[int, int] = defaultdict(int)
    for group, classes in enumerate(counts):
        for label, count in classes.items():
            groups_of[label].append(group)
            left[label] += count
    total = dict(left)
    in_class: dict[int, list[int]] = {label: [0] * num_folds for label in left}
    in_all = [0] * num_folds

    def compute_cost(group: int, fold: int) -> tuple[float, int, int]:
        of_group = counts[group].items()
        part = sum(count * in_class[label][fold] / total[label] for label, count in of_group)
        return part, in_all[fold], fold

    fold_of = np.full(len(numbers), -1, np.int64)
    while left:
        label = min(left, key=lambda label: (left[label], label))
        for group in sorted(groups_of[label], key=lambda group: (-sizes[group], largest[group])):
            if fold_of[group] >= 0:
                continue
            costs = [compute_cost(group, fold) for fold in range(num_folds)]
            fold = min(costs)[-1]
            fold_of[group] = fold
            in_all[fold] += int(sizes[group])
            for other, count in counts[group].items():
                in_class[other][fold] += count
                if other in left:
                    left[other] -= count
        del left[label]
    folds: NDArray[np.int64] = fold_of[groups]
    return folds


def _count_by_group(labels: Labels, groups: NDArray[np.int64]) -> list[dict[int, int]]:
    """Return the images of each class that each group has, [G]; class -1: those without a label."""
    counts: list[dict[int, int]] = [{} for _ in range(int(groups.max(initial=-1)) + 1)]
    if labels.ndim == 1:
        pairs = np.stack([groups, labels])
    else:
        rows, classes = np.nonzero(labels)
        without = np.flatnonzero(~labels.any(axis=1))
        pairs = np.stack(
            [
                groups[np.concatenate([rows, without])],
                np.concatenate([classes, np.full(len(without), -1)]),
            ]
        )
    unique, how_many = np.unique(pairs, axis=1, return_counts=True)
    for group, label, count in zip(*unique.tolist(), how_many.tolist(), strict=True):
        counts[group][label] = count
    return counts


def _require_groups(
    name: str,
    images: ImageDataset,
    groups: NDArray[np.int64],
    num_folds: int,
    group_by: str,
    reporter: Reporter,
) -> None:
    """Refuse folds that would be empty, or hold out all of a class."""
    num_groups = len(np.unique(groups))
    what = f"groups by {group_by}" if group_by else "images that do not resemble each other"
    if num_groups < num_folds:
        raise DataError(
            f"{name} has {num_groups} {what}, too few for {num_folds} folds.",
            f"Use --folds {num_groups}, or fewer." if num_groups > 1 else "",
        )
    members = list_members(images)
    num_groups_of = [len(np.unique(groups[indices])) for indices in members]
    classes_of_one = [label for label, count in enumerate(num_groups_of) if count == 1]
    if classes_of_one:
        label = classes_of_one[0]
        count = len(members[label])
        holder = f"all {count:,} images of class" if count > 1 else "the one image of class"
        of_group = f" are of one group by {group_by}" if group_by and count > 1 else ""
        of_group = of_group or (" resemble each other" if count > 1 else "")
        more = f" (and {len(classes_of_one) - 1} more classes)" if len(classes_of_one) > 1 else ""
        message = (
            f"In {name} {holder} {images.class_names[label]!r}{of_group}{more}: the fold that holds "
            "them out would have none to learn from"
        )
        if not images.is_multilabel:
            raise DataError(f"{message}.", "Leave the class out, or add images of other groups.")
        reporter.warn(f"{message}, and misses them.")
    scarce = [label for label, count in enumerate(num_groups_of) if 1 < count < num_folds]
    if scarce:
        names = ", ".join(images.class_names[label] for label in scarce[:MAX_NAMED])
        more = f" and {len(scarce) - MAX_NAMED} more" if len(scarce) > MAX_NAMED else ""
        reporter.note(
            f"Some folds hold out no image of {names}{more}: fewer than {num_folds} "
            f"{'groups' if group_by else 'images'} have it."
        )


def _report(
    name: str,
    sizes: NDArray[np.int64],
    group_names: Sequence[str] | None,
    group_by: str,
    joined: str,
    reporter: Reporter,
) -> None:
    least, most = int(sizes.min()), int(sizes.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    sentences = [f"{name}: {len(sizes)} folds of {each} images, each class divided evenly"]
    if group_names is not None:
        sentences[0] += f", none of {len(set(group_names)):,} groups by {group_by} in two of them"
    sentences[0] += "."
    if not joined:
        sentences.append(
            f"Duplicates were not looked for among more than {MAX_IMAGES:,} images or "
            f"{MAX_BYTES // 2**30} GiB."
        )
    reporter.note(" ".join(sentences))
    if joined == "exact":
        reporter.warn(
            f"So many images of {name} resemble another that only equal ones were kept together"
            + (
                ": accuracies may be too high."
                if group_by
                else ". If they are frames of a video or shots of one scene, name what they are of with "
                "--group-by: else accuracies are too high."
            )
        )
