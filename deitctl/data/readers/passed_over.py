"""What opening a folder or tar says of it: its layout, files that are not read, two spellings of a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np

from deitctl.data.file_types import describe_unread
from deitctl.data.index import Listing
from deitctl.data.layout import Layout, is_mask_folder
from deitctl.data.trees import Tree, join_path
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.names import canonicalize_name, group_spellings


def report_unread(data: str, counts: Iterable[Mapping[str, int]], reporter: Reporter) -> None:
    """Say how many files of a data set are passed over, if any of them may be an image.

    Args:
        data: its name.
        counts: files by lower-case extension, of each part.
        reporter: receives it.
    """
    if words := describe_unread(sum(map(Counter, counts), Counter())):
        reporter.warn(f"{data}: {words}")


def report_layout(data: str, note: str, warning: str, reporter: Reporter) -> None:
    """Say what was decided about a data set's layout, if anything was."""
    if note:
        reporter.note(f"{data}: {note}")
    if warning:
        reporter.warn(f"{data}: {warning}")


def leave_out(listing: Listing, folders: Collection[str]) -> Listing:
    """Return a listing without the images in some folders.

    The index of a part has them, because what is left out depends on more than its own files.

    Args:
        listing: of a part.
        folders: a class folder, or one in a class folder, by paths below the part.
    """
    if not folders:
        return listing
    read = []
    for index, name in enumerate(listing.names):
        parents = name.replace(os.sep, "/").split("/")
        if parents[0] not in folders and "/".join(parents[:2]) not in folders:
            read.append(index)
    places = np.array(read, np.int64)
    class_names = tuple(name for name in listing.class_names if name not in folders)
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers.get(name, -1) for name in listing.class_names], np.int64)
    return replace(
        listing,
        names=listing.names.take(places),
        labels=labels[listing.labels[places]],
        class_names=class_names,
        spans=listing.spans and listing.spans.take(places),
    )


def require_labels(layout: Layout, tree: Tree, data: str) -> None:
    """Raise `DataError` if there are parts, and none of them has class folders."""
    if not layout.parts:
        folders = ", ".join(f"{path}/" for path in layout.unlabeled.values())
        above = {path[:at] for path in layout.unlabeled.values() for at in _find_ends(path)}
        drawn = sorted(
            join_path(path, name)
            for path in above
            for name in tree.list(path).folders
            if is_mask_folder(name)
        )
        boxes = f" Boxes and masks, as in {drawn[0]}/, name no class of an image." if drawn else ""
        raise DataError(
            f"{data} has images but no class folders in {folders}, so they have no labels.",
            "Put the images of each class into a folder with its name, or pass a table of "
            f"path,label as DATA.{boxes}",
        )


def _find_ends(path: str) -> list[int]:
    """Return where the paths of the folders above one end in its own."""
    return [0, *(at for at, letter in enumerate(path) if letter == "/")]


def merge_spellings(listing: Listing, where: str, reporter: Reporter) -> Listing:
    """Make one class of class folders whose names differ in spaces around or Unicode form alone.

    Args:
        listing: of a part, with the names of its folders.
        where: the part, for messages.
        reporter: receives the spellings that became one class.

    Raises:
        DataError: a name is of spaces alone.
    """
    canonical = [canonicalize_name(name) for name in listing.class_names]
    if tuple(canonical) == listing.class_names:
        return listing
    if "" in canonical:
        name = listing.class_names[canonical.index("")]
        raise DataError(
            f"{where} has the class folder {name!r}, a name without letters.", "Rename the folder."
        )
    spellings = group_spellings(listing.class_names)
    for same in spellings.values():
        if len(same) > 1:
            reporter.warn(
                f"{where}: the class folders {' and '.join(map(ascii, same))} are one class: their "
                "names differ in spaces around them or in Unicode form alone."
            )
    names = sorted(spellings)
    places = np.array([names.index(name) for name in canonical], dtype=np.int64)
    return replace(listing, labels=places[listing.labels], class_names=tuple(names))
