"""Stores of files by scheme: what each does, and how fsspec's file systems are opened.

fsspec's event loop and connections belong to the process that made them, so each process has its own.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from functools import cache
from typing import Any, NamedTuple, Protocol

from deitctl.data.stores.address import EXTRAS, get_scheme, redact
from deitctl.data.stores.store_settings import warn
from deitctl.errors import DataChanged, DataError

IN_FLIGHT = 32
"""Reads at a time, a process: at 30 ms each about 1,000 a second."""
TIMEOUT_S = 60.0
"""For a request to show that it is answered, after which it is sent again: half of it may pass without a byte."""
MIN_RATE = 1024
"""Bytes a second, below which an answer counts as none after `TIMEOUT_S`."""
NO_VERSION = "run"
_run = f"{time.time_ns():x}{os.getpid():x}"
_warned: set[str] = set()
"""Stores that name no versions."""


class StoredPath(NamedTuple):
    """A file in a store, as the store describes it."""

    address: str
    size: int
    """In bytes."""
    version: str
    """What tells the file from another of the same name: its ETag, generation, commit or time."""

    @property
    def identity(self) -> tuple[int | str, ...]:
        """What `StoredFile.identity` is of this file."""
        return self.size, self.version


class Pace:
    """Watches that an answer comes faster than a trickle, which would hold a run for ever."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def require(self, num_bytes: int) -> None:
        """Raise `OSError` if so many bytes are too few for the time since the start."""
        spent_s = time.monotonic() - self._start_s
        if spent_s > TIMEOUT_S and num_bytes < MIN_RATE * spent_s:
            raise OSError(
                errno.ETIMEDOUT, f"its server sends less than {MIN_RATE:,} bytes a second"
            )


class NoRanges(NotImplementedError):
    """A server sends whole files alone."""


class Store(Protocol):
    """What a store does; each call sends one request, and may fail."""

    def describe(self, address: str) -> StoredPath:
        """Return size and version of a file."""

    def find(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return fsspec's descriptions of all files below a folder, by path.

        Args:
            folder: its address.
            prefix: that the paths below it begin with; a store that cannot select by it returns all.
        """

    def fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        """Return bytes that lie in a file, not more than `size`.

        Raises:
            DataChanged: the file is another than it was.
            NoRanges: its server sends it whole alone.
            OSError: it cannot be read, perhaps now.
        """


def get_store(address: str) -> Store:
    """Return the store of an address, one a process.

    Raises:
        DataError: the package that reads it is not installed.
    """
    return _open_store(get_scheme(address), os.getpid())


@cache
def _open_store(scheme: str, pid: int) -> Store:
    if scheme in ("http", "https"):
        from deitctl.data.stores.web import WebStore

        return WebStore(open_file_system(scheme))
    if scheme == "s3":
        from deitctl.data.stores.s3 import S3Store

        return S3Store(open_file_system(scheme))
    if scheme == "hf":
        from deitctl.data.stores.hub_store import HubStore

        return HubStore(open_file_system(scheme))
    return OtherStore(open_file_system(scheme))


def open_file_system(scheme: str, **settings: Any) -> Any:
    """Return fsspec's file system for a scheme, of this process.

    Args:
        scheme: `s3`.
        settings: beside those of fsspec's own configuration files.

    Raises:
        DataError: the package that reads it is not installed.
    """
    settings = _SETTINGS.get(scheme, {}) | settings
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what is tried again
    try:
        import fsspec

        return fsspec.filesystem(scheme, **settings)
    except (ImportError, ValueError) as error:
        extra = f"deitctl[{EXTRAS[scheme]}]"
        raise DataError(
            f"{scheme}:// is read by a package that is not installed ({error}).",
            f"Install it: pip install '{extra}'",
        ) from error


_SETTINGS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"max_pool_connections": 2 * IN_FLIGHT, "connect_timeout": 10}},
    # as everything else that reads the web, by the proxies of the environment
    "http": {"client_kwargs": {"trust_env": True}},
    "https": {"client_kwargs": {"trust_env": True}},
}


class OtherStore:
    """A store of which fsspec's own calls are used: Google's, Azure's."""

    def __init__(self, system: Any) -> None:
        self.system = system

    def describe(self, address: str) -> StoredPath:
        return make_stored_path(address, self.system.info(address))

    def find(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        self.system.invalidate_cache()  # it remembers listings, of an hour ago perhaps
        options = {"prefix": prefix} if get_scheme(folder) in ("gs", "gcs") else {}
        entries: dict[str, dict[str, Any]] = self.system.find(folder, detail=True, **options)
        return entries

    def fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        span = {"start": offset, "end": offset + size}
        if get_scheme(file.address) in ("gs", "gcs") and not has_no_version(file):
            # It has the newest alone: an older generation is a missing file.
            return bytes(self.system.cat_file(file.address, **span, generation=file.version))
        data = bytes(self.system.cat_file(file.address, **span))
        # fsspec names no version in a request: whether it was this one is looked up behind it.
        if not has_no_version(file):
            self.system.invalidate_cache()
            if OtherStore.describe(self, file.address) != file:
                raise DataChanged(
                    f"{redact(file.address)} was replaced while in use.", "Run the command again."
                )
        return data


def make_stored_path(address: str, info: dict[str, Any]) -> StoredPath:
    """Return a file of a store from fsspec's description of it.

    Raises:
        OSError: it is a folder, or of unknown size.
    """
    if info.get("type") == "directory":
        raise IsADirectoryError(21, "it is a folder", redact(address))
    if info.get("size") is None:
        raise OSError(22, "its store does not say how large it is", redact(address))
    keys = ("commit", "generation", "ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime")
    version = next((str(info[key]) for key in keys if info.get(key)), "").strip('"')
    return StoredPath(address, int(info["size"]), version or name_run(address))


def name_run(address: str) -> str:
    """Return the version of a file whose store names none: of this run, so that no later one takes what
    this one has cached for what is there then. Warn once a store."""
    folder = "/".join(address.split("/")[:3])
    if folder not in _warned:
        _warned.add(folder)
        warn(
            f"{redact(folder)} does not say which version of a file it sends (no ETag, no time): a file that is "
            "replaced meanwhile is not noticed, and the cache holds nothing for later runs."
        )
    return f"{NO_VERSION} {_run}"


def has_no_version(file: StoredPath) -> bool:
    """Return whether the store of a file does not name its version."""
    return file.version.startswith(f"{NO_VERSION} ")
