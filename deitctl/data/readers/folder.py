"""Reader of class folders: from the folder's index where it is current, else by listing them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import FileDataset, drop_empty_classes
from deitctl.data.decode import EXTENSIONS
from deitctl.data.index import Listing, ScanState, load_or_scan
from deitctl.data.layout import is_junk
from deitctl.errors import DataError
from deitctl.events import Reporter, Task


def open_folder(root: Path, reporter: Reporter) -> FileDataset:
    """Open a folder of class folders.

    Classes are in lexicographic order, images at any depth below them.

    Raises:
        DataError: it cannot be read, or has no class folders or no images.
    """
    listing = load_or_scan(root, lambda state: {"": _scan(root, state, reporter)}, reporter)[""]
    # The root is stored once, and a moved data set keeps its index's names.
    prefix = "" if str(root) == os.curdir else os.path.join(root, "")
    dataset, empty = drop_empty_classes(
        FileDataset(listing.names.with_prefix(prefix), listing.labels, listing.class_names, prefix)
    )
    if empty:
        names = ", ".join(repr(n) for n in empty[:5]) + (", ..." if len(empty) > 5 else "")
        reporter.warn(f"{root}: {len(empty)} class folder(s) without an image, left out: {names}.")
    return dataset


def _scan(root: Path, state: ScanState, reporter: Reporter) -> Listing:
    folders = _list_class_folders(root, state)
    counts: list[int] = []

    def iterate_names(task: Task) -> Iterator[str]:
        for folder in folders:
            # A class at a time: sorting all names would need them as strings.
            images = sorted(_list_images(root, folder, state, task))
            counts.append(len(images))
            yield from images

    with reporter.task(f"scan {root.name}", None, "files") as task:
        names = StringArray.from_strings(iterate_names(task))
    if not len(names):
        raise DataError(
            f"{root} has {len(folders)} class folders and no images in them.",
            f"Images are files that end in {' '.join(sorted(EXTENSIONS))}.",
        )
    labels = np.repeat(np.arange(len(folders), dtype=np.int64), counts)
    return Listing(names, labels, tuple(folders))


def _list_class_folders(root: Path, state: ScanState) -> list[str]:
    state.add("")
    try:
        with os.scandir(root) as listing:
            entries = list(listing)
        folders = sorted(e.name for e in entries if _is_folder(e) and not is_junk(e.name))
        # A dangling link may become a class when a disk is mounted: its state is part of the index.
        for link in (e.name for e in entries if e.is_symlink() and not _is_folder(e)):
            state.add(link)
        has_images = any(
            Path(e.name).suffix.lower() in EXTENSIONS for e in entries if os.path.isfile(e.path)
        )
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error
    if not folders:
        what = "images but no class folders" if has_images else "no class folders"
        raise DataError(
            f"{root} has {what}.", "Put the images of each class into a folder with its name."
        )
    return folders


def _list_images(root: Path, folder: str, state: ScanState, task: Task) -> Iterator[str]:
    """Yield the images below a folder, relative to the root.

    Links are followed, no folder is entered twice.
    """
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
            if _is_folder(entry):
                folders.append(name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield name
            elif entry.is_symlink():  # dangling, perhaps into a disk that is mounted later
                state.add(name)
        pending += sorted(folders, reverse=True)
        task.advance(len(entries))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
