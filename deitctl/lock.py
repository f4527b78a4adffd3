"""Locks between processes: one writer of a run, one trainer of a teacher.

The kernel releases a lock when its holder ends, also when it is killed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deitctl.errors import DeitctlError
from deitctl.events import Reporter
from deitctl.paths import DiskError, open_no_follow, read_regular

MAX_PID = 20
"""Characters of a process number."""
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What flock fails with on a file system that has no locks: NFS without lockd, some of FUSE."""


class Busy(DeitctlError):
    """Another process holds the lock."""


@contextmanager
def locked(
    path: Path,
    *,
    what: str,
    when_busy: Callable[[], None] | None = None,
    reporter: Reporter | None = None,
) -> Iterator[None]:
    """Hold the lock of a file for a block.

    Args:
        path: the lock's file, created if it is missing; the holder writes its process number.
        what: what is locked, for the message.
        when_busy: called before waiting for the holder; None: do not wait.
        reporter: receives a note if the file system has no locks; the block then runs unlocked.

    Raises:
        Busy: another process has it, and `when_busy` is None.
        OSError: the file cannot be created, or is a link.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, a file that exists, would outlive a killed process and refuse the resume.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if when_busy is None:
            holder = _read_holder(path)
            number = f" (number {holder})" if holder else ""
            raise Busy(
                f"{what} is being written by another process{number}.",
                "Wait for it or end it, or name another --output.",
            ) from None
        when_busy()
        lock.acquire()
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if reporter is not None:
            reporter.note(
                f"{what} cannot be locked on this file system: start no second run in it."
            )
    try:
        # a file with other content is not ours to write; on Windows a locked file cannot be written
        with suppress(OSError, DiskError):
            if lock.is_locked and (path.stat().st_size == 0 or _read_holder(path)):
                with os.fdopen(open_no_follow(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                    file.write(str(os.getpid()).encode())
        yield
    finally:
        lock.release()  # does nothing without a lock


def _read_holder(path: Path) -> str:
    """Return the process number in a lock's file, empty if there is none."""
    with suppress(OSError, ValueError):
        content = read_regular(path, MAX_PID).decode().strip()
        return content if content.isdecimal() else ""
    return ""


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file, which is left as it is."""
    try:
        import fcntl
    except ImportError:  # Windows, where a lock can only be tried
        return path.exists() and not _can_lock(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        # shared and for an instant, so that whoever begins meanwhile is hardly ever refused
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _can_lock(path: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0, fallback_to_soft=False):
            return True
    except Timeout:
        return False
