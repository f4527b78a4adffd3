"""Reading what somebody else has written: regular files alone, of a bounded size, never waiting for a writer."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_TEXT = 16 * 2**20
"""Bytes of a configuration or record; those of a model with every class of ImageNet-21k take one or two million."""


def read_regular(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    A pipe, a device, a socket or a folder is refused and not waited for; links are followed to what they mean.

    Raises:
        OSError: it is not there, no regular file, too large, or cannot be read; `strerror` says so in words.
        ValueError: a NUL in the name.
    """
    _require_regular(os.stat(path), path)  # before it is opened: opening a device may do things
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        _require_regular(status, path)  # it may have been replaced meanwhile
        if status.st_size > limit:
            raise OSError(
                errno.EFBIG, f"it has {status.st_size:,} bytes, more than {limit:,}", str(path)
            )
        return file.read(status.st_size)


def _require_regular(status: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, not a file", str(path))


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """Return a UTF-8 file; raise as `read_regular`, or `ValueError` where it is no text."""
    return read_regular(path, limit).decode("utf-8").replace("\r\n", "\n")


def read_json(path: str | Path, limit: int = MAX_TEXT) -> Any:
    """Return what a JSON file says; raise as `read_regular`, or `ValueError` where it is no JSON or nested absurdly."""
    try:
        value = json.loads(read_text(path, limit))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _deeper_than(value, 64):  # deep enough to be read, too deep to be shown or compared
        raise ValueError("it is nested too deeply")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    """Say whether lists and objects stand more than `levels` deep in each other, without recursion."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for v in layer
            if isinstance(v, dict | list)
            for inner in (v.values() if isinstance(v, dict) else v)
        ]
        if not layer:
            return False
    return True


def walk(folder: str, *, follow: bool) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield as `os.walk` does, which recurses and so ends in the depths of a hostile folder; what cannot be read is left.

    Each triple is a folder, the names of the folders in it, of which the reader may take some away, and of the rest.
    With `follow`, links to folders are entered, and whoever reads must not go in circles.
    """
    pending = [folder]
    while pending:
        current = pending.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(current) as listing:
                for entry in listing:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except (OSError, ValueError):
            continue
        yield current, folders, files
        below = [os.path.join(current, name) for name in folders]
        pending += [path for path in reversed(below) if follow or not os.path.islink(path)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
