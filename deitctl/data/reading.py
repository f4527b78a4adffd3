"""Reading images from disks and mounts that fail for a moment.

A read that failed says nothing about the image: it is tried again where that can help, and reported as
`ReadError`, never as damage.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from deitctl.errors import DataError, ReadError

T = TypeVar("T")
PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.5, 2.5)
"""Before a failed read is tried again, six seconds in all: a mount that reconnects takes one to five."""
RENEWAL_S = 60.0
"""After an outage that lasted longer, until one is waited for again: where thousands of files are
missing, a tenth of the time is spent waiting at most."""
OUTAGES = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EAGAIN", "EBUSY", "ESTALE", "EREMOTEIO", "ENODEV", "ENXIO", "ENOLINK"),
        *("ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ESHUTDOWN"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EPIPE"),
    )
    if hasattr(errno, name)
)
"""What disks, network file systems and FUSE report while they are away."""
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Wants of this process, which say nothing about the file."""
_patient_from_s = 0.0
"""Time of the monotonic clock before which a failed read is not waited for."""


def read_patiently(read: Callable[[], T], path: str, *, was_there: bool = False) -> T:
    """Return what `read` returns; where the disk or mount is away, try again for six seconds.

    Waits at most once in `RENEWAL_S`, a process.

    Args:
        read: opens the file anew; a stale handle stays stale. It may write, if that can be repeated.
        path: the file that it reads.
        was_there: the file has been listed, so that its folder cannot have been misspelled: if it is
            gone or empty, its mount may be away.

    Raises:
        OSError: the last one.
    """
    global _patient_from_s
    for pause_s in PAUSES_S:
        try:
            return read()
        except OSError as error:
            is_outage = error.errno in OUTAGES or (was_there and _is_folder_gone(error, path))
            if not is_outage or time.monotonic() < _patient_from_s:
                raise
        time.sleep(pause_s)
    try:
        return read()
    except OSError:
        _patient_from_s = time.monotonic() + RENEWAL_S
        raise


def _is_folder_gone(error: OSError, path: str) -> bool:
    """Return whether not the file is missing, but all of its folder."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return False
    try:
        with os.scandir(os.path.dirname(path) or os.curdir) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def raise_read_error(name: str, error: OSError | ValueError) -> NoReturn:
    """Raise what a failed read of an image means.

    Raises:
        ReadError: it cannot be read now.
        DataError: it is nothing that can be read: a folder, a pipe, a name with a NUL.
        MemoryError: there is none for its bytes.
        OSError: this process has too many open files.
    """
    number = getattr(error, "errno", None)
    if number == errno.ENOMEM:
        raise MemoryError(f"{name}: there is not enough memory to read it.") from error
    if number in SHORTAGES:
        raise error
    message = f"{name} cannot be read: {getattr(error, 'strerror', None) or error}."
    is_permanent = number in (None, errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ENAMETOOLONG)
    raise (DataError if is_permanent else ReadError)(message) from error
