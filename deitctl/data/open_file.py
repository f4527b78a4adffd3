"""Files that stay open while a command uses them, read and written at an offset, never through a map.

A map of a file that is cut meanwhile ends the process by a bus error; a read returns fewer bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from deitctl.errors import DataChanged

_one_position = threading.Lock()
_on_other_host = ContextVar("_on_other_host", default=False)


class Identity(NamedTuple):
    """What tells a file from another of the same name, and from itself before a change."""

    inode: int
    """0: any. Mounts of object stores number files by themselves."""
    size: int
    mtime_ns: int
    """0: any. Copies on the disks of several hosts have times of their own."""

    def __reduce__(self) -> Any:
        return _receive_identity, tuple(self)


def _receive_identity(inode: int, size: int, mtime_ns: int) -> Identity:
    """Return an identity in another process."""
    return Identity(0, size, 0) if _on_other_host.get() else Identity(inode, size, mtime_ns)


@contextmanager
def on_other_host() -> Iterator[None]:
    """Unpickle what names files as it was on another host: they are the same if their size is."""
    token = _on_other_host.set(True)
    try:
        yield
    finally:
        _on_other_host.reset(token)


class OpenFile:
    """A file that stays open for reading, and is the same as long as it is.

    It pickles as its path, and must be unchanged where it is opened again.
    """

    def __init__(self, path: str, identity: tuple[int, int, int] | None = None) -> None:
        """Open a file.

        Args:
            path: a regular file; links are followed.
            identity: what it must be; None: whatever it is.

        Raises:
            OSError: it cannot be opened, or is no regular file.
            DataChanged: it is another.
        """
        self.path = path
        self._open(identity)

    def __reduce__(self) -> Any:
        return OpenFile, (self.path, self.identity)

    def _open(self, identity: tuple[int, int, int] | None) -> None:
        # O_NONBLOCK: a pipe must not be waited for.
        flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        self.handle = os.open(self.path, os.O_RDONLY | flags)
        self._close = weakref.finalize(self, os.close, self.handle)
        status = os.fstat(self.handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        self.identity = get_identity(status)
        if identity is not None and not _is_same(identity, self.identity):
            raise DataChanged(f"{self.path} was replaced while in use.", "Run the command again.")

    @property
    def size(self) -> int:
        """In bytes."""
        return self.identity[1]

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Do nothing: the system reads ahead."""

    def require_unchanged(self) -> None:
        """Raise `DataChanged` if the file was written to or cut since it was opened."""
        if get_identity(os.fstat(self.handle)) != self.identity:
            raise DataChanged(
                f"{self.path} was changed while in use.",
                "Put a new file in place by a rename (mv), and run the command again.",
            )

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; safe for concurrent processes and threads.

        Raises:
            OSError: they cannot be read.
            DataChanged: the file is not what was opened, so offsets in it may no longer be valid.
        """
        try:
            self.require_unchanged()
            data = read_at(self.handle, offset, size)
            if len(data) < size:  # cut since
                self.require_unchanged()
        except OSError as error:
            if error.errno == errno.ESTALE:  # of a server that was restarted, and stays so
                self._close()
                self._open(self.identity)
            raise
        return data


def get_identity(status: os.stat_result) -> Identity:
    """Return what tells a file from another of the same name, and from itself before a change."""
    return Identity(status.st_ino, status.st_size, status.st_mtime_ns)


def _is_same(expected: tuple[int, int, int], identity: Identity) -> bool:
    inode, size, mtime_ns = expected
    return (
        size == identity.size
        and inode in (0, identity.inode)
        and mtime_ns in (0, identity.mtime_ns)
    )


def read_at(handle: int, offset: int, size: int) -> bytes:
    """Return `size` bytes from an offset on, or what there is up to the end of the file."""
    data = _read_once(handle, offset, size)
    # A network file system may return less than was requested.
    while len(data) < size and (more := _read_once(handle, offset + len(data), size - len(data))):
        data += more
    return data


def _read_once(handle: int, offset: int, size: int) -> bytes:
    if hasattr(os, "pread"):
        # A position of its own: forked workers share the file's. POSIX_FADV_RANDOM made random
        # reads slower (0.47 instead of 0.36 ms).
        return os.pread(handle, size, offset)
    with _one_position:  # Windows, which has no forks
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)


def write_at(handle: int, offset: int, data: bytes) -> None:
    """Write bytes at an offset; raise `OSError` if not all of them can be written."""
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(handle, data, offset)
        else:
            with _one_position:
                os.lseek(handle, offset, os.SEEK_SET)
                written = os.write(handle, data)
        data, offset = data[written:], offset + written


def share_open_files(most: int) -> int:
    """Return how many files one kind of data may hold open: `most`, or a quarter of all if that is fewer."""
    return min(most, max(1, (read_max_open_files() or 4 * most) // 4))


def read_max_open_files() -> int | None:
    """Return how many files this process may hold open, None for any number."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
