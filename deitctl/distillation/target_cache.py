"""The on-disk cache of teacher targets: fixed-size records by view and image, in memory maps.

A cache is a folder with `cache.json`, the stamp of everything that the targets depend on, and one
file per view. A record of zeros is missing. A hard record is two bytes, written at once or not at
all; a soft one carries a checksum. Records validate themselves, so there is no lock, no journal and
no index: several processes write together, a kill loses at most the record being written, and a
file that was truncated or deleted is filled again.

Letters: B images, N images of the data set, W 16-bit numbers per record.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import reprlib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.distillation.targets import Records, TargetCodec
from deitctl.errors import TeacherError
from deitctl.paths import read_json, write_json
from deitctl.records import to_json, to_object

STAMP = "cache.json"
TARGETS_VERSION = 1
"""Goes up when records mean something else."""
UNREADABLE = 65535  # first number of the record of an image that could not be read
MAX_OPEN_VIEWS = 64  # a mapped file holds a file descriptor, of which a process has some thousand


class TargetCache:
    """The teacher targets of a data set, by view and image."""

    def __init__(self, root: Path, codec: TargetCodec, num_images: int) -> None:
        """Use the folder `root`, which `open_cache` has created or verified."""
        self.root, self.codec, self.num_images = root, codec, num_images
        self._views: dict[int, Records] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the maps, which a loader process opens for itself."""
        return {**self.__dict__, "_views": {}}

    def has_target(self, view: int, index: int) -> bool:
        """Return whether the target of a view of an image is cached."""
        if not self._exists(view):
            return False
        return bool(self.codec.is_valid(self._map_view(view)[index : index + 1])[0])

    def read(self, keys: Sequence[tuple[int, int]]) -> tuple[Records, NDArray[np.bool_]]:
        """Return the records [B,W] of (view, image) pairs, and which of them are valid, [B]."""
        records = np.stack([self._map_view(view)[index] for view, index in keys])
        return records, self.codec.is_valid(records)

    def write(self, keys: Sequence[tuple[int, int]], records: Records) -> None:
        """Store records [B,W] of (view, image) pairs."""
        for (view, index), record in zip(keys, records, strict=True):
            self._map_writable(view)[index] = record

    def mark_unreadable(self, keys: Sequence[tuple[int, int]]) -> None:
        """Mark images that could not be read, so that they do not count as missing."""
        for view, index in keys:
            self._map_writable(view)[index, 0] = UNREADABLE

    def missing_indices(
        self, view: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.int64]:
        """Return the readable images in start..stop of a view that have no target."""
        if not self._exists(view):
            return np.arange(self.num_images)[start:stop]
        records = self._map_view(view)[start:stop]
        missing = ~self.codec.is_valid(records) & (records[:, 0] != UNREADABLE)
        return start + np.flatnonzero(missing)

    def cached_indices(self, view: int) -> NDArray[np.int64]:
        """Return the images of a view that have a target."""
        if not self._exists(view):
            return np.arange(0)
        return np.flatnonzero(self.codec.is_valid(self._map_view(view)))

    def unreadable_indices(self, views: int) -> set[int]:
        """Return the images that could not be read in one of the first `views` views."""
        marked = (
            np.flatnonzero(self._map_view(v)[:, 0] == UNREADABLE)
            for v in range(views)
            if self._exists(v)
        )
        return {int(index) for indices in marked for index in indices}

    def count_missing(self, views: int) -> int:
        """Return how many targets the first `views` views lack."""
        return sum(len(self.missing_indices(view)) for view in range(views))

    def _path(self, view: int) -> Path:
        return self.root / f"view-{view:05d}.bin"

    def _exists(self, view: int) -> bool:
        return view in self._views or self._path(view).exists()

    def _map_view(self, view: int) -> Records:
        """Return the records of a view, [N,W], creating its file if there is none."""
        if view not in self._views:
            path, record_bytes = self._path(view), self.codec.width * 2
            try:
                mapped = _map_file(path, self.num_images * record_bytes, record_bytes)
            except OSError as error:
                raise TeacherError(
                    f"Cannot write {path}: {error.strerror}.",
                    "Free some space, or name another --teacher-cache.",
                ) from error
            if len(self._views) >= MAX_OPEN_VIEWS:
                # The oldest; the map is closed when its last array is released.
                del self._views[next(iter(self._views))]
            records = np.frombuffer(mapped, dtype=np.uint16)
            self._views[view] = records.reshape(self.num_images, self.codec.width)
        return self._views[view]

    def _map_writable(self, view: int) -> Records:
        records = self._map_view(view)
        if not records.flags.writeable:
            raise TeacherError(
                f"{self.root} is incomplete and read-only.", "Name another --teacher-cache."
            )
        return records


