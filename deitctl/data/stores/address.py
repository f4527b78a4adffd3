"""Addresses of files in stores (`s3://bucket/folder/x.tar`): what is one, and its parts."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import urlsplit, urlunsplit

EXTRAS = {
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "https": "http",
    "http": "http",
    "hf": "http",
}
"""The extra of deitctl that reads an address, by its scheme."""
_whole: dict[str, str] = {}
"""Addresses whose secrets are hidden, by what is shown of them."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_remote(ref: str) -> bool:
    """Return whether a reference is the address of something in a store: `s3://bucket/folder`."""
    match = _SCHEME.match(ref)
    return match is not None and match[1].lower() in EXTRAS


def get_scheme(address: str) -> str:
    """Return the scheme of an address: `s3`."""
    return address.partition("://")[0].lower()


def is_web(address: str) -> bool:
    """Return whether an address is a URL of the web, whose folders cannot be listed."""
    return get_scheme(address) in ("http", "https")


def join_address(folder: str, name: str) -> str:
    """Return the address of a name below a folder's; what follows the path of a URL stays behind it."""
    path, mark, query = folder.partition("?") if is_web(folder) else (folder, "", "")
    return f"{path.rstrip('/')}/{name.lstrip('/')}{mark}{query}"


def get_name(address: str) -> str:
    """Return the last part of an address, without what a URL has behind its path."""
    path = urlsplit(address).path if is_web(address) else address
    return posixpath.basename(path.rstrip("/"))


def get_folder(address: str) -> str:
    """Return the address of the folder that a file's lies in."""
    return (address.partition("?")[0] if is_web(address) else address).rpartition("/")[0]


def name_version(address: str, version: str) -> str:
    """Return what names a version of a file in what is stored: without the signature of its URL, where the
    version, an ETag, tells it from files that the rest of the URL names."""
    is_tag = bool(version) and " " not in version  # a date is not a file's alone
    return f"{redact(address) if is_tag else address}\n{version}"


def hide_secrets(ref: str) -> str:
    """Return an address as it may be written and shown; `reveal` returns the whole of it in this process."""
    public = redact(ref)
    if public != ref:
        _whole[public] = ref
    return public


def reveal(ref: str) -> str:
    """Return an address with its secrets, where they were hidden in this process."""
    return _whole.get(ref, ref)


def redact(address: str) -> str:
    """Return an address without what may be secret: the user of a URL, and what follows its path."""
    if not is_web(address):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
