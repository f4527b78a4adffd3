"""A folder of class folders becomes a source: from its index where that is good, else by listing it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deitctl.data import index
from deitctl.data.dataset import FileSource, Source, drop_empty_classes, is_hidden
from deitctl.data.decode import EXTENSIONS
from deitctl.data.index import Listing, Watched
from deitctl.data.string_array import StringArray
from deitctl.errors import DataError
from deitctl.events import Reporter, Task


def scan_classes(root: Path, reporter: Reporter) -> Source:
    """Take a folder of class folders, classes in lexicographic order, images at any depth below them.

    Raises:
        DataError: it cannot be read, or holds no class folders or no images.
    """
    parts = index.find(root)
    if parts is None or "" not in parts:
        watched = Watched(root)
        parts = {"": _list(root, watched, reporter)}
        index.keep(parts, watched, reporter)
        parts = index.find(root) or parts  # in the file, where other processes have it too
    found = parts[""]
    prefix = "" if str(root) == os.curdir else os.path.join(root, "")
    source, empty = drop_empty_classes(
        FileSource(found.names.below(prefix), found.labels, found.class_names)
    )
    if empty:
        names = ", ".join(repr(n) for n in empty[:5]) + (", ..." if len(empty) > 5 else "")
        reporter.warn(
            f"{root}: {len(empty)} class folder(s) without an image are left out: {names}."
        )
    return source


def _list(root: Path, watched: Watched, reporter: Reporter) -> Listing:
    folders = _class_folders(root, watched)
    counts: list[int] = []

    def names(task: Task) -> Iterator[str]:
        for folder in folders:
            found = sorted(_images(root, folder, watched, task))
            counts.append(len(found))
            yield from found

    with reporter.task(f"scan {root.name}", None, "files") as task:
        listed = StringArray.of(names(task))
    if not len(listed):
        known = " ".join(sorted(EXTENSIONS))
        raise DataError(
            f"{root} has {len(folders)} class folders and no images in them.",
            f"Looked for {known}.",
        )
    return Listing(
        listed, np.repeat(np.arange(len(folders), dtype=np.int64), counts), tuple(folders)
    )


def _class_folders(root: Path, watched: Watched) -> list[str]:
    watched.add("")
    try:
        with os.scandir(root) as listing:
            entries = list(listing)
        folders = sorted(e.name for e in entries if _is_folder(e) and not is_hidden(e.name))
        for link in (e.name for e in entries if e.is_symlink() and not _is_folder(e)):
            watched.add(link)
        loose = any(
            Path(e.name).suffix.lower() in EXTENSIONS for e in entries if os.path.isfile(e.path)
        )
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error
    if not folders:
        what = "images but no class folders" if loose else "no class folders"
        raise DataError(f"{root} has {what}.", "Put each class's images into a folder of its name.")
    return folders


def _images(root: Path, folder: str, watched: Watched, task: Task) -> Iterator[str]:
    """Yield the images below a folder, relative to the root; links are followed, but no folder is entered twice."""
    above = os.stat(root)
    seen = {
        (above.st_dev, above.st_ino)
    }  # a link up would give this class the images of all others
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        watched.add(current)
        try:
            status = os.stat(os.path.join(root, current))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, current)) as listing:
                entries = [entry for entry in listing if not is_hidden(entry.name)]
        except OSError:  # a folder that may not be entered gives nothing
            watched.complete = False
            continue
        folders = []
        for entry in entries:
            name = os.path.join(current, entry.name)
            if _is_folder(entry):
                folders.append(name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield name
            elif (
                entry.is_symlink()
            ):  # a link to nowhere, perhaps to a folder that is mounted tomorrow
                watched.add(name)
        waiting += sorted(folders, reverse=True)
        task.advance(len(entries))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
