"""The images below a folder, and what is passed over there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from deitctl.data.file_types import (
    DEAD_LINK,
    HEIC_EXTENSIONS,
    START_BYTES,
    describe_unread,
    get_extensions,
    identify,
    is_image_start,
    may_be_image,
    reading_arrays,
)
from deitctl.data.layout import is_junk
from deitctl.paths import walk

SIDE_NAMES = frozenset(
    ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "makefile")
)
"""Files without an extension that are no images, in lower case."""
MAX_KINDS = 5
"""Extensions that are named of a folder without images."""


class FolderScan:
    """Finds images below folders as training does: links are followed, no folder is entered twice."""

    def __init__(self, *, reads_arrays: bool = False) -> None:
        """Begin.

        Args:
            reads_arrays: whether NumPy arrays are images, as they are for models of bands.
        """
        with reading_arrays(reads_arrays):
            self._extensions = get_extensions() | HEIC_EXTENSIONS
        self.unread: Counter[str] = Counter()
        """Files passed over, by extension; those without one by what they are."""
        self.closed: list[str] = []
        """Folders that cannot be listed."""

    def list_images(self, folder: str) -> Iterator[str]:
        """Yield the images below a folder in the order of their names, and count the other files.

        An image is what has an image's extension, HEIC included, or no known one and an image's first
        bytes. The files of systems and tools are neither.
        """
        visited = {_identify_folder(folder)}
        for current, folders, files in walk(folder, follow=True, on_error=self.closed.append):
            folders[:] = sorted(name for name in folders if not is_junk(name))
            folders[:] = [name for name in folders if _enter(os.path.join(current, name), visited)]
            files.sort()  # in place: a folder may have a million
            for name in files:
                path = os.path.join(current, name)
                if not is_junk(name) and self._is_image(name, path):
                    yield path

    def _is_image(self, name: str, path: str) -> bool:
        extension = os.path.splitext(name)[1].lower()
        if extension in self._extensions:
            return True
        if name.lower() in SIDE_NAMES:
            return False
        if not may_be_image(name):
            self.unread[extension] += 1
            return False
        start = _read_start(path)
        if start is not None and is_image_start(start):
            return True
        self.unread[extension or _name_kind(path, start)] += 1
        return False

    def describe(self) -> str:
        """Return sentences about what was passed over, empty where nothing was that may be an image."""
        sentences = [describe_unread(self.unread)]
        if self.closed:
            folders = "folder" if len(self.closed) == 1 else "folders"
            sentences.append(f"{len(self.closed):,} {folders} cannot be listed: {self.closed[0]}.")
        return " ".join(filter(None, sentences))

    def describe_all(self) -> str:
        """Return what a folder without images has instead."""
        if sentences := self.describe():
            return sentences
        kinds = [f"{count:,} {kind}" for kind, count in self.unread.most_common(MAX_KINDS)]
        return f"It has {', '.join(kinds)}." if kinds else ""


def _enter(folder: str, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder was not visited yet; it is from now on."""
    identity = _identify_folder(folder)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def _identify_folder(folder: str) -> tuple[int, int]:
    """Return what is the same for a folder by all its names, so that a link to a parent has an end."""
    try:
        status = os.stat(folder)
    except OSError:  # gone in between: listing it will say so
        return (0, 0)
    return status.st_dev, status.st_ino


def _name_kind(path: str, start: bytes | None) -> str:
    """Return what a file without an extension is, as `describe_unread` counts it."""
    if start is not None:
        return identify(start)
    return DEAD_LINK if os.path.islink(path) and not os.path.exists(path) else ""


def _read_start(path: str) -> bytes | None:
    """Return the first bytes of a regular file, None of what cannot be read: a pipe would be waited for."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return None
