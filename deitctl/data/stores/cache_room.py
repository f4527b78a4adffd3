"""How many bytes a cache has: each writer takes room before it writes, and old blocks make it."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART = ".part"
"""Suffix of a block that is being written."""
PREFIX = "deitctl-"
"""Of such a block."""
BLOCK_NAME = re.compile(r"[0-9a-f]{40}|" + PREFIX + r"\w+" + re.escape(PART))
"""Names of what may be deleted: nobody else's file has one."""
STEP = 2**22
"""Bytes that the writer of a large block takes at a time."""
FREED = 0.1
"""Share of the cache that is freed when it is full, so that its files are listed seldom."""
STALE_S = 3600.0
"""Without a write, after which a block that is being written counts as left by a killed process."""
TOTAL = "total"
_being_written: set[str] = set()
"""Paths of the blocks that this process is writing."""


class CacheFailed(OSError):
    """The cache cannot hold a block: no room, a full disk, or a folder that cannot be written."""


@dataclass(frozen=True)
class CacheRoom:
    """A folder of files and the bytes that they may have together."""

    folder: Path
    max_bytes: int

    @classmethod
    def by_free_space(cls, folder: Path, max_bytes: int) -> CacheRoom:
        """Return the room of a folder, bounded by half of what is free or the cache's already."""
        existing = folder
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        try:
            free = shutil.disk_usage(existing).free + (cls(folder, 0)._read_total() or 0)
        except OSError:
            return cls(folder, max_bytes)
        return cls(folder, min(max_bytes, free // 2))

    def take(self, num_bytes: int, grow: Callable[[], object]) -> None:
        """Take room for so many bytes, which old blocks make.

        Args:
            num_bytes: that a file gets more.
            grow: gives it that size, before others count.

        Raises:
            CacheFailed: there is less, even without any block.
        """
        with self._locked():
            total = self._read_total()
            if total is None or total + num_bytes > self.max_bytes:
                total = self._make_room(num_bytes)
            if total + num_bytes > self.max_bytes:
                self._write_total(total)
                raise CacheFailed(errno.ENOSPC, f"the cache has {self.max_bytes:,} bytes at most")
            self._write_total(total + num_bytes)
            grow()

    def give_back(self, num_bytes: int, shrink: Callable[[], object]) -> None:
        """Give back room that was taken and is not used; `shrink` takes it from the file."""
        with self._locked():
            shrink()
            total = self._read_total()
            if total is not None:
                self._write_total(max(total - num_bytes, 0))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        from deitctl.lock import UNSUPPORTED

        lock = FileLock(self.folder / "lock", fallback_to_soft=False)
        try:
            lock.acquire(poll_interval=0.005)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        try:
            yield
        finally:
            lock.release()

    def _read_total(self) -> int | None:
        """Return the bytes of all files, None if that is not recorded."""
        try:
            return int((self.folder / TOTAL).read_bytes()[:20])
        except (OSError, ValueError):
            return None

    def _write_total(self, total: int) -> None:
        (self.folder / TOTAL).write_text(f"{total:<20}")

    def _make_room(self, num_bytes: int) -> int:
        """Delete the least recently used blocks until there is room; return the bytes of the others.

        A file that is being written counts by its size, which is the room that was taken for it.
        """
        (self.folder / TOTAL).write_text(" " * 20)  # unknown, if this process is killed now
        now_s = os.stat(self.folder / TOTAL).st_mtime  # by the clock of the files' server
        blocks, total = [], 0
        for path, status in _iterate_files(self.folder):
            if path.endswith(PART):
                if now_s - status.st_mtime > STALE_S and path not in _being_written:
                    with suppress(OSError):
                        os.unlink(path)
                    continue
            else:
                blocks.append((status.st_atime_ns, status.st_size, path))
            total += status.st_size
        if total + num_bytes <= self.max_bytes:
            return total
        target = self.max_bytes - max(num_bytes, int(FREED * self.max_bytes))
        for _, size, path in sorted(blocks):
            if total <= target:
                break
            with suppress(OSError):  # Windows: a process has it open
                os.unlink(path)
                total -= size
        return total


def _iterate_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the blocks of a cache, and those that are being written, with their state."""
    for entry in os.scandir(folder):
        if len(entry.name) != 2 or not entry.is_dir():  # locks, the total
            continue
        for file in os.scandir(entry.path):
            if BLOCK_NAME.fullmatch(file.name):
                with suppress(OSError):  # deleted since
                    yield file.path, os.stat(file.path, follow_symlinks=False)


class BoundedFile(io.RawIOBase):
    """A file of a cache that is being written, and takes room before it grows."""

    def __init__(self, folder: Path, room: CacheRoom) -> None:
        """Begin a file, which `finish` or `discard` ends.

        Args:
            folder: that it is written in.
            room: that it takes.
        """
        handle, self._path = tempfile.mkstemp(PART, PREFIX, folder)
        _being_written.add(self._path)
        self._file = os.fdopen(handle, "w+b", buffering=0)
        self._room = room
        self._size = self._taken = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:  # of the file may be beyond what is written
            offset, whence = self._size + offset, os.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        return self._file.readinto(view[: max(self._size - self._file.tell(), 0)])

    def truncate(self, size: int | None = None) -> int:
        self._size = min(self._size, self._file.tell() if size is None else size)
        return self._size

    def write(self, data: Any) -> int:
        """Write all of the data; raise `CacheFailed` if there is no room for it."""
        view = memoryview(data).cast("B")
        end = self._file.tell() + len(view)
        try:
            if end > self._taken:
                more = max(end - self._taken, STEP if self._taken >= STEP else 0)
                # Its size is what was taken, for whoever counts.
                self._room.take(more, lambda: self._file.truncate(self._taken + more))
                self._taken += more
            rest = view
            while rest:
                rest = rest[self._file.write(rest) :]
        except CacheFailed:
            raise
        except OSError as error:
            raise CacheFailed(error.errno, error.strerror or str(error)) from error
        self._size = max(self._size, end)
        return len(view)

    def finish(self, path: Path) -> None:
        """Cut the file to what was written, give it its name, and the rest of the room back."""

        def complete() -> None:
            self._file.truncate(self._size)
            self._file.close()
            os.replace(self._path, path)

        self._room.give_back(self._taken - self._size, complete)
        _being_written.discard(self._path)

    def discard(self) -> None:
        """Delete the file, and give its room back."""
        self._file.close()
        _being_written.discard(self._path)
        self._room.give_back(self._taken, lambda: os.unlink(self._path))
