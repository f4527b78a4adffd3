"""Trees of folders, of a file system or of the names in a tar, listed as a layout is searched."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from deitctl.data.file_types import (
    START_BYTES,
    get_extensions,
    identify,
    is_image_kind,
    is_image_start,
    may_be_image,
)
from deitctl.data.layout import is_junk
from deitctl.errors import DataError

MAX_SNIFFED = 20
"""Files of no known type that are looked into for whether a folder has an image."""
NUM_PROBED = 8
"""Class folders that are listed before the layout is known."""
NUM_LOOKED_INTO = 200
"""Folders below another in which an image is looked for."""


class Entries(NamedTuple):
    """What a folder holds, junk left out."""

    folders: tuple[str, ...]
    """Names in lexicographic order."""
    images: Mapping[str, int]
    """Number of images directly in it by lower-case extension."""


class Tree(Protocol):
    """Folders that can be listed, by their path below the data with `/`; empty: the data."""

    def list(self, path: str) -> Entries:
        """List a folder; one that cannot be listed is empty."""

    def has_image(self, path: str) -> bool:
        """Whether an image is directly in a folder, without listing all of it."""

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there, without listing the one that it is in."""


def join_path(folder: str, name: str) -> str:
    """Return the path of a folder in another of a tree."""
    return f"{folder}/{name}" if folder else name


def find_only(tree: Tree, path: str) -> str:
    """Return the one folder that a folder holds if it holds no image beside it, else ""."""
    folders, images = tree.list(path)
    return join_path(path, folders[0]) if len(folders) == 1 and not images else ""


def find_innermost(tree: Tree, path: str) -> str:
    """Return the folder below one that holds more than another folder, or an image."""
    while not tree.has_image(path) and (inner := find_only(tree, path)):
        path = inner
    return path


def has_images(tree: Tree, path: str) -> bool:
    """Whether images lie in a folder, or in the first few folders below it."""
    pending, num_left = [path], NUM_LOOKED_INTO
    while pending and num_left:
        current, num_left = pending.pop(), num_left - 1
        if tree.has_image(current):
            return True
        folders = tree.list(current).folders[:NUM_PROBED]
        pending += [join_path(current, name) for name in folders][::-1]
    return False


class FolderTree:
    """The folders of a file system below one; each is listed once at most."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries: dict[str, Entries] = {}
        self._holding: dict[str, bool] = {}
        self._has_image: dict[str, bool] = {}

    def list(self, path: str) -> Entries:
        """List a folder; raise `DataError` if it is the root and cannot be."""
        if path not in self._entries:
            try:
                self._entries[path] = self._scan(path)
            except OSError as error:
                if not path:
                    raise DataError(f"{self.root} cannot be read: {error.strerror}.") from error
                self._entries[path] = Entries((), {})
        return self._entries[path]

    def has_image(self, path: str) -> bool:
        """Whether an image is directly in a folder: listed until the first one."""
        if path in self._entries:
            return bool(self._entries[path].images)
        if path not in self._has_image:
            try:
                has_image = any(not folder for folder, _ in self._iterate(path, MAX_SNIFFED))
            except OSError:
                has_image = False
            self._has_image[path] = has_image
        return self._has_image[path]

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there."""
        return os.path.isdir(os.path.join(self.root, path))

    def _scan(self, path: str) -> Entries:
        folders, images = [], Counter[str]()
        for folder, extension in self._iterate(path):
            if folder:
                folders.append(folder)
            else:
                images[extension] += 1
        return Entries(tuple(sorted(folders)), images)

    def _iterate(self, path: str, max_sniffed: float = math.inf) -> Iterator[tuple[str, str]]:
        """Yield the name of each folder, and the extension of each image.

        Of files whose name does not say what they are, no more than `max_sniffed` are looked into.
        """
        extensions = get_extensions()
        with os.scandir(os.path.join(self.root, path)) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                extension = os.path.splitext(entry.name)[1].lower()
                if is_folder(entry):
                    yield entry.name, ""
                elif extension in extensions:
                    yield "", extension
                elif max_sniffed and may_be_image(entry.name):
                    max_sniffed -= 1
                    if begins_as_image(entry.path):
                        yield "", extension


class NameTree:
    """The folders of some images' names, as those in a tar."""

    def __init__(self, names: Iterable[str]) -> None:
        images: dict[str, Counter[str]] = defaultdict(Counter)
        for name in names:
            folder, _, file = name.rpartition("/")
            images[folder][os.path.splitext(file)[1].lower()] += 1
        folders: dict[str, set[str]] = defaultdict(set)
        for path in images:
            while path:
                above, _, name = path.rpartition("/")
                folders[above].add(name)
                path = above
        self._images, self._folders = dict(images), dict(folders)

    def list(self, path: str) -> Entries:
        """List a folder."""
        return Entries(tuple(sorted(self._folders.get(path, ()))), self._images.get(path, {}))

    def has_image(self, path: str) -> bool:
        """Whether an image is directly in a folder."""
        return path in self._images

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there."""
        return path in self._images or path in self._folders


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_image_file(path: str) -> bool:
    """Whether a file is an image that is read: by its extension, else by its first bytes."""
    name = os.path.basename(path)
    extension = os.path.splitext(name)[1].lower()
    return extension in get_extensions() or (may_be_image(name) and begins_as_image(path))


def begins_as_image(path: str) -> bool:
    """Whether a file, whose name does not say it, begins as an image that is read."""
    return is_image_start(_read_start(path))


def name_unread_image(path: str) -> str:
    """Return what a file is that shows something and is not read, by its first bytes; empty for others."""
    kind = identify(_read_start(path))
    return kind if is_image_kind(kind) else ""


def _read_start(path: str) -> bytes:
    """Return the first bytes of a file, none if it cannot be read."""
    try:
        if not os.path.isfile(path):  # opening a pipe would block
            return b""
        with open(path, "rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return b""
