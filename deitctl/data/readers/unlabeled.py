"""Reader of images without labels: a folder of any depth, a tar, a list of paths, or data whose labels are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.file_types import describe_unread
from deitctl.data.layout import is_junk
from deitctl.data.readers.image_places import find_images
from deitctl.data.readers.packed_shards import is_packed
from deitctl.data.readers.shard_names import find_shards
from deitctl.data.readers.tar import open_unlabeled_tars
from deitctl.data.readers.text import open_text
from deitctl.data.sources import is_image_folder
from deitctl.data.trees import is_image_file
from deitctl.errors import DataError
from deitctl.events import Reporter, Task
from deitctl.home import expand_home
from deitctl.paths import suggest_path

LISTS = (".txt", ".csv", ".tsv", ".tab")
"""Of files that may list one path a line."""
KINDS = "--unlabelled takes a folder of images at any depth, a .tar, shards, a list of paths, or a table."


def open_unlabeled(
    ref: str, open_labeled: Callable[[str], ImageDataset], reporter: Reporter
) -> ImageDataset:
    """Open images whose labels are not known, or are left out.

    Args:
        ref: the user's name of them.
        open_labeled: opens data of another kind, with its labels and of all its parts.
        reporter: receives progress, and what is passed over.

    Raises:
        DataError: nothing is there, or no image.
    """
    path = expand_home(ref)
    shards = None if is_packed(path) else find_shards(ref)
    if shards is None and not path.exists():
        raise DataError(f"There is no --unlabelled {ref}.", suggest_path(ref) or KINDS)
    images: ImageDataset
    if shards is not None:
        images = open_unlabeled_tars(shards, reporter)
    elif is_image_folder(path):
        images = _open_folder(path, reporter)
    else:
        images = _open_list(path, reporter) or open_labeled(str(path))
    if not len(images.labels):
        raise DataError(f"--unlabelled {ref} has no images.", KINDS)
    return images


def _open_folder(root: Path, reporter: Reporter) -> FileDataset:
    unread = Counter[str]()
    with reporter.task(f"scan {root.name}", None, "files") as task:
        names = sorted(_iterate_images(root, unread, task))
    if words := describe_unread(unread):
        reporter.warn(f"{root}: {words}")
    prefix = os.path.join(root, "")
    paths = StringArray.from_strings(names).with_prefix(prefix)
    return FileDataset(paths, _make_labels(len(names)), (), prefix)


def _iterate_images(root: Path, unread: Counter[str], task: Task) -> Iterator[str]:
    """Yield the images below a folder by their paths below it; links are followed, none twice."""
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(root / folder)
            if (place := (status.st_dev, status.st_ino)) in visited:
                continue
            visited.add(place)
            with os.scandir(root / folder) as entries:
                listed = [entry for entry in entries if not is_junk(entry.name)]
        except OSError as error:
            raise DataError(f"{root / folder} cannot be read: {error.strerror}.") from error
        for entry in listed:
            name = os.path.join(folder, entry.name)
            if entry.is_dir():
                pending.append(name)
            elif is_image_file(entry.path):
                yield name
            else:
                unread[os.path.splitext(entry.name)[1].lower()] += 1
            task.advance()


def _open_list(path: Path, reporter: Reporter) -> FileDataset | None:
    """Open a file of one path a line; None for anything else."""
    if path.suffix.lower() not in LISTS:
        return None
    text = open_text(path, lambda fields: 0)
    if len(text.header) != 1:
        return None
    # The first line may be a header, `path`, which is no image.
    values = [row[0].strip() for row in text.read_rows(skip_header=False)]
    if values and not (path.parent / values[0]).is_file():
        values = values[1:]
    if not values:
        return None
    places = find_images(path, StringArray.from_strings(values), "")
    at = np.flatnonzero(~places.is_missing).tolist()
    if len(at) < len(values):
        first = values[int(np.argmax(places.is_missing))]
        reporter.warn(
            f"{len(values) - len(at):,} of the {len(values):,} images of {path} are missing, the first is "
            f"{first!r:.200}: they are left out."
        )
    return FileDataset(places.names.take(at), _make_labels(len(at)), (), places.root)


def _make_labels(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.full(count, -1, np.int64)
