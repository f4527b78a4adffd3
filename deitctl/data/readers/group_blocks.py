"""Row groups in the cache of blocks: decoded once for all processes, and then read at random.

A block is the sizes of the images, int64 [rows], -1 for one without bytes; then their bytes one after another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from deitctl.data.readers.parquet_file import list_errors
from deitctl.data.readers.row_groups import RowGroups
from deitctl.data.stores.block_cache import BlockCache, CachedBlock
from deitctl.data.stores.cache_room import CacheFailed

VERSION = 1
"""Of the form of a block."""
PIECE_BYTES = 2**22
"""That are written at a time: for each piece the cache makes room."""
MAX_OPEN = 128
"""Blocks that a process keeps open."""
MAX_OPEN_BYTES = 2**30
"""Bytes that they have together: the disk has those of an open file until it is closed, deleted or not."""


class GroupBlock:
    """The images of a row group, in a file of the cache."""

    def __init__(self, file: CachedBlock, num_rows: int) -> None:
        """Read where the images are.

        Raises:
            OSError, ValueError: it cannot be read, or is damaged.
        """
        self.file = file
        head = file.read(0, 8 * num_rows)
        if len(head) < 8 * num_rows:
            raise ValueError("it is cut short")
        self.sizes = np.frombuffer(head, "<i8", num_rows)
        self._ends = len(head) + np.cumsum(np.maximum(self.sizes, 0))
        if num_rows and (self.sizes.min() < -1 or self._ends[-1] != file.size):
            raise ValueError("its sizes are not those of its images")

    def read(self, at: int) -> bytes | None:
        """Return the bytes of an image, None where there are none.

        Raises:
            OSError, DataChanged: they cannot be read, or are damaged.
        """
        size = int(self.sizes[at])
        return None if size < 0 else self.file.read(int(self._ends[at]) - size, size)


class GroupBlocks:
    """The blocks of some row groups. It belongs to one process, and to one thread at a time."""

    def __init__(self, groups: RowGroups, cache: BlockCache, names: Sequence[str]) -> None:
        """Describe blocks.

        Args:
            groups: what is decoded.
            cache: where the blocks are.
            names: of each file what names its content.
        """
        self.groups, self.cache, self.names = groups, cache, tuple(names)
        self._open: OrderedDict[int, GroupBlock] = OrderedDict()
        self._unusable: set[int] = set()

    def find(self, number: int, *, writes: bool) -> GroupBlock | None:
        """Return the block of a row group; None if it has to be decoded in memory.

        Args:
            number: of the row group.
            writes: whether it is decoded into the cache if it is not there.

        Raises:
            OSError: it cannot be read now.
            DataChanged: its file is another than it was.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if number in self._unusable:
            return None
        try:
            block = self._get(number, writes=writes)
        except list_errors() as error:
            if getattr(error, "errno", None) is not None and not isinstance(error, CacheFailed):
                raise  # the data's disk or store, which is waited for
            # Damage, a full disk: what can be read in memory is, and the rest says why it cannot.
            self._unusable.add(number)
            return None
        if block is not None:
            self._close_some(block.file.size)
            self._open[number] = block
        return block

    def _close_some(self, more_bytes: int) -> None:
        """Close blocks that made room for others in the cache, and the oldest where too many are open."""
        for number in [n for n, block in self._open.items() if block.file.is_deleted]:
            del self._open[number]
        num_bytes = sum(block.file.size for block in self._open.values()) + more_bytes
        while self._open and (len(self._open) >= MAX_OPEN or num_bytes > MAX_OPEN_BYTES):
            num_bytes -= self._open.popitem(last=False)[1].file.size

    def close(self, number: int) -> None:
        """Forget an open block, which is damaged: it is written anew if it is needed again."""
        self._open.pop(number, None)

    def _get(self, number: int, *, writes: bool) -> GroupBlock | None:
        group = self.groups.groups[number]
        name = self.names[group.file]
        key = f"rows {VERSION} {name} {self.groups.column} {group.number}"
        file = self.cache.find(key)
        if file is None and writes:
            if not self.cache.fits(group.num_bytes):
                return None  # without decoding it in vain
            file = self.cache.get(
                key,
                lambda to: write_block(self.groups.decode(number), group.num_rows, to),
                reads_blocks=True,
            )
        return None if file is None else GroupBlock(file, group.num_rows)


def write_block(values: Iterator[Any], num_rows: int, file: BinaryIO) -> None:
    """Write the images of a row group as a block.

    Args:
        values: arrays of large binary, of all its rows.
        num_rows: number of them.
        file: an empty one.
    """
    import pyarrow.compute

    sizes, at = np.full(num_rows, -1, "<i8"), 0
    pieces = bytearray(sizes.tobytes())
    for array in values:
        lengths = pyarrow.compute.binary_length(array).fill_null(-1)
        sizes[at : at + len(array)] = lengths.to_numpy(zero_copy_only=False)
        at += len(array)
        for value in array.drop_null():
            pieces += memoryview(value.as_buffer())
        if len(pieces) >= PIECE_BYTES:
            file.write(pieces)
            pieces = bytearray()
    file.write(pieces)
    file.seek(0)
    file.write(sizes.tobytes())
