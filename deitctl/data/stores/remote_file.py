"""A file in a store, read by ranges: each from the store, or in blocks that a cache keeps."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

from deitctl.data.stores.address import name_version, redact
from deitctl.data.stores.block_cache import BlockCache, CachedBlock
from deitctl.data.stores.cache_room import CacheFailed
from deitctl.data.stores.patience import describe, read_from_store
from deitctl.data.stores.read_threads import get_reads_ahead
from deitctl.data.stores.store_settings import get_cache, warn
from deitctl.data.stores.stores import NoRanges, StoredPath, get_store
from deitctl.data.stores.web import WebStore, has_ranges
from deitctl.errors import DataChanged, DataError, StoreLost

T = TypeVar("T")
BLOCK = 2**20
"""Bytes of a block. An image of ImageNet has a tenth: the first batches of an epoch over a cold cache
fetch ten times what they use, and the whole epoch everything once."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in a store, which must be the same as long as it is used. It pickles as what it is."""

    address: str
    size: int
    version: str
    cache: BlockCache | None = None
    """That its blocks are read through; None: each range is read from the store."""

    @property
    def path(self) -> str:
        """The address, without secrets."""
        return redact(self.address)

    @property
    def identity(self) -> tuple[int | str, ...]:
        """Size and version."""
        return self.size, self.version

    @property
    def content_name(self) -> str:
        """What names its content in what is stored."""
        return f"{name_version(self.address, self.version)}\n{self.size}"

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; safe for concurrent processes and threads.

        Raises:
            StoreLost: the store does not answer any more, or refuses.
            DataChanged: the file is another than it was.
        """
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        if self.cache is not None and has_ranges(self.address):
            return self._read_blocks(offset, size)
        data = get_reads_ahead().get((self.address, self.version, offset, size))
        return self._read_now(offset, size) if data is None else data

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Start to read these (offset, size), as far as there is room for them."""
        ahead = get_reads_ahead()
        for offset, size in ranges:
            size = min(size, self.size - offset)
            if size <= 0:
                continue
            if not has_ranges(self.address):
                return  # the first read fetches all of the file
            if self.cache is not None:
                for number in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
                    block, fill = (self.address, self.version, number), partial(self._fill, number)
                    if self.cache.has(self._name_block(number)):
                        continue
                    if not ahead.start(block, BLOCK, fill, is_kept=False):
                        return
            else:
                key = self.address, self.version, offset, size
                if not ahead.start(key, size, partial(self._read_now, offset, size)):
                    return

    def _read_blocks(self, offset: int, size: int) -> bytes:
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        ahead, parts = get_reads_ahead(), []
        for number in range(first, last + 1):
            ahead.get((self.address, self.version, number))  # waits for a thread that fetches it
            start = max(offset - number * BLOCK, 0)
            end = min(offset + size - number * BLOCK, BLOCK)
            parts.append(self._read_block(number, start, end))
        return b"".join(parts)

    def _name_block(self, number: int) -> str:
        return f"{self.content_name}\n{BLOCK}\n{number}"

    def _fill(self, number: int) -> bytes:
        """Fetch a block into the cache."""
        self._read_block(number, 0, 0)
        return b""

    def _read_block(self, number: int, start: int, end: int) -> bytes:
        """Return bytes of a block, from the cache, which it is written to first."""
        offset = number * BLOCK
        key = self._name_block(number)

        def write(target: BinaryIO) -> None:
            target.write(self._read_now(offset, min(BLOCK, self.size - offset)))

        try:
            return _read_through(self.cache or get_cache(), key, write, start, end - start)
        except CacheFailed as error:
            _warn_once(self.cache or get_cache(), error)
            size = min(end, self.size - offset) - start
            return self._read_now(offset + start, size) if size > 0 else b""

    def _read_now(self, offset: int, size: int) -> bytes:
        """Return bytes from the store; raise as `read`."""
        if not has_ranges(self.address):
            return self._read_of_copy(offset, size)
        try:
            return self._read_patiently(partial(self._fetch, offset, size))
        except NoRanges:
            return self._read_of_copy(offset, size)

    def _read_patiently(self, read: Callable[[], T]) -> T:
        """Return what `read` returns of the store; raise what its failure means for all of the data."""
        try:
            return read_from_store(read, self.path, warn=warn)
        except FileNotFoundError as error:
            raise DataChanged(
                f"{self.path} is gone.", "Put it back, or name other data."
            ) from error
        except CacheFailed:
            raise
        except OSError as error:  # not one image's, which may be left out
            raise StoreLost(
                f"{self.path} cannot be read any more: {describe(error)}.",
                "Have its credentials, or the signature of its URL, expired?",
            ) from error

    def _fetch(self, offset: int, size: int) -> bytes:
        file = StoredPath(self.address, self.size, self.version)
        data = get_store(self.address).fetch(file, offset, size)
        if len(data) > size:
            raise OSError(errno.EINVAL, "its store sends more bytes than were requested")
        if len(data) < size:
            raise OSError(errno.EIO, f"{len(data):,} of {size:,} bytes came")
        return data

    def _read_of_copy(self, offset: int, size: int) -> bytes:
        """Return bytes of a file whose server sends it whole alone, from a copy in the cache."""
        store, cache = get_store(self.address), self.cache or get_cache()
        file = StoredPath(self.address, self.size, self.version)
        assert isinstance(store, WebStore)

        def write(target: BinaryIO) -> None:
            self._read_patiently(partial(store.copy, file, target))

        try:
            return _read_through(cache, self.content_name, write, offset, size)
        except CacheFailed as error:
            raise DataError(
                f"The server of {self.path} sends no parts of a file, and all of it "
                f"({self.size:,} bytes) has no place in {cache.room.folder}: {error.strerror}.",
                "Make room there, set a larger --cache-size, or name another --cache-dir.",
            ) from error


def _read_through(cache: BlockCache, key: str, write: object, offset: int, size: int) -> bytes:
    """Return bytes of a block; a damaged one is fetched again."""
    for _ in range(2):
        block: CachedBlock = cache.get(key, write)  # type: ignore[arg-type]
        try:
            return block.read(offset, size)
        except OSError as error:  # damaged, or of a file server that forgot it
            failure = error
    raise CacheFailed(failure.errno, failure.strerror or str(failure)) from failure


_warned: set[str] = set()


def _warn_once(cache: BlockCache, error: CacheFailed) -> None:
    folder = str(cache.room.folder)
    if folder not in _warned:
        _warned.add(folder)
        warn(
            f"{folder} cannot hold blocks of the data ({error.strerror}): they are read from their "
            "store each time. --cache-dir names another folder."
        )
