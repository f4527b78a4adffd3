"""Images in a column of Parquet files, read by row group."""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.open_file import Identity, OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.errors import DataError

CACHE_BYTES = 256 * 2**20
"""Of decoded images that a process keeps; one block is always kept."""
BLOCK_ROWS = 16
BLOCK_BYTES = 256 * 2**20
"""That a block may have at most, unless an image alone has more."""
BUFFER_BYTES = 2**20
"""Of a column that are read at a time."""
MAX_OPEN, MAX_CURSORS = 12, 4
"""Files, and row groups that are decoded in part, of which a process keeps the last."""
NUM_GROUPS = 32
"""Row groups whose first images stand for all in a quick look."""
BYTES, PATH = "bytes", "path"
"""Parts of the structs in a column of images."""


class _FileView:
    """An open file as pyarrow reads it; it has a position of its own, so that processes may share it."""

    def __init__(self, file: OpenFile) -> None:
        self.file, self.position, self.closed = file, 0, False

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.file.identity[1] - self.position)
        data = self.file.read(self.position, rest if size < 0 else min(size, rest))
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.identity[1]}
        self.position = base[whence] + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def size(self) -> int:
        return self.file.identity[1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Group(NamedTuple):
    """A row group of some files."""

    file: int
    """Place of its file."""
    number: int
    """Its own, in its file."""
    num_rows: int
    end: int
    """Number of rows in all files up to its end."""


@dataclass
class _Cursor:
    """How far a row group is decoded."""

    blocks: Iterator[Any]
    next_block: int = 0


class ImageColumn:
    """The images of a column of some files, decoded in blocks of rows; safe for threads and processes.

    A block is decoded from the beginning of its row group on, and the place that was reached is kept:
    images that are read in order are decoded once.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Identity]],
        column: str,
        groups: Sequence[Group],
        block_rows: int,
    ) -> None:
        """Describe a column.

        Args:
            files: paths and identities of Parquet files of one schema.
            column: name of the column.
            groups: their row groups, in order.
            block_rows: rows that are decoded at a time.
        """
        self.files, self.column, self.groups = tuple(files), column, tuple(groups)
        self.block_rows = block_rows
        self._ends = [group.end for group in groups]
        self._sizes = np.full(self._ends[-1] if groups else 0, -1, np.int64)
        self._start()

    def __reduce__(self) -> Any:
        return ImageColumn, (self.files, self.column, self.groups, self.block_rows)

    def _start(self) -> None:
        # A forked process has neither the parent's threads, which may hold the lock, nor its readers.
        self._process, self._lock = os.getpid(), threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._num_bytes = 0
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image, None where there are none.

        Raises:
            OSError: they cannot be read.
            DataChanged: a file is another than it was.
        """
        with self._get_lock():
            group, block, at = self._locate(row)
            value: bytes | None = self._get_block(group, block)[at].as_py()
            return value

    def num_bytes(self, row: int) -> int:
        """Return the size of an image in bytes."""
        with self._get_lock():
            if self._sizes[row] < 0:
                group, block, _ = self._locate(row)
                self._get_block(group, block)
            return int(self._sizes[row])

    def list_first(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of the first of some rows in some row groups, spread over all of them."""
        groups = np.searchsorted(self._ends, rows, side="right")
        used = np.unique(groups)
        chosen = used[np.linspace(0, len(used) - 1, min(len(used), NUM_GROUPS)).astype(np.int64)]
        return np.concatenate(
            [np.flatnonzero(groups == g)[:BLOCK_ROWS] for g in chosen] or [np.arange(0)]
        )

    def _get_lock(self) -> threading.Lock:
        if self._process != os.getpid():
            self._start()
        return self._lock

    def _locate(self, row: int) -> tuple[int, int, int]:
        number = bisect.bisect_right(self._ends, row)
        group = self.groups[number]
        return number, *divmod(row - (group.end - group.num_rows), self.block_rows)

    def _get_block(self, number: int, block: int) -> Any:
        if (number, block) in self._blocks:
            self._blocks.move_to_end((number, block))
            return self._blocks[number, block]
        cursor = self._cursors.pop(number, None)
        if cursor is None or cursor.next_block > block:
            cursor = _Cursor(self._decode(number))
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
        import pyarrow.compute

        group = self.groups[number]
        at = group.end - group.num_rows + block * self.block_rows
        lengths = pyarrow.compute.binary_length(values).fill_null(0)
        self._sizes[at : at + len(values)] = lengths.to_numpy(zero_copy_only=False)
        if (number, block) not in self._blocks:
            self._num_bytes += values.nbytes
        self._blocks[number, block] = values
        while len(self._blocks) > 1 and self._num_bytes > CACHE_BYTES:
            self._num_bytes -= self._blocks.popitem(last=False)[1].nbytes

    def _decode(self, number: int) -> Iterator[Any]:
        """Yield the blocks of a row group."""
        group = self.groups[number]
        # One thread: those of a library do not survive a fork.
        batches = self._open(group.file).iter_batches(
            self.block_rows, row_groups=[group.number], columns=[self.column], use_threads=False
        )
        rest = group.num_rows
        while rest:
            batch = next(batches, None)
            # Rows are found by their number alone.
            if batch is None or batch.num_rows != min(self.block_rows, rest):
                raise ValueError("it has other rows than its metadata say")
            rest -= batch.num_rows
            yield _take_bytes(batch.column(0))

    def _open(self, number: int) -> Any:
        reader = self._readers.pop(number, None) or open_reader(OpenFile(*self.files[number]))
        self._readers[number] = reader
        while len(self._readers) > MAX_OPEN:
            self._readers.popitem(last=False)
        return reader


@dataclass(frozen=True)
class ParquetDataset(ImageDataset):
    """Images in a column of Parquet files."""

    images: ImageColumn
    rows: NDArray[np.int64]
    """Row of each image, over all files, [N]."""
    names: StringArray
    """Unique names, below that of the data."""
    labels: Labels
    class_names: tuple[str, ...]
    title: str
    """The file or folder."""
    group_names: Sequence[str] | None = None

    def name(self, index: int) -> str:
        return f"{self.title}:{self.names[index]}"

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def num_bytes(self, index: int) -> int:
        try:
            return self.images.num_bytes(int(self.rows[index]))
        except list_errors():
            return 0

    def list_cheap(self) -> NDArray[np.int64]:
        return self.images.list_first(self.rows)

    def read_bytes(self, index: int) -> bytes:
        row = int(self.rows[index])
        try:
            data = read_patiently(lambda: self.images.read(row), self.title)
        except list_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise_read_error(self.name(index), error)
            # pyarrow reports damage as an OSError without a number.
            why = " ".join(str(error).split())[:120]
            raise DataError(f"{self.name(index)} cannot be read: {why}.") from error
        if data is None:
            raise DataError(f"{self.name(index)} has no bytes.")
        require_bytes(len(data), self.name(index))
        return data


def open_images(paths: Sequence[Path], column: str) -> ImageColumn:
    """Open the images of a column of some files of one schema."""
    files, groups, end, largest = [], list[Group](), 0, 1
    for at, path in enumerate(paths):
        with named_errors(path):
            file = OpenFile(os.path.abspath(path))
            files.append((file.path, file.identity))
            metadata = open_reader(file).metadata
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                end += group.num_rows
                groups.append(Group(at, number, group.num_rows, end))
                largest = max(largest, group.total_byte_size)
    # No image is larger than its encoded group, though a dictionary may repeat it in every row.
    return ImageColumn(files, column, groups, min(BLOCK_ROWS, max(1, BLOCK_BYTES // largest)))


def open_reader(file: OpenFile) -> Any:
    """Open a file of Parquet in pyarrow, so that it is read without threads."""
    import pyarrow
    import pyarrow.parquet

    # pre_buffer reads in threads, which a forked process would wait for in vain.
    return pyarrow.parquet.ParquetFile(
        pyarrow.PythonFile(_FileView(file), mode="r"), pre_buffer=False, buffer_size=BUFFER_BYTES
    )


def _take_bytes(values: Any) -> Any:
    """Return the bytes of a column of bytes, or of structs that have them."""
    import pyarrow
    import pyarrow.types as types

    if types.is_struct(values.type):
        values = values.flatten()[values.type.get_field_index(BYTES)]
    return values.cast(pyarrow.large_binary())


def list_errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises on a file that is damaged or cannot be read."""
    import pyarrow

    return OSError, ValueError, pyarrow.ArrowException


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise what pyarrow reports of a file, or its absence, as a `DataError`."""
    try:
        errors = list_errors()
    except ImportError as error:
        raise DataError(
            "Parquet tables need pyarrow.", "Install it: `pip install pyarrow`."
        ) from error
    try:
        yield
    except errors as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise_read_error(str(path), error)
        # pyarrow reports damage as an OSError without a number.
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error
