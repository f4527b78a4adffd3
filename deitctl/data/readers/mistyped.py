"""Addresses that are spelled nearly right: what is wrong with each, and which one was meant."""

from __future__ import annotations

import re
from pathlib import Path

from deitctl.data.named.names import HUB, find_named
from deitctl.data.readers.hub_address import is_hub
from deitctl.data.stores.address import EXTRAS, redact
from deitctl.errors import DataError

READ = f"Addresses begin with s3://, gs://, az://, abfs://, https://, http:// or {HUB}OWNER/NAME."
HUB_SCHEMES = ("hf", "hf-hub", "hf_hub", "huggingface")
SAME = {"s3a": "s3", "s3n": "s3"}
"""Schemes of other programs', by ours for the same store."""
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+._-]+):(?P<slashes>/*)(?P<rest>.*)", re.IGNORECASE)
_PAGE = re.compile(
    r"(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([^/?#]+/[^/?#]+)(?:/(?:tree|viewer)/.*)?/?",
    re.IGNORECASE,
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_like_address(ref: str) -> bool:
    """Return whether a reference is spelled as an address, or nearly so, and is no path of this machine."""
    match = _ADDRESS.fullmatch(ref)
    if match is None or Path(f"{match['scheme']}:").exists() or Path(ref).exists():
        return False
    scheme = match["scheme"].lower()
    return scheme != "pipe" and (bool(match["slashes"]) or scheme in {*EXTRAS, *HUB_SCHEMES})


def refuse_mistyped(ref: str) -> None:
    """Raise `DataError` for what can be no address of data, though it is spelled as one."""
    match = _ADDRESS.fullmatch(ref)
    if match is None or not is_like_address(ref):
        return
    scheme, slashes, rest = match["scheme"].lower(), match["slashes"], match["rest"]
    name = redact(ref) if slashes == "//" else ref
    if scheme in HUB_SCHEMES:
        _refuse_hub(ref, rest, is_spelled=scheme == "hf" and slashes == "//")
    elif scheme == "file":
        raise DataError(f"{ref} is a path, which is written without file:.", f"DATA is /{rest}.")
    elif scheme in SAME:
        raise DataError(f"{scheme}:// is not read.", f"Did you mean {SAME[scheme]}://{rest}?")
    elif scheme not in EXTRAS:
        raise DataError(f"{ref} cannot be read: {scheme}:// is no address of data.", READ)
    elif slashes != "//" or not rest:
        hint = f"Did you mean {scheme}://{rest}?" if rest else READ
        raise DataError(f"{ref} is no address: {scheme}:// has two slashes, then a name.", hint)
    elif scheme in ("http", "https") and (page := _PAGE.fullmatch(rest)):
        raise DataError(f"{name} is a page about data.", f"Did you mean {HUB}{page[1]}?")


def _refuse_hub(ref: str, rest: str, *, is_spelled: bool) -> None:
    """Raise `DataError` for an address of the hub that is none of a data set, or of a file there."""
    is_data = rest.startswith("datasets/")
    parts = rest.removeprefix("datasets/").strip("/").split("/")
    name = parts[0].partition("@")[0]
    if len(parts) == 1 or name != parts[0]:
        data = find_named(name)
        raise DataError(
            f"{ref} names no data set of the hub: OWNER/NAME is needed.",
            f"The built-in one needs no address: DATA is {data.name}."
            if data
            else f"Names are {HUB}OWNER/NAME[@REVISION][/CONFIGURATION].",
        )
    if not is_spelled or (not is_data and len(parts) == 2):
        meant = HUB + "/".join(parts)
        hint = f"Did you mean {meant}?" if is_hub(meant) else READ
        raise DataError(f"{ref} names no data set of the hub.", hint)


def suggest_repository(ref: str) -> str:
    """Return a hint that `OWNER/NAME` may be a data set of the hub; empty for paths that are none."""
    owner = ref.partition("/")[0]
    if not _REPOSITORY.fullmatch(ref) or Path(owner).exists():
        return ""
    return f"There is no folder {owner!r} here. Did you mean {HUB}{ref}?"
