"""The on-disk cache of teacher targets: fixed-size records by view and image, in one file a view.

A cache is a folder with `cache.json`, the stamp of everything that the targets depend on, and one
file per view. A record of zeros is missing, and every other one carries a checksum. Records validate
themselves, so there is no lock, no journal and no index: several processes write together, a kill
loses at most the record being written, and a file that was truncated or deleted is filled again,
also while it is in use.

Letters: B images, N images of the data set, W 16-bit numbers per record.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deitctl.data.open_file import read_at, write_at
from deitctl.data.reading import OUTAGES, read_patiently
from deitctl.distillation.targets import Records
from deitctl.errors import TeacherError
from deitctl.paths import open_no_follow, read_json, require_creatable, write_json
from deitctl.records import to_json, to_object

T = TypeVar("T")
STAMP = "cache.json"
TARGETS_VERSIONS = {"hard": 2, "soft": 1, "logits": 1}
"""By mode of `TargetCodec`; goes up when records mean something else. Hard ones of version 1 had no checksum."""
DAMAGED = 65534
"""First number of the record of an image that was read and cannot be decoded. 65535 marked those that
could not be read as well, and counts as missing."""
MAX_OPEN_VIEWS = 64  # each holds a file descriptor, of which a process has some thousand
BLOCK = 2**18
"""Bytes of a view that are read at a time."""


class RecordCodec(Protocol):
    """The form of records, [B,W]."""

    @property
    def width(self) -> int:
        """Numbers of a record, W."""

    def is_valid(self, records: Records) -> NDArray[np.bool_]:
        """Return for each record [B,W] whether it holds a target."""


class ViewFile:
    """The open file of a view."""

    def __init__(self, path: Path, flags: int) -> None:
        """Open it; raise as `open_no_follow`, because a link could lead to a file of the user's."""
        self.handle = open_no_follow(path, flags)
        self.is_writable = bool(flags & os.O_RDWR)
        self._close = weakref.finalize(self, os.close, self.handle)


