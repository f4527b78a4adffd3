"""A file in a store, read by ranges."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.data.stores.address import find_version, open_file_system, redact


@dataclass(frozen=True)
class RemoteFile:
    """A file in a store, which is the same as long as it is used."""

    address: str
    size: int
    version: str

    @classmethod
    def open(cls, address: str) -> RemoteFile:
        """Return the file of an address; raise `OSError` if it is not there."""
        info = open_file_system(address).info(address)
        if info.get("size") is None:
            raise OSError(errno.EIO, "its server does not say how large it is", redact(address))
        return cls(address, int(info["size"]), find_version(info))

    @property
    def path(self) -> str:
        """The address, without secrets."""
        return redact(self.address)

    @property
    def identity(self) -> tuple[int | str, ...]:
        """Size and version."""
        return self.size, self.version

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; raise `OSError` if they cannot be read."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        system = open_file_system(self.address)
        return bytes(system.cat_file(self.address, start=offset, end=end))

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Start to read ranges."""