def _map_file(path: Path, size: int, record_bytes: int) -> mmap.mmap:
    """Map a view's file, creating it if need be; a complete read-only file for reading."""
    # O_NOFOLLOW: a link could lead out of the cache, to a file that would be overwritten.
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file, access = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666), mmap.ACCESS_WRITE
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM) or not path.exists():
            raise
        file, access = os.open(path, os.O_RDONLY | flags), mmap.ACCESS_READ
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if access == mmap.ACCESS_WRITE:
            _reserve(file, size, record_bytes)
        elif os.fstat(file).st_size < size:
            raise PermissionError(errno.EACCES, "it is incomplete and read-only")
        return mmap.mmap(file, size, access=access)
    finally:
        os.close(file)


def _reserve(file: int, size: int, record_bytes: int) -> None:
    """Extend a file to `size` bytes with zeros; several processes may do it at once."""
    present = os.fstat(file).st_size
    if present < size:
        # truncated within a record: half a hard label would be another label
        if present % record_bytes:
            os.lseek(file, present - 1, os.SEEK_SET)
            os.write(file, b"\0")
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error now, instead of a SIGBUS at a write to the map.
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)


def open_cache(
    root: Path, stamp: Mapping[str, Any], codec: TargetCodec, num_images: int
) -> TargetCache:
    """Open the cache in a folder, or create one.

    Args:
        root: the folder.
        stamp: everything that the targets depend on, by snake_case names.
        codec: the form of the records.
        num_images: images of the data set, N.

    Raises:
        TeacherError: the folder holds a cache with another stamp (the message names the differences) or other
            files, or cannot be read.
    """
    path = root / STAMP
    if not os.path.lexists(path):
        try:
            names = os.listdir(root) if root.is_dir() else []
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"{root} cannot be read: {error}.", "Name another --teacher-cache."
            ) from error
        # STAMP itself: another process may have created it meanwhile
        if any(not name.startswith(".") and name != STAMP for name in names):
            raise TeacherError(
                f"{root} holds other files and no teacher targets.", "Name another --teacher-cache."
            )
        write_json(path, to_object(stamp))
    if differences := _describe_differences(read_stamp(root), to_json(stamp)):
        raise TeacherError(
            f"The teacher targets in {root} are stale: {differences}.",
            "Name another --teacher-cache, or leave it out, or delete that folder.",
        )
    return TargetCache(root, codec, num_images)


def read_stamp(root: Path) -> dict[str, Any]:
    """Return the stamp of a cache; raise `TeacherError` if it cannot be read."""
    try:
        stamp = read_json(root / STAMP)
        if not isinstance(stamp, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{root / STAMP} cannot be read: {error}.", "Delete that folder."
        ) from error
    return {name: value for name, value in stamp.items() if name != "schema_version"}


def _describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the settings that differ, nested ones by their own names; empty if none does."""
    parts = []
    for name in [*new, *(k for k in old if k not in new)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict) and before != after:
            parts.append(f"{name}: {_describe_differences(before, after)}")
        elif before != after:
            parts.append(f"{name} was {_shorten(before)}, is {_shorten(after)}")
    return "; ".join(parts)


def _shorten(value: Any) -> str:
    if value is None:
        return "not set"
    return reprlib.repr(value) if len(str(value)) > 200 else json.dumps(value)
