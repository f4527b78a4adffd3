"""Addresses of data sets on the hub: `hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION]`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from deitctl.errors import DataError

HUB = "hf://datasets/"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(/(?P<configuration>[^/]+))?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A data set on the hub."""

    repository: str
    """OWNER/NAME."""
    revision: str = ""
    """A branch, a tag or a commit; empty: main."""
    configuration: str = ""
    """One of several forms of the data; empty: the only one."""

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, so that it means the same data for ever."""
        return bool(_COMMIT.fullmatch(self.revision))

    def pin(self, commit: str) -> HubAddress:
        """Return the address of a commit."""
        return replace(self, revision=commit)

    @property
    def short(self) -> str:
        """The address without its revision."""
        return str(replace(self, revision=""))

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        configuration = f"/{self.configuration}" if self.configuration else ""
        return f"{HUB}{self.repository}{revision}{configuration}"


def is_hub(ref: str) -> bool:
    """Whether a reference names a data set on the hub, not a file of one."""
    return ref.startswith(HUB) and _ADDRESS.fullmatch(ref) is not None


def parse_address(ref: str) -> HubAddress:
    """Return what a reference names; raise `DataError` if it is none of a data set on the hub."""
    match = _ADDRESS.fullmatch(ref)
    if match is None:
        raise DataError(
            f"{ref!r} names no data set of the hub.",
            f"Names are {HUB}OWNER/NAME[@REVISION][/CONFIGURATION].",
        )
    return HubAddress(
        match["repository"], unquote(match["revision"] or ""), match["configuration"] or ""
    )
