"""Images in a column of Parquet files, of a disk or a store."""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.readers.group_blocks import GroupBlocks
from deitctl.data.readers.image_sizes import load_sizes, save_sizes
from deitctl.data.readers.parquet import ParquetFile
from deitctl.data.readers.parquet_file import (
    Place,
    list_errors,
    measure_column,
    named_errors,
    open_place,
)
from deitctl.data.readers.row_groups import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    CACHE_BYTES,
    Group,
    RowGroups,
)
from deitctl.data.stores.block_cache import BlockCache
from deitctl.data.stores.remote_file import RemoteFile
from deitctl.data.stores.stored_file import StoredFile
from deitctl.errors import DataChanged
from deitctl.home import can_write

NUM_GROUPS, QUICK_ROWS = 32, 16
"""Row groups whose first images stand for all in a quick look, and how many of each."""
QUICK_SHARE = 8
"""Of a row group such rows are an eighth at most. All of a small one is decoded into the cache at once."""


class ImageColumn:
    """The images of a column of some files; safe for threads and processes."""

    def __init__(
        self,
        places: Sequence[Place],
        column: str,
        groups: Sequence[Group],
        block_rows: int,
        names: Sequence[str],
        cache: BlockCache,
    ) -> None:
        """Describe a column.

        Args:
            places: Parquet files of one schema.
            column: name of the column.
            groups: their row groups, in order.
            block_rows: rows that are decoded at a time in memory.
            names: of each file what names its content.
            cache: where row groups are decoded to once; those that it has no room for each process decodes,
                in memory.
        """
        self.places, self.column, self.groups = tuple(places), column, tuple(groups)
        self.block_rows, self.names, self.cache = block_rows, tuple(names), cache
        self.ends = [group.end for group in groups]
        self._start()

    def __reduce__(self) -> Any:
        return ImageColumn, (
            *(self.places, self.column, self.groups),
            *(self.block_rows, self.names, self.cache),
        )

    def _start(self) -> None:
        # A forked process has neither the parent's threads, which may hold the lock, nor its readers.
        self._process, self._lock = os.getpid(), threading.Lock()
        self._rows = RowGroups(self.places, self.column, self.groups, self.block_rows)
        self._blocks = GroupBlocks(self._rows, self.cache, self.names)
        self._measured = set[int]()

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image, None where there are none.

        Raises:
            OSError: they cannot be read.
            DataChanged: a file is another than it was.
        """
        number, at = self._locate(row)
        for _ in range(2):  # a damaged block is written anew
            with self._get_lock():
                block = self._blocks.find(number, writes=at >= self._count_quick(number))
            if block is None:
                break
            try:
                return block.read(at)
            except (OSError, DataChanged):
                with self._get_lock():
                    self._blocks.close(number)
        with self._get_lock():
            return self._rows.read(number, at)

    def num_bytes(self, row: int) -> int:
        """Return the size of an image in bytes, 0 where there are none."""
        with self._get_lock():
            if self._rows.sizes[row] < 0 and not self._measured:
                saved = load_sizes(self.names, self.column, len(self._rows.sizes))
                if saved is not None:
                    self._rows.sizes[:] = saved
            if self._rows.sizes[row] < 0:
                self._measure(self._locate(row)[0])
            return int(self._rows.sizes[row])

    def _measure(self, number: int) -> None:
        """Find the sizes of all images of a row group; those of all are saved."""
        group = self.groups[number]
        sizes = self._rows.sizes[group.end - group.num_rows : group.end]
        block = self._blocks.find(number, writes=self.fits)
        if block is not None:
            sizes[:] = np.maximum(block.sizes, 0)
        else:
            try:
                for _ in self._rows.decode(number):
                    pass
            except list_errors() as error:
                if getattr(error, "errno", None) is not None:
                    raise
                # Damaged: what was not reached has no size, and is not looked for again.
                np.maximum(sizes, 0, out=sizes)
        self._measured.add(number)
        if len(self._measured) == len(self.groups):
            save_sizes(self.names, self.column, self._rows.sizes)

    @property
    def fits(self) -> bool:
        """Whether all images fit into the cache at once."""
        return self.cache.fits(sum(group.num_bytes for group in self.groups))

    @property
    def num_cached_blocks(self) -> int:
        """How many row groups the cache holds at once."""
        if self.fits:
            return len(self.groups)
        size = max(CACHE_BYTES, self.cache.room.max_bytes)
        return int(size // max(1, *(group.num_bytes for group in self.groups)))

    def explain_slowness(self) -> str:
        """Say in a sentence why images are slow to read in random order; empty where they are not."""
        num_bytes = sum(group.num_bytes for group in self.groups)
        room = self.cache.room
        if (
            num_bytes <= CACHE_BYTES or self.cache.max_bytes == 0
        ):  # all in memory, or as it is wished
            return ""
        largest = max(group.num_bytes for group in self.groups)
        if not can_write(room.folder):
            why, hint = (
                f"the cache {room.folder} cannot be written",
                "--cache-dir names another folder",
            )
        elif not self.cache.fits(largest):
            size = f"{largest / 2**20:,.0f} MiB, the cache {room.max_bytes / 2**20:,.0f}"
            why, hint = f"a row group has {size}", "--cache-size makes it larger"
        else:
            return ""
        return f"{why}, so that each process decodes row groups anew, in memory; {hint}."

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: a row group is decoded when the first of its images is read."""

    def list_first(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the first of some rows in some row groups, spread over all of them."""
        groups = self.find_blocks(rows)
        used = np.unique(groups)
        chosen = used[np.linspace(0, len(used) - 1, min(len(used), NUM_GROUPS)).astype(np.int64)]
        return np.concatenate(
            [np.flatnonzero(groups == g)[:QUICK_ROWS] for g in chosen] or [np.arange(0)]
        )

    def _count_quick(self, number: int) -> int:
        """Return how many rows of a row group are decoded alone, in memory, for a quick look at the first."""
        return min(QUICK_ROWS, self.groups[number].num_rows // QUICK_SHARE)

    def find_blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the number of the row group that each row is in."""
        return np.searchsorted(self.ends, rows, side="right").astype(np.int32)

    def _get_lock(self) -> threading.Lock:
        if self._process != os.getpid():
            self._start()
        return self._lock

    def _locate(self, row: int) -> tuple[int, int]:
        number = bisect.bisect_right(self.ends, row)
        group = self.groups[number]
        return number, row - (group.end - group.num_rows)


def open_images(files: Sequence[ParquetFile], column: str, cache: BlockCache) -> ImageColumn:
    """Open the images of a column of some files of one schema.

    Args:
        files: Parquet files, on a disk or in a store.
        column: name of the column.
        cache: where row groups are decoded to once.

    Raises:
        DataError: one of them cannot be read.
    """
    groups, names, end, largest = list[Group](), list[str](), 0, 1
    for at, file in enumerate(files):
        with named_errors(file.path):
            names.append(name_content(open_place(file.place)))
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                end += group.num_rows
                size = measure_column(group, column)
                groups.append(Group(at, number, group.num_rows, end, size))
                largest = max(largest, size)
    # No image is larger than its encoded group, though a dictionary may repeat it in every row.
    block_rows = min(BLOCK_ROWS, max(1, BLOCK_BYTES // largest))
    return ImageColumn([file.place for file in files], column, groups, block_rows, names, cache)


def name_content(file: StoredFile) -> str:
    """Return what names the content of a Parquet file, on every host that has it: identity and footer.

    Of one in a store its address and version, without a request.
    """
    if isinstance(file, RemoteFile):
        return hashlib.sha256(file.content_name.encode()).hexdigest()[:32]
    identity = repr(tuple(file.identity)).encode()
    tail = file.read(max(0, file.size - 8), 8)
    length = int.from_bytes(tail[:4], "little")
    footer = file.read(max(0, file.size - 8 - length), length + 8) if length < file.size else tail
    return hashlib.sha256(identity + footer).hexdigest()[:32]
