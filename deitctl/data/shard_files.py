"""Files of many images each, and where an image lies in them.

Letters: N images, S shards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.layout import name_some
from deitctl.data.open_file import Identity as FileIdentity
from deitctl.data.open_file import get_identity, share_open_files
from deitctl.data.stores.address import get_folder, get_name, is_remote, redact
from deitctl.data.stores.block_cache import BlockCache
from deitctl.data.stores.store_settings import get_cache
from deitctl.data.stores.stored_file import StoredFile, open_stored
from deitctl.data.stores.web import has_ranges
from deitctl.errors import DataError
from deitctl.threads import DaemonThreads

Identity = tuple[int | str, ...]
"""What tells a shard from another of the same name, see `StoredFile`."""
MAX_OPEN = 256
"""Shards that a process holds open at most, see `share_open_files`: data sets have 10,000 shards."""

REMOTE_THREADS = 32
"""In which shards of a store are opened and scanned: each mostly waits."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Where images lie in shards, and what is recorded of their bytes."""

    shards: NDArray[np.int32]
    """Number of the shard of each image, [N]."""
    offsets: NDArray[np.int64]
    """Of each image in its shard, in bytes, [N]."""
    sizes: NDArray[np.int64]
    """Of each image in bytes, [N]."""
    crc32s: NDArray[np.uint32] | None = None
    """CRC-32 of each image's bytes and those of its lead, [N], verified at each read; None: none are
    recorded."""
    digests: NDArray[np.uint64] | None = None
    """Digest of each original file, which packing may have encoded anew, [N], 0 for an unreadable one;
    None: the images are the original files."""
    leads: NDArray[np.uint32] | None = None
    """Bytes before each image that its checksum covers too, as its label and name, [N]; None: none."""

    def take(self, indices: NDArray[np.int64]) -> Spans:
        """Return those of some images, in that order."""
        columns = {name: column for name, column in vars(self).items() if column is not None}
        return Spans(**{name: column[indices] for name, column in columns.items()})


class ShardFiles:
    """The shards of a data set: opened when they are first read, and again in another process.

    It pickles as paths and identities; a shard must be unchanged wherever it is opened.
    """

    def __init__(
        self,
        paths: Sequence[str],
        identities: Sequence[Identity],
        cache: BlockCache | None = None,
    ) -> None:
        """Name the shards.

        Args:
            paths: of the shards, [S].
            identities: what each must be when it is opened, [S].
            cache: that those in stores are read through.
        """
        self.paths, self.identities, self.cache = tuple(paths), tuple(identities), cache
        self.are_remote = any(map(is_remote, self.paths))

    def __reduce__(self) -> Any:
        return ShardFiles, (self.paths, self.identities, self.cache)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, shard: int) -> StoredFile:
        """Return a shard, open.

        Raises:
            OSError: it cannot be opened.
            DataChanged: it is another file than the one that was indexed.
        """
        return open_shard(self.paths[shard], self.identities[shard], self.cache)

    def name(self, shard: int) -> str:
        """Return the path or address of a shard for messages, without secrets."""
        return redact(self.paths[shard])

    def size(self, shard: int) -> int:
        """Return the bytes of a shard."""
        identity = self.identities[shard]
        return identity.size if isinstance(identity, FileIdentity) else int(identity[0])

    @property
    def come_whole(self) -> bool:
        """Whether an image costs reading all of its shard: a server sends no parts of files."""
        return any(is_remote(path) and not has_ranges(path) for path in self.paths)

    @property
    def num_cached(self) -> int:
        """How many of the shards the cache holds at once."""
        room = (self.cache or get_cache()).room.max_bytes
        return min(len(self), room // max(map(self.size, range(len(self))), default=1))


@cache
def get_opener() -> Callable[[str, Identity, BlockCache | None], StoredFile]:
    """Return the `open_stored` of this process that remembers the files it opened last."""
    return lru_cache(share_open_files(MAX_OPEN))(open_stored)


def open_shard(path: str, identity: Identity, cache: BlockCache | None = None) -> StoredFile:
    """Return an open shard; the least recently used of more than this process holds is closed, when its
    last read has ended.

    Raises:
        OSError: it cannot be opened.
        DataChanged: it is not what was indexed.
    """
    return get_opener()(path, identity, cache)


def open_local(paths: Sequence[Path]) -> ShardFiles:
    """Return shards in local files as they are now; the first ones stay open, so that a rename
    over one of them changes nothing for this process.

    Raises:
        DataError: one cannot be read, or is no regular file.
    """
    identities, num_open = [], share_open_files(MAX_OPEN)
    for number, path in enumerate(paths):
        try:
            identities.append(get_identity(os.stat(path)))
            if number < num_open:
                open_shard(str(path), identities[-1])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return ShardFiles([str(path) for path in paths], identities)


def open_shards(paths: Sequence[str], name: str = "") -> ShardFiles:
    """Return shards as they are now, in local files or in a store.

    Args:
        paths: of the shards.
        name: of all of them, for messages.

    Raises:
        DataError: one is missing or cannot be read.
    """
    if not any(map(is_remote, paths)):
        return open_local([Path(path) for path in paths])
    identities = find_identities(paths, name)
    num_bytes = sum(int(identity[0]) for identity in identities)
    return ShardFiles(paths, identities, get_cache() if get_cache().fits(num_bytes) else None)


def find_identities(paths: Sequence[str], name: str = "") -> list[Identity]:
    """Return what files are now, with many requests in flight; raise as `open_shards`."""
    with DaemonThreads(REMOTE_THREADS) as threads:
        described = list(threads.map(_find_identity, paths))
    missing = [path for path, identity in zip(paths, described, strict=True) if identity is None]
    if missing:
        raise _report_missing(missing, len(paths), name)
    return [identity for identity in described if identity is not None]


def _report_missing(missing: Sequence[str], count: int, name: str) -> DataError:
    first = redact(missing[0])
    if count == 1:
        return DataError(f"There is no file {first}.", "See whether it is spelled as it is meant.")
    return DataError(
        f"{len(missing):,} of the {count:,} files {name or 'of ' + get_folder(first)} are missing: "
        f"{name_some(map(get_name, missing))}.",
        "Put them there, or name those that are there.",
    )


def _find_identity(path: str) -> Identity | None:
    """Return what a shard is; None for one that is missing."""
    try:
        return open_stored(path).identity
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{redact(path)} cannot be read: {error.strerror or error}.") from error
