"""Reader of class folders: from the folder's index where it is current, else by listing them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import FileDataset
from deitctl.data.file_types import describe_unread, get_extensions, may_be_image
from deitctl.data.find_layout import find_layout
from deitctl.data.index import Listing, ScanState, load_or_scan
from deitctl.data.labels import drop_empty_classes
from deitctl.data.layout import is_junk, match_split
from deitctl.data.readers.passed_over import (
    leave_out,
    merge_spellings,
    report_layout,
    report_unread,
    require_labels,
)
from deitctl.data.trees import FolderTree, begins_as_image, is_folder, name_unread_image
from deitctl.errors import DataError
from deitctl.events import Reporter, Task


def open_folders(root: Path, reporter: Reporter) -> dict[str, FileDataset]:
    """Open the parts of a data set in folders, or all of it under "".

    A line each goes to the reporter about its layout and about files that are not read.

    Raises:
        DataError: it cannot be read, has no class folders or no images, or is not clear.
    """
    tree = FolderTree(root)
    layout = find_layout(tree, str(root))
    require_labels(layout, tree, str(root))
    report_layout(str(root), layout.describe(), layout.warn(), reporter)
    listings = {
        split: leave_out(_load(root / path, reporter), layout.list_not_read(split))
        for split, path in layout.parts.items()
    }
    report_unread(str(root), [layout.loose, *(x.unread for x in listings.values())], reporter)
    parts = {split: (root / layout.parts[split], listing) for split, listing in listings.items()}
    if layout.in_classes:
        ((folder, listing),) = parts.values()
        parts = {split: (folder, part) for split, part in split_classes(listing).items()}
    return {
        split: _build_dataset(folder, listing, reporter)
        for split, (folder, listing) in parts.items()
    }


def open_folder(
    root: Path, reporter: Reporter, left_out: Collection[str] = frozenset()
) -> FileDataset:
    """Open a folder of class folders.

    Classes are in lexicographic order, images at any depth below them.

    Args:
        root: the folder.
        reporter: receives progress, and what is passed over.
        left_out: folders in it that are not read, see `Layout.list_not_read`.

    Raises:
        DataError: it cannot be read, or has no class folders or no images.
    """
    return _build_dataset(root, leave_out(_load(root, reporter), left_out), reporter)


def _load(root: Path, reporter: Reporter) -> Listing:
    return load_or_scan(root, lambda state: {"": _scan(root, state, reporter)}, reporter)[""]


def _build_dataset(root: Path, listing: Listing, reporter: Reporter) -> FileDataset:
    listing = merge_spellings(listing, str(root), reporter)
    # The root is stored once, and a moved data set keeps its index's names.
    prefix = "" if str(root) == os.curdir else os.path.join(root, "")
    dataset, empty = drop_empty_classes(
        FileDataset(listing.names.with_prefix(prefix), listing.labels, listing.class_names, prefix)
    )
    if empty:
        names = ", ".join(repr(n) for n in empty[:5]) + (", ..." if len(empty) > 5 else "")
        reporter.warn(f"{root}: {len(empty)} class folder(s) without an image, left out: {names}.")
    return dataset


def split_classes(listing: Listing) -> dict[str, Listing]:
    """Return the parts of class folders that hold `train/`, `val/` and `test/` each."""
    at: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, name in enumerate(listing.names):
        if split := match_split(name.replace(os.sep, "/").split("/", 2)[1]):
            at[split].append(index)
    return {
        split: Listing(
            listing.names.take(places),
            listing.labels[places],
            listing.class_names,
            listing.spans and listing.spans.take(np.array(places, np.int64)),
        )
        for split, places in at.items()
        if places
    }


def _scan(root: Path, state: ScanState, reporter: Reporter) -> Listing:
    unread = Counter[str]()
    folders = _list_class_folders(root, state, unread)
    counts: list[int] = []

    def iterate_names(task: Task) -> Iterator[str]:
        for folder in folders:
            # A class at a time: sorting all names would need them as strings.
            images = sorted(_list_images(root, folder, state, task, unread))
            counts.append(len(images))
            yield from images

    with reporter.task(f"scan {root.name}", None, "files") as task:
        names = StringArray.from_strings(iterate_names(task))
    if not len(names):
        words = describe_unread(unread)
        raise DataError(
            f"{root} has {len(folders)} class folders and no images in them.",
            words or f"Images are files that end in {' '.join(sorted(get_extensions()))}.",
        )
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), counts)
    return Listing(names, labels, tuple(folders), unread=dict(unread))


def _list_class_folders(root: Path, state: ScanState, unread: Counter[str]) -> list[str]:
    state.add("")
    try:
        with os.scandir(root) as listing:
            entries = [entry for entry in listing if not is_junk(entry.name)]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error
    folders = sorted(entry.name for entry in entries if is_folder(entry))
    has_images = False
    for entry in entries:
        if is_folder(entry):
            continue
        # A dangling link may become a class when a disk is mounted: its state is part of the index.
        if entry.is_symlink():
            state.add(entry.name)
        extension = os.path.splitext(entry.name)[1].lower()
        is_image = extension in get_extensions() or _begins_as_image(entry, entry.name, state)
        has_images |= is_image
        if extension or is_image:
            unread[extension] += 1
    if not folders:
        what = "images but no class folders" if has_images else "no class folders"
        raise DataError(
            f"{root} has {what}.", "Put the images of each class into a folder with its name."
        )
    return folders


def _list_images(
    root: Path, folder: str, state: ScanState, task: Task, unread: Counter[str]
) -> Iterator[str]:
    """Yield the images below a folder, relative to the root; count the other files in `unread`.

    Links are followed, no folder is entered twice.
    """
    extensions = get_extensions()
    above = os.stat(root)
    # The root counts as visited: a link up to it would put all other classes' images into this
    # class.
    visited = {(above.st_dev, above.st_ino)}
    # A stack, not recursion: folders may be deeper than Python's limit.
    pending = [folder]
    while pending:
        current = pending.pop()
        # Before it is listed: a file that is added in between makes the index stale.
        state.add(current)
        try:
            status = os.stat(os.path.join(root, current))
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, current)) as listing:
                entries = [entry for entry in listing if not is_junk(entry.name)]
        except OSError:  # no permission to enter: no images, and no index of an incomplete scan
            state.complete = False
            continue
        folders = []
        for entry in entries:
            name = os.path.join(current, entry.name)
            extension = os.path.splitext(entry.name)[1].lower()
            if is_folder(entry):
                folders.append(name)
            elif extension in extensions or _begins_as_image(entry, name, state):
                yield name
            else:
                if kind := extension or name_unread_image(entry.path):
                    unread[kind] += 1
                if entry.is_symlink():  # dangling, perhaps into a disk that is mounted later
                    state.add(name)
        pending += sorted(folders, reverse=True)
        task.advance(len(entries))


def _begins_as_image(entry: os.DirEntry[str], name: str, state: ScanState) -> bool:
    """Whether a file of no known type is an image; the index goes stale if one becomes an image."""
    if not may_be_image(entry.name):
        return False
    is_image = begins_as_image(entry.path)
    if not is_image:
        state.add(name)
    return is_image