class TargetCache:
    """The teacher targets of a data set, by view and image."""

    def __init__(self, root: Path, codec: RecordCodec, num_images: int) -> None:
        """Use the folder `root`, which `open_cache` has created or verified."""
        self.root, self.codec, self.num_images = root, codec, num_images
        self.record_bytes = 2 * codec.width
        self._views: dict[int, ViewFile] = {}
        self._lock = threading.Lock()  # a stream may read what is missing in its thread

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the files, which a loader process opens for itself."""
        return {name: x for name, x in self.__dict__.items() if name not in ("_views", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin without open files."""
        self.__dict__.update(state)
        self._views, self._lock = {}, threading.Lock()

    def has_target(self, view: int, index: int) -> bool:
        """Return whether the target of a view of an image is cached."""
        return bool(self.codec.is_valid(self._read_records(view, index, index + 1))[0])

    def read(self, keys: Sequence[tuple[int, int]]) -> tuple[Records, NDArray[np.bool_]]:
        """Return the records [B,W] of (view, image) pairs, and which of them are valid, [B]."""
        records = [self._read_records(view, index, index + 1) for view, index in keys]
        joined = np.concatenate(records)
        return joined, self.codec.is_valid(joined)

    def write(self, keys: Sequence[tuple[int, int]], records: Records) -> None:
        """Store records [B,W] of (view, image) pairs."""
        for (view, index), record in zip(keys, records, strict=True):
            self._write(view, index, record)

    def mark_damaged(self, keys: Sequence[tuple[int, int]]) -> None:
        """Mark images that cannot be decoded, so that they do not count as missing.

        A target that another program could compute meanwhile stays.
        """
        for view, index in keys:
            if not self.has_target(view, index):
                self._write(view, index, np.array([DAMAGED], np.uint16))

    def missing_indices(
        self, view: int, start: int = 0, stop: int | None = None
    ) -> NDArray[np.int64]:
        """Return the readable images in start..stop of a view that have no target."""
        blocks = self._iter_blocks(view, start, stop)
        parts = [
            first + np.flatnonzero(~self.codec.is_valid(records) & (records[:, 0] != DAMAGED))
            for first, records in blocks
        ]
        return np.concatenate([np.arange(0), *parts])

    def cached_indices(self, view: int) -> NDArray[np.int64]:
        """Return the images of a view that have a target."""
        parts = [
            first + np.flatnonzero(self.codec.is_valid(records))
            for first, records in self._iter_blocks(view)
        ]
        return np.concatenate([np.arange(0), *parts])

    def damaged_indices(self, views: int) -> set[int]:
        """Return the images that could not be decoded in one of the first `views` views."""
        return {
            int(index)
            for view in range(views)
            for first, records in self._iter_blocks(view)
            for index in first + np.flatnonzero(records[:, 0] == DAMAGED)
        }

    def count_missing(self, views: int) -> int:
        """Return how many targets the first `views` views lack."""
        return sum(len(self.missing_indices(view)) for view in range(views))

    def _path(self, view: int) -> Path:
        return self.root / f"view-{view:05d}.bin"

    def _iter_blocks(
        self, view: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Records]]:
        """Yield the number of the first image and the records of one block after the other."""
        size = max(1, BLOCK // self.record_bytes)
        stop = self.num_images if stop is None else min(stop, self.num_images)
        for first in range(start, stop, size):
            yield first, self._read_records(view, first, min(first + size, stop))

    def _read_records(self, view: int, start: int, stop: int) -> Records:
        """Return the records start..stop of a view; zeros where its file has none or is not there."""
        size = (stop - start) * self.record_bytes

        def read(file: ViewFile | None) -> bytes:
            return b"" if file is None else read_at(file.handle, start * self.record_bytes, size)

        data = self._use("read", view, os.O_RDONLY, read)
        if len(data) < size:
            data = data.ljust(size, b"\0")
        return np.frombuffer(data, dtype=np.uint16).reshape(stop - start, self.codec.width)

    def _write(self, view: int, index: int, numbers: NDArray[np.uint16]) -> None:
        """Write the first numbers of a record, or all, creating the view's file if there is none."""

        def write(file: ViewFile | None) -> None:
            assert file is not None
            write_at(file.handle, index * self.record_bytes, numbers.tobytes())

        self._use("write", view, os.O_RDWR | os.O_CREAT, write)

    def _use(self, verb: str, view: int, flags: int, act: Callable[[ViewFile | None], T]) -> T:
        """Return what `act` returns for a view's file; where its disk or mount is away, wait for it."""

        def act_once() -> T:
            try:
                return act(self._open(view, flags))
            except OSError:
                self._views.pop(view, None)  # a stale handle stays stale
                raise

        try:
            return read_patiently(act_once, str(self._path(view)))
        except OSError as error:
            raise self._explain(verb, view, error) from error

    def _open(self, view: int, flags: int) -> ViewFile | None:
        """Return the open file of a view, None if there is none; a new one gets its full size."""
        with self._lock:
            return self._open_locked(view, flags)

    def _open_locked(self, view: int, flags: int) -> ViewFile | None:
        file = self._views.get(view)
        if file is not None and (file.is_writable or not flags & os.O_RDWR):
            return file
        while len(self._views) >= MAX_OPEN_VIEWS:
            self._views.pop(next(iter(self._views), 0), None)  # the oldest
        try:
            file = self._try_to_open(view, flags)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._views:
                raise
            self._views.clear()
            file = self._try_to_open(view, flags)
        if file is None:
            return None
        if file.is_writable:
            _reserve(file.handle, self.num_images * self.record_bytes)
        self._views[view] = file
        return file

    def _try_to_open(self, view: int, flags: int) -> ViewFile | None:
        try:
            return ViewFile(self._path(view), flags)
        except FileNotFoundError:
            if flags & os.O_CREAT:  # the folder is gone
                raise
            return None

    def _explain(self, verb: str, view: int, error: OSError) -> TeacherError:
        hint = "Name another --teacher-cache."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "Free some space, or name another --teacher-cache."
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "Allow more open files: ulimit -n 4096"
        if error.errno in OUTAGES:
            hint = "See whether its disk or mount is in order, then run it again."
        return TeacherError(f"Cannot {verb} {self._path(view)}: {error.strerror}.", hint)


def _reserve(file: int, size: int) -> None:
    """Extend a file to `size` bytes with zeros; several processes may do it at once."""
    if os.fstat(file).st_size < size:
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error now, instead of after hours.
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)


def open_cache(
    root: Path, stamp: Mapping[str, Any], codec: RecordCodec, num_images: int
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
    if not os.path.lexists(root / STAMP):
        require_cache_folder(root)
        write_json(root / STAMP, to_object(stamp))
    if differences := _describe_differences(read_stamp(root), to_json(stamp)):
        raise TeacherError(
            f"The teacher targets in {root} are stale: {differences}.",
            "Name another --teacher-cache, or leave it out, or delete that folder.",
        )
    return TargetCache(root, codec, num_images)


def require_cache_folder(root: Path) -> None:
    """Raise unless a cache can be created in a folder, which need not exist; nothing is written.

    Raises:
        TeacherError: it holds other files, or cannot be read.
        DiskError: it cannot be written.
    """
    try:
        names = os.listdir(root) if root.is_dir() else []
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{root} cannot be read: {error}.", "Name another --teacher-cache."
        ) from error
    # STAMP itself: another process may have created it meanwhile
    if any(not name.startswith(".") and name not in (STAMP, "features") for name in names):
        raise TeacherError(
            f"{root} holds other files and no teacher targets.", "Name another --teacher-cache."
        )
    require_creatable(root / STAMP, within=root, option="--teacher-cache (or $DEITCTL_CACHE)")


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
