"""A file that is read by offset, wherever it lies: on a disk, or in a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deitctl.data.open_file import OpenFile
from deitctl.data.stores.address import is_remote
from deitctl.data.stores.block_cache import BlockCache

Identity = tuple[int | str, ...]


class StoredFile(Protocol):
    """A file that stays the same as long as it is used; pickles small, and survives a fork."""

    @property
    def path(self) -> str:
        """Path or address, as it may be shown."""

    @property
    def identity(self) -> Identity:
        """What tells it from another of the same name, and from itself before a change."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; fewer at the end alone.

        Raises:
            OSError: they cannot be read.
            StoreLost: the store does not answer any more.
            DataChanged: it is not what was opened.
        """

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Start to read these (offset, size), so that a later `read` of each finds it here."""


def open_stored(
    address: str, identity: Identity | None = None, cache: BlockCache | None = None
) -> StoredFile:
    """Open a file for reading by offset: a path, or an address in a store.

    Args:
        address: of the file.
        identity: what it must be, as a listing or an index has it; None: whatever it is. A file in a
            store is then not looked up: the first read notices another version.
        cache: that blocks of a file in a store are read through; None: each range is read from it.

    Raises:
        OSError: it is not there, or cannot be opened.
        DataError: its store cannot be read.
        DataChanged: it is another.
    """
    if not is_remote(address):
        return OpenFile(address, identity)  # type: ignore[arg-type]
    from deitctl.data.stores.listing import describe_file
    from deitctl.data.stores.remote_file import RemoteFile

    size, version = identity or describe_file(address).identity
    return RemoteFile(address, int(size), str(version), cache)
