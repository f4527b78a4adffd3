"""Reading from stores that are busy, slow or away for a while: again, later each time, and not for ever."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from deitctl.data.stores.address import redact
from deitctl.data.stores.cache_room import CacheFailed
from deitctl.errors import DeitctlError, StoreLost

T = TypeVar("T")
PATIENCE_S = 300.0
"""For a store that does not answer. Less than the loaders' own (`stream.MAX_WAIT_S`), so that the line
names the store."""
OPENING_PATIENCE_S = 10.0
"""At the first request to a store, whose name may be misspelled."""
WARN_AFTER_S = 60.0
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
PERMANENT = (
    CacheFailed,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
    ValueError,  # of an address
)
"""What asking again does not change."""
LOCAL = ("ParamValidationError", "ProfileNotFound", "ConfigParseError", "NoRegionError")
"""Errors of botocore's that no store has seen: the request or the settings are wrong."""
PERMANENT_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG)
_draw = random.SystemRandom()  # views and data sets of the user's draw from the other


class Busy(OSError):
    """A store answered that it cannot answer now."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(errno.EBUSY, reason)
        self.pause_s = pause_s
        """Seconds after which it is to be tried again; 0: it does not say."""


def read_from_store(
    read: Callable[[], T],
    name: str,
    *,
    patience_s: float | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> T:
    """Return what `read` returns; where the store fails for a moment, call it again.

    Args:
        read: may be called several times.
        name: of what is read, without secrets.
        patience_s: seconds after which it ends; None: `PATIENCE_S`.
        warn: receives one line after a minute.

    Raises:
        StoreLost: the store did not answer for that long.
        OSError: it answered that there is no such file, or that it may not be read.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    start, warned = time.monotonic(), False
    for attempt in itertools.count():
        try:
            return read()
        except DeitctlError:
            raise
        except (
            Exception
        ) as error:  # each store's client has errors of its own, without a common base
            if is_permanent(error):
                raise
            pause_s = _choose_pause(attempt, error)
            waited_s = time.monotonic() - start
            reason = describe(error)
            pause_s = min(pause_s, patience_s - waited_s)
            if pause_s <= 0:
                raise StoreLost(
                    f"{name} cannot be read: its store has not answered for {waited_s:.0f} s "
                    f"({reason}).",
                    "See whether the store and the network are up.",
                ) from error
        if waited_s + pause_s > WARN_AFTER_S and not warned:
            warned = True
            warn(
                f"{name} cannot be read ({reason}): waiting for its store, up to {patience_s:.0f} s."
            )
        time.sleep(pause_s)
    raise AssertionError("unreachable")


def is_permanent(error: Exception) -> bool:
    """Return whether a failed read fails again: no such file, not permitted, not possible."""
    if isinstance(error, PERMANENT) or getattr(error, "errno", None) in PERMANENT_ERRNOS:
        return True
    name = type(error).__name__
    return name in LOCAL or "Credential" in name  # botocore's, google.auth's: there are none


def describe(error: BaseException) -> str:
    """Return the reason of an error in a few words, without addresses, which may hold secrets."""
    if endpoint := find_endpoint(error):
        is_unknown = isinstance(getattr(error, "os_error", None), socket.gaierror)
        return f"there is no host {endpoint}" if is_unknown else f"cannot connect to {endpoint}"
    reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
    reason = reason.removeprefix("Parameter validation failed:").partition(": Bucket name must")[0]
    words = [word for word in reason.split() if "://" not in word and "?" not in word]
    return (" ".join(words) or type(error).__name__)[:160].rstrip(".: ")


def find_endpoint(error: BaseException) -> str:
    """Return the server that could not be connected to, by aiohttp's and botocore's errors; empty for others."""
    words: dict[str, str] = getattr(error, "kwargs", None) or {}
    if url := words.get("endpoint_url", ""):  # botocore's
        return "/".join(redact(url).split("/")[:3])
    host, port = getattr(error, "host", None), getattr(error, "port", None)
    if not host or not isinstance(error, OSError):
        return ""
    is_unknown = isinstance(getattr(error, "os_error", None), socket.gaierror)
    return str(host) if is_unknown else f"{host}:{port}"


def read_retry_after(value: str) -> float:
    """Return the seconds that a header `Retry-After` says, as a number or a date; 0 if it says neither."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _choose_pause(attempt: int, error: Exception) -> float:
    """Return seconds to wait: doubled each time, and drawn, so that processes do not come at once."""
    pause_s: float = min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S) * _draw.uniform(0.5, 1.0)
    requested_s = error.pause_s if isinstance(error, Busy) else 0.0
    return max(pause_s, requested_s)
