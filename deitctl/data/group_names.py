"""What `--group-by` means: the name of the group, a patient or camera, that each image belongs to.

Letters: N images.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.group_by import FOLDER, NAME, NOTATIONS, is_of_path
from deitctl.data.groups import number_groups
from deitctl.data.splits import list_relative_paths
from deitctl.errors import DataError
from deitctl.events import Reporter

MAX_NAMED = 3
"""Groups or classes that a message names."""


def name_groups(dataset: ImageDataset, group_by: str, data: str) -> list[str]:
    """Return the name of each image's group, [N].

    Args:
        dataset: the images.
        group_by: a column of the table that the data is, `folder:LEVEL`, or `name:REGEX`.
        data: its name.

    Raises:
        DataError: an image has no such folder, name or entry, all are of one group, or the groups
            are the classes.
    """
    if is_of_path(group_by):
        paths = list_relative_paths(dataset)
        is_folder = group_by.startswith(FOLDER)
        names = [
            _get_folder(path, group_by) if is_folder else _match_name(path, group_by)
            for path in paths
        ]
        if not is_folder and (
            wrong := [p for p, name in zip(paths, names, strict=True) if not name]
        ):
            raise DataError(
                f"{len(wrong):,} of {len(paths):,} file names of {data} do not match {group_by}, "
                f"or with nothing: {wrong[0]!r}.",
                NOTATIONS,
            )
    elif dataset.group_names is None:
        raise DataError(f"{data} has no column {group_by!r}, which --group-by names.", NOTATIONS)
    else:
        paths, names = [], list(map(_normalize, dataset.group_names))
    if empty := [index for index, name in enumerate(names) if not name]:
        lacking = "folder" if paths else "entry"
        raise DataError(
            f"{len(empty):,} of {len(names):,} images of {data} have no {lacking} for --group-by "
            f"{group_by}: {dataset.name(empty[0])!r}.",
            "Give them one, or leave them out." if not paths else NOTATIONS,
        )
    _require_groups(dataset, names, group_by, data)
    return names


def _get_folder(path: str, group_by: str) -> str:
    """Return the folder of a level, empty where the path has none.

    Without those above it: a patient has images in the folders of several classes.
    """
    folders, level = path.split("/")[:-1], int(group_by.removeprefix(FOLDER))
    end = level if level > 0 else len(folders) + 1 + level
    return folders[end - 1] if 0 < end <= len(folders) else ""


def _match_name(path: str, group_by: str) -> str:
    match = re.search(group_by.removeprefix(NAME), path.rpartition("/")[2])
    return (match[1] or "") if match else ""


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", str(name)).strip()


def _require_groups(dataset: ImageDataset, names: Sequence[str], group_by: str, data: str) -> None:
    groups = number_groups(names)
    num_groups = len(set(names))
    if num_groups < 2:
        raise DataError(
            f"All {len(names):,} images of {data} are of one group by {group_by}: {names[0]!r}.",
            "A split takes two groups or more. " + NOTATIONS,
        )
    labels = dataset.labels
    if dataset.is_multilabel or num_groups != len(np.unique(labels)):
        return
    if len(np.unique(np.stack([groups, labels]), axis=1).T) == num_groups:
        level = group_by.removeprefix(FOLDER)
        raise DataError(
            f"The groups of {data} by {group_by} are its classes, each of which belongs on both sides "
            "of a split.",
            f"folder:{int(level) + 1} is the first folder below."
            if group_by.startswith(FOLDER) and int(level) > 0
            else NOTATIONS,
        )


def compare_groups(
    data: str, train: ImageDataset, val: ImageDataset, group_by: str, reporter: Reporter
) -> None:
    """Say whether groups are on both sides of a split that the data itself has."""
    sides = [set(name_groups(part, group_by, data)) for part in (train, val)]
    shared = sorted(sides[0] & sides[1])
    if shared:
        reporter.warn(
            f"{len(shared):,} of {len(sides[0] | sides[1]):,} groups of {data} by {group_by} are in its "
            f"training and its validation images, {shared[0]!r} for example: accuracies are too high."
        )
    else:
        reporter.note(
            f"{data} has validation images of its own, and no group by {group_by} is on both sides."
        )
