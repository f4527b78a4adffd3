"""Addresses of files in stores (`s3://bucket/folder/x.tar`): what is one, and its parts."""

from __future__ import annotations

import hashlib
import posixpath
import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

from deitctl.errors import DataError

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
_SIGNATURE = re.compile(
    "(x-amz-|x-goog-|x-oss-).*|(aws|oss)accesskeyid|googleaccessid|signature|sig|expires|policy"
    "|key-pair-id|security-token"
)
"""Parameters of a URL that sign it, in small letters: S3's, Google's, Alibaba's, CloudFront's."""
_AZURE = re.compile("s[vsrptei]|s[rk]t|spr|sip|sdd|ses|sk[esv]|sk[ot]id|s[au]oid|scid")
"""Those that sign a URL together with `sig`."""
_DIGEST = re.compile(r"#[0-9a-f]{8}$")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_remote(ref: str) -> bool:
    """Return whether a reference is the address of something in a store: `s3://bucket/folder`."""
    match = _SCHEME.match(ref)
    return match is not None and match[1].lower() in EXTRAS


def spell_scheme(ref: str) -> str:
    """Return a reference with its scheme in small letters, as file systems have it: `s3` for `S3`."""
    scheme, mark, rest = ref.partition("://")
    return scheme.lower() + mark + rest if is_remote(ref) else ref


def get_scheme(address: str) -> str:
    """Return the scheme of an address: `s3`."""
    return address.partition("://")[0].lower()


def is_web(address: str) -> bool:
    """Return whether an address is a URL of the web, whose folders cannot be listed."""
    return get_scheme(address) in ("http", "https")


def require_no_pattern(address: str) -> None:
    """Raise `DataError` for a URL with `*` or `[` in its path: nothing lists the files of a web server."""
    if not is_web(address) or not any(mark in _split(address).path for mark in "*["):
        return
    suffix = posixpath.splitext(get_name(address))[1]
    raise DataError(
        f"{redact(address)} cannot be looked up: a web server lists no files.",
        f"Name them by braces: {get_folder(redact(address))}/x-{{000000..000146}}{suffix}.",
    )


def join_address(folder: str, name: str) -> str:
    """Return the address of a name below a folder's; what follows the path of a URL stays behind it."""
    path, mark, query = folder.partition("?") if is_web(folder) else (folder, "", "")
    return f"{path.rstrip('/')}/{name.lstrip('/')}{mark}{query}"


def get_name(address: str) -> str:
    """Return the last part of an address, without what a URL has behind its path."""
    path = _split(address).path if is_web(address) else address
    return posixpath.basename(path.rstrip("/"))


def get_suffix(address: str) -> str:
    """Return the suffix of the file that an address names, as `.tar`; empty for a folder, as `wds-1.0` is."""
    place = _split(address).path if is_web(address) else address.partition("://")[2]
    suffix = posixpath.splitext(posixpath.basename(place))[1].lower() if "/" in place else ""
    return suffix if suffix[1:2].isalpha() else ""


def get_folder(address: str) -> str:
    """Return the address of the folder that a file's lies in."""
    return (address.partition("?")[0] if is_web(address) else address).rpartition("/")[0]


def name_version(address: str, version: str) -> str:
    """Return what names a version of a file in what is stored, however its URL is signed."""
    return f"{get_public(address)}\n{version}"


def hide_secrets(ref: str) -> str:
    """Return an address as it may be written and shown; `reveal` returns the whole of it in this process."""
    ref = spell_scheme(ref)
    public = get_public(ref)
    if public != ref:
        _whole[public] = ref
    return public


def reveal(ref: str) -> str:
    """Return an address with its secrets, where they were hidden in this process."""
    return _whole.get(ref) or (redact(ref) if _is_public(ref) else ref)


def get_public(address: str) -> str:
    """Return an address without what may be secret, and yet one for each file: of what a URL has behind its
    path a digest is left, but for a signature, which is another each time."""
    if not is_web(address) or _is_public(address):
        return address
    words = [word for word in _split(address).query.split("&") if word]
    names = [word.partition("=")[0].lower() for word in words]
    rest = [
        word
        for word, name in zip(words, names, strict=True)
        if not (_SIGNATURE.fullmatch(name) or ("sig" in names and _AZURE.fullmatch(name)))
    ]
    digest = hashlib.sha256("&".join(rest).encode()).hexdigest()[:8]
    return redact(address) + (f"#{digest}" if rest else "")


def _is_public(address: str) -> bool:
    """Return whether an address is one of `get_public` with a digest."""
    return is_web(address) and "?" not in address and _DIGEST.search(address) is not None


def redact(address: str) -> str:
    """Return an address without what may be secret: the user of a URL, and what follows its path."""
    if not is_web(address):
        return address
    parts = _split(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _split(address: str) -> SplitResult:
    """Return the parts of a URL; raise `DataError` if it has none."""
    try:
        return urlsplit(address)
    except ValueError as error:
        scheme, _, rest = address.partition("?")[0].partition("://")
        public = f"{scheme}://{rest.rpartition('@')[2]}"
        raise DataError(f"{public} is no URL: {error}.", "https://HOST/PATH is one.") from error
