"""What lies in a part besides images in class folders: a copy of the part, masks, equal sub-folders."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from deitctl.data.layout import (
    is_aside,
    is_mask_folder,
    is_neutral,
    is_numbered_part,
    match_split,
    name_some,
)
from deitctl.data.trees import NUM_PROBED, Tree, find_innermost, has_images, join_path
from deitctl.errors import DataError

MAX_COMPARED = 200
"""Folders beside each other that are all looked into for a copy of the others; of more, those alone
that are called as the one around them, as a part, or as folders around data."""
MASK_NAMES = (
    *("masks", "mask", "Masks", "Mask", "segmentation", "segmentations", "ground_truth"),
    *("annotations", "labels"),
)
"""Folders of masks that are looked for beside images."""
_PART_STARTS = re.compile(r"(train|entrain|entren|trein|test|val)", re.IGNORECASE)


def find_copies(tree: Tree, root: str, data: str) -> tuple[str, ...]:
    """Return the folders that hold the same class folders as they lie beside, as some archives do.

    Args:
        tree: the folders of the data.
        root: the folder of class folders, in `tree`.
        data: name of the data, for messages.

    Raises:
        DataError: one holds folders of the same names, and they are not the same.
    """
    names = tree.list(root).folders
    copies = []
    around = os.path.splitext(os.path.basename(os.path.join(data, root).rstrip("/")))[0]
    for name in names:
        if len(names) > MAX_COMPARED and not (
            name == around or is_neutral(name) or match_split(name)
        ):
            continue
        path = join_path(root, name)
        if tree.has_image(path):
            continue
        inside = tree.list(path).folders
        same = sorted({*inside} & {*names} - {name})
        if len(same) < 2 or 2 * len(same) < len(inside):
            continue
        others = [n for n in names if n != name and has_images(tree, join_path(root, n))]
        is_equal = others == list(inside) and all(
            tree.list(join_path(root, n)) == tree.list(join_path(path, n)) for n in others
        )
        if not is_equal:
            raise DataError(
                f"{data} has {path}/ of the folders {name_some(f'{n}/' for n in inside)} beside "
                "folders of the same names, with other numbers of images: which of both are the "
                "classes is not clear.",
                f"Remove {path}/ if it is a copy, or move its images into the folders beside it.",
            )
        copies.append(path)
    return tuple(copies)


def find_masks(tree: Tree, root: str, left_out: Collection[str]) -> tuple[str, ...]:
    """Return the folders of masks in class folders, beside `images/` or images.

    Args:
        tree: the folders of the data.
        root: the folder of class folders, in `tree`.
        left_out: folders that are not read.
    """
    paths = [path for name in tree.list(root).folders if (path := join_path(root, name))]
    paths = [path for path in paths if path not in left_out]
    for some in (paths[:NUM_PROBED], paths):  # folders of images alone need no look at all of them
        masks = [mask for path in some for mask in _list_masks(tree, path)]
        if not masks:
            return ()
    return tuple(masks)


def _list_masks(tree: Tree, path: str) -> list[str]:
    """Return the folders of masks in a class folder, beside `images/` or images."""
    if tree.has_image(path):  # which may be one of a million: not all are listed
        masks = [mask for name in MASK_NAMES if tree.has_folder(mask := join_path(path, name))]
        return [mask for mask in masks if has_images(tree, mask)]
    folders = tree.list(path).folders
    masks = [name for name in folders if is_mask_folder(name)]
    has_others = any(is_neutral(name) for name in folders if name not in masks)
    return [join_path(path, name) for name in masks] if has_others else []


def find_same_folders(
    tree: Tree, root: str, data: str, left_out: Collection[str]
) -> tuple[str, ...]:
    """Return the folders that all class folders hold, if they are the same and several.

    Args:
        tree: the folders of the data.
        root: the folder of class folders, in `tree`.
        data: name of the data, for messages.
        left_out: folders that are not read.

    Raises:
        DataError: these may be the classes, because they are more than what holds them, or the
            outer ones are `fold1`, `fold2` ... or `images`, `masks`.
    """
    paths = [join_path(root, name) for name in tree.list(root).folders]
    paths = [path for path in paths if path not in left_out]
    if len(paths) < 2 or tree.has_image(paths[0]):
        return ()
    for some in (paths[:NUM_PROBED], paths):
        # `amazon/images/bike`, `dslr/images/bike`: what holds one folder alone is entered
        inner = [find_innermost(tree, path) for path in some]
        if not are_same(tree, inner, left_out):
            return ()
    below = inner[0].removeprefix(paths[0]).lstrip("/")
    inside = _list_read(tree, inner[0], left_out)
    names = [path.rsplit("/", 1)[-1] for path in paths]
    is_series = (
        all(map(is_numbered_part, names))
        or all(is_aside(name) or is_neutral(name) for name in names)
        or all(map(_PART_STARTS.match, names))
    )
    has_numbers = all(any(map(str.isdecimal, name)) for name in inside)  # 2019/, 40x/
    if is_series or (len(inside) > max(2, len(names)) and not has_numbers):
        raise DataError(
            f"{name_some(f'{path}/' for path in inner)} of {data} all hold the folders "
            f"{name_some(inside)}: which of both are the classes is not clear.",
            f"If the inner ones are, put them directly below {root}/; if the outer ones are, move "
            "their images up."
            if root
            else "If the outer ones are parts of the data, name them train, val and test; if they "
            "are data sets, pass one as DATA; if they are classes, move their images up.",
        )
    return tuple(join_path(below, name) for name in inside)


def are_same(tree: Tree, paths: Sequence[str], left_out: Collection[str] = ()) -> bool:
    """Whether folders hold several folders of the same names each, and no images."""
    if any(map(tree.has_image, paths)):
        return False
    inside = {_list_read(tree, path, left_out) for path in paths}
    return len(inside) == 1 and len(inside.pop()) > 1


def _list_read(tree: Tree, path: str, left_out: Collection[str]) -> tuple[str, ...]:
    folders = tree.list(path).folders
    return tuple(name for name in folders if join_path(path, name) not in left_out)
