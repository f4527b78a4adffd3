"""Addresses of files in stores: what is one, its parts, and the file systems that read them."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from deitctl.errors import DataError

SCHEMES = {
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "https": "http",
    "http": "http",
    "hf": "",
    "memory": "",
}
"""Of an address, and the extra of deitctl that reads it; empty: none is needed."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
WILDCARDS = "*?["


class StoredPath(NamedTuple):
    """A file in a store, as its listing has it."""

    address: str
    size: int
    """In bytes; -1: the store does not say."""
    version: str
    """What tells the object from another of the same name: its ETag or time of change; may be empty."""


def is_remote(ref: str) -> bool:
    """Return whether a reference is the address of something in a store: `s3://bucket/folder`."""
    match = _SCHEME.match(ref)
    return match is not None and match[1].lower() in SCHEMES


def join_address(folder: str, name: str) -> str:
    """Return the address of a name below a folder's."""
    return f"{folder.rstrip('/')}/{name.lstrip('/')}"


def get_name(address: str) -> str:
    """Return the last part of an address, without what a URL has behind its path."""
    path = urlsplit(address).path if is_web(address) else address
    return posixpath.basename(path.rstrip("/"))


def is_web(address: str) -> bool:
    """Return whether an address is a URL of the web, whose folders cannot be listed."""
    return address.lower().startswith(("http://", "https://"))


def redact(address: str) -> str:
    """Return an address without what may be secret: the user of a URL, and what follows its path."""
    if not is_web(address):
        return address
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def open_file_system(address: str) -> Any:
    """Return the fsspec file system of an address, one a process for each store.

    Raises:
        DataError: the package that reads the store is not installed.
    """
    match = _SCHEME.match(address)
    assert match is not None
    return _open_file_system(match[1].lower())


@cache
def _open_file_system(scheme: str) -> Any:
    extra = SCHEMES[scheme]
    try:
        import fsspec

        return fsspec.filesystem(scheme, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        name = f"deitctl[{extra or 'http'}]"
        raise DataError(
            f"Reading {scheme}:// needs a package that is not installed: {error}.",
            f"Install it: pip install '{name}'",
        ) from error


def list_addresses(folder: str, suffixes: Sequence[str] = ()) -> list[StoredPath]:
    """Return the files below a folder of a store, or those that a pattern matches, in order of name.

    Args:
        folder: an address; with `*`, `?` or `[` in it, a pattern.
        suffixes: of the names that are returned, `.tar`; none: all of them.

    Raises:
        DataError: the store cannot be listed, or nothing is there.
    """
    if is_web(folder):
        raise DataError(
            f"{redact(folder)} cannot be listed: the web has no folders.",
            "Name each file: https://HOST/x-{000000..000146}.tar, or a text file that lists them.",
        )
    scheme = folder.partition("://")[0]
    system = open_file_system(folder)
    base = re.split(r"[*?\[]", folder, maxsplit=1)[0]
    base = base if base == folder else base.rpartition("/")[0]
    try:
        entries = system.find(base, detail=True)
    except Exception as error:
        raise DataError(f"{redact(folder)} cannot be listed: {error}.") from error
    files = []
    for path, info in sorted(entries.items()):
        address = f"{scheme}://{path.removeprefix(f'{scheme}://').lstrip('/')}"
        if suffixes and not address.lower().endswith(tuple(suffixes)):
            continue
        if base != folder and not fnmatch.fnmatchcase(address, folder):
            continue
        files.append(StoredPath(address, int(info.get("size") or 0), find_version(info)))
    if not files:
        raise DataError(f"There is nothing at {redact(folder)}.")
    return files


def find_version(info: dict[str, Any]) -> str:
    """Return what fsspec's description of a file has to tell it from another of the same name."""
    for key in ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "mtime"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""
