"""The bytes of a column of Parquet files, decoded by row group; blocks of rows stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deitctl.data.readers.parquet_file import Place, list_ranges, open_place, open_reader

CACHE_BYTES = 256 * 2**20
"""Of decoded images that a process keeps in memory; one block is always kept."""
BLOCK_ROWS = 16
BLOCK_BYTES = 256 * 2**20
"""That a block of rows may have at most, unless an image alone has more."""
MIN_LIMIT, REPEATED = 64 * 2**20, 4
"""Bytes that a row group may have at least, and how often those that it has in its file: a dictionary may
repeat an image in each row."""
MAX_OPEN, MAX_CURSORS = 12, 4
"""Files, and row groups that are decoded in part, of which a process keeps the last."""
BYTES, PATH = "bytes", "path"
"""Parts of the structs in a column of images."""


class Group(NamedTuple):
    """A row group of some files."""

    file: int
    """Place of its file."""
    number: int
    """Its own, in its file."""
    num_rows: int
    end: int
    """Number of rows in all files up to its end."""
    num_bytes: int
    """Of the column in it, encoded."""


@dataclass
class _Cursor:
    """How far a row group is decoded."""

    blocks: Iterator[Any]
    next_block: int = 0


class RowGroups:
    """The row groups of a column of some files. It belongs to one process, and to one thread at a time.

    A block of rows is decoded from the beginning of its row group on, and the place that was reached
    is kept: rows that are read in order are decoded once.
    """

    def __init__(
        self, places: Sequence[Place], column: str, groups: Sequence[Group], block_rows: int
    ) -> None:
        """Describe row groups.

        Args:
            places: Parquet files of one schema.
            column: name of the column.
            groups: their row groups, in order.
            block_rows: rows that are decoded at a time.
        """
        self.places, self.column, self.groups = tuple(places), column, tuple(groups)
        self.block_rows = block_rows
        self.sizes = np.full(groups[-1].end if groups else 0, -1, np.int64)
        """Of each value in bytes, [rows of all files]; -1: not known yet, 0: there is none."""
        self._blocks: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._num_bytes = 0
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()

    def read(self, number: int, at: int) -> bytes | None:
        """Return the value of a row of a row group, None where it has none.

        Raises:
            Exception: one of `list_errors`, if it cannot be read.
            DataChanged: a file is another than it was.
        """
        block, row = divmod(at, self.block_rows)
        value: bytes | None = self._get_block(number, block)[row].as_py()
        return value

    def decode(self, number: int) -> Iterator[Any]:
        """Yield the blocks of a row group, arrays of large binary.

        Raises:
            Exception: one of `list_errors`, if it is damaged, or cannot be read.
        """
        import pyarrow.compute

        group = self.groups[number]
        reader = self._open(group.file)
        reader.view.expect(list_ranges(reader.metadata, group.number, [self.column]))
        # One thread: those of a library do not survive a fork.
        batches = reader.iter_batches(
            self.block_rows, row_groups=[group.number], columns=[self.column], use_threads=False
        )
        rest, limit = group.num_rows, MIN_LIMIT + REPEATED * group.num_bytes
        while rest:
            batch = next(batches, None)
            # A row is identified by its number alone.
            if batch is None or batch.num_rows != min(self.block_rows, rest):
                raise ValueError("it has other rows than its metadata say")
            values = take_bytes(batch.column(0))
            lengths = pyarrow.compute.binary_length(values).fill_null(0)
            limit -= values.nbytes
            if limit < 0:
                raise ValueError("a dictionary repeats images in its row group too often")
            at = group.end - rest
            self.sizes[at : at + len(values)] = lengths.to_numpy(zero_copy_only=False)
            rest -= batch.num_rows
            yield values

    def _get_block(self, number: int, block: int) -> Any:
        if (number, block) in self._blocks:
            self._blocks.move_to_end((number, block))
            return self._blocks[number, block]
        cursor = self._cursors.pop(number, None)
        if cursor is None or cursor.next_block > block:
            cursor = _Cursor(self.decode(number))
        values = None
        while cursor.next_block <= block:
            values = next(cursor.blocks)
            self._keep(number, cursor.next_block, values)
            cursor.next_block += 1
        self._cursors[number] = cursor
        while len(self._cursors) > MAX_CURSORS:
            self._cursors.popitem(last=False)
        return values

    def _keep(self, number: int, block: int, values: Any) -> None:
        if (number, block) not in self._blocks:
            self._num_bytes += values.nbytes
        self._blocks[number, block] = values
        while len(self._blocks) > 1 and self._num_bytes > CACHE_BYTES:
            self._num_bytes -= self._blocks.popitem(last=False)[1].nbytes

    def _open(self, number: int) -> Any:
        reader = self._readers.pop(number, None)
        if reader is None:
            reader = open_reader(open_place(self.places[number]))
        self._readers[number] = reader
        while len(self._readers) > MAX_OPEN:
            self._readers.popitem(last=False)
        return reader


def take_bytes(values: Any) -> Any:
    """Return the bytes of a column of bytes, or of structs that have them."""
    import pyarrow
    import pyarrow.types as types

    if types.is_struct(values.type):
        values = values.flatten()[values.type.get_field_index(BYTES)]
    return values.cast(pyarrow.large_binary())
