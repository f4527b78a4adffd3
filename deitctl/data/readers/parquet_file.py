"""Files as pyarrow reads them: by offset, without threads, of a disk or a store; and what it raises on damage."""

from __future__ import annotations

import bisect
import errno
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deitctl.data.open_file import Identity, OpenFile
from deitctl.data.reading import raise_read_error
from deitctl.data.stores.stored_file import StoredFile
from deitctl.errors import DataError

BUFFER_BYTES = 2**20
"""Of a column that are read at a time."""
RANGE_BYTES = 8 * 2**20
"""Of a column of a remote file that are one request."""
NUM_AHEAD, BYTES_AHEAD = 32, 64 * 2**20
"""Such requests, and their bytes, that are under way while one is read."""
Place = tuple[str, Identity] | StoredFile
"""Of a file: on a disk its path and identity, because few are open at a time; else the remote file."""
CUT = "magic bytes not found in footer"
"""What pyarrow says of a file that has no end."""
WIDTH = 120
"""Characters of a message of pyarrow's that are shown."""


class FileView:
    """A stored file as pyarrow reads it; it has a position of its own, so that processes may share it."""

    def __init__(self, file: StoredFile) -> None:
        self.file, self.position, self.closed = file, 0, False
        self._ranges: list[tuple[int, int]] = []
        self._current: tuple[int, bytes] = (0, b"")

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Announce ranges (offset, size) of a remote file that will be read from now on, in this order.

        Each is then one request, and the next ones are under way meanwhile.
        """
        if isinstance(self.file, OpenFile):
            return
        size = self.file.size
        self._ranges = sorted(
            (start + at, min(RANGE_BYTES, length - at))
            for start, length in ranges
            if 0 <= start < start + length <= size  # a footer may lie
            for at in range(0, length, RANGE_BYTES)
        )
        self._current = 0, b""
        self._read_ahead(0)

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self.file.size - self.position)
        data = self._read_at(self.position, rest if size < 0 else min(size, rest))
        self.position += len(data)
        return data

    def _read_at(self, offset: int, size: int) -> bytes:
        number = bisect.bisect_right(self._ranges, (offset, self.file.size)) - 1
        if number < 0 or offset + size > sum(self._ranges[number]):
            return self.file.read(offset, size)
        start, length = self._ranges[number]
        if self._current[0] != start or not self._current[1]:
            self._read_ahead(number)
            self._current = start, self.file.read(start, length)
        return self._current[1][offset - start : offset - start + size]

    def _read_ahead(self, number: int) -> None:
        """Start to read ranges from one on, as many as may be under way."""
        ahead = self._ranges[number : number + NUM_AHEAD]
        ends = itertools.accumulate(size for _, size in ahead)
        self.file.prefetch([r for r, end in zip(ahead, ends, strict=True) if end <= BYTES_AHEAD])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.size}
        self.position = base[whence] + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def size(self) -> int:
        return self.file.size

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


def get_place(file: StoredFile) -> Place:
    """Return where a file is opened again."""
    return (os.path.abspath(file.path), file.identity) if isinstance(file, OpenFile) else file


def open_place(place: Place) -> StoredFile:
    """Open a file again; raise `DataChanged` if it is another, `OSError` if it cannot be read."""
    return OpenFile(*place) if isinstance(place, tuple) else place


def open_reader(file: StoredFile, metadata: Any = None) -> Any:
    """Open a file of Parquet in pyarrow, so that it is read without threads; its `view` is the file.

    Args:
        file: the file.
        metadata: of its footer, if that has been read.

    Raises:
        Exception: one of `list_errors`, if it is damaged or cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    view = FileView(file)
    # pre_buffer reads in threads, which a forked process would wait for in vain.
    reader = pyarrow.parquet.ParquetFile(
        pyarrow.PythonFile(view, mode="r"),
        metadata=metadata,
        pre_buffer=False,
        buffer_size=BUFFER_BYTES,
    )
    reader.view = view
    return reader


def list_ranges(metadata: Any, group: int, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Return offset and size of some columns in a row group.

    Args:
        metadata: of the file, as pyarrow has it.
        group: number of the row group.
        columns: names, or dotted paths of parts of structs.
    """
    return [
        # where there is no dictionary, its offset is None, or 0 in older files
        (
            min(chunk.data_page_offset, chunk.dictionary_page_offset or 2**63),
            chunk.total_compressed_size,
        )
        for name in columns
        for chunk in _list_chunks(metadata.row_group(group), name)
    ]


def measure_column(row_group: Any, column: str) -> int:
    """Return the bytes of a column in a row group of pyarrow's metadata, without compression."""
    return sum(max(0, chunk.total_uncompressed_size) for chunk in _list_chunks(row_group, column))


def count_nulls(metadata: Any, column: str) -> int | None:
    """Return the rows of the first row group that have no value in a column; None if the file does not count them."""
    chunks = _list_chunks(metadata.row_group(0), column) if metadata.num_row_groups else []
    statistics = chunks[0].statistics if chunks else None
    if statistics is None or not statistics.has_null_count:
        return None
    return int(statistics.null_count)


def _list_chunks(row_group: Any, column: str) -> list[Any]:
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    return [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")]


def list_errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises on a file that is damaged or cannot be read."""
    import pyarrow

    return OSError, ValueError, pyarrow.ArrowException


@contextmanager
def named_errors(path: object, kind: str = "parquet") -> Iterator[None]:
    """Raise what pyarrow reports of a file, or its absence, as a `DataError`."""
    try:
        errors = list_errors()
    except ImportError as error:
        raise DataError(
            f"{kind.capitalize()} files need pyarrow.", "Install it: `pip install pyarrow`."
        ) from error
    try:
        yield
    except errors as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:  # fsspec's
            raise DataError(f"There is nothing at {path}.") from error
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise_read_error(str(path), error)
        raise DataError(
            f"{path} is not a readable {kind} file: {describe_damage(error)}.",
            "Copy or download it again.",
        ) from error


def describe_damage(error: Exception) -> str:
    """Return what pyarrow says in one line; it reports damage as an `OSError` without a number."""
    text = " ".join(str(error).split())
    if CUT in text:
        return "it is cut short, or no Parquet file"
    return text[:WIDTH].rstrip(".")
