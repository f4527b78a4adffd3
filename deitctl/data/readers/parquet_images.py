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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.open_file import OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow

CACHE_BYTES = 256 * 2**20
"""Of decoded row groups that a process keeps; one is always kept."""
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


class ImageColumn:
    """The images of a column of some files, read by row group; safe for threads and processes."""

    def __init__(self, files: Sequence[OpenFile], column: str, ends: Sequence[int]) -> None:
        """Describe a column.

        Args:
            files: Parquet files of one schema.
            column: name of the column.
            ends: number of rows up to the end of each row group, over all files.
        """
        self.files, self.column, self.ends = tuple(files), column, tuple(ends)
        self._start()

    def __reduce__(self) -> Any:
        return ImageColumn, (self.files, self.column, self.ends)

    def _start(self) -> None:
        # A forked process has neither the parent's threads, which may hold the lock, nor its readers.
        self._process, self._lock = os.getpid(), threading.Lock()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._sizes: dict[int, NDArray[np.int64]] = {}
        self._readers: list[tuple[int, Any]] = []

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image, None where there are none.

        Raises:
            OSError: they cannot be read.
            DataChanged: a file is another than it was.
        """
        with self._get_lock():
            number, at = self._locate(row)
            value: bytes | None = self._get_group(number)[at].as_py()
            return value

    def num_bytes(self, row: int) -> int:
        """Return the size of an image in bytes."""
        with self._get_lock():
            number, at = self._locate(row)
            if number not in self._sizes:
                self._get_group(number)
            return int(self._sizes[number][at])

    def _get_lock(self) -> threading.Lock:
        if self._process != os.getpid():
            self._start()
        return self._lock

    def _locate(self, row: int) -> tuple[int, int]:
        number = bisect.bisect_right(self.ends, row)
        return number, row - (self.ends[number - 1] if number else 0)

    def _get_group(self, number: int) -> pyarrow.ChunkedArray:
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        import pyarrow.compute

        values = self._read_group(number)
        lengths = pyarrow.compute.binary_length(values).fill_null(0)
        self._sizes[number] = lengths.to_numpy().astype(np.int64)
        self._groups[number] = values
        while len(self._groups) > 1 and self._count_bytes() > CACHE_BYTES:
            self._groups.popitem(last=False)
        return values

    def _count_bytes(self) -> int:
        return sum(values.nbytes for values in self._groups.values())

    def _read_group(self, number: int) -> pyarrow.ChunkedArray:
        if not self._readers:
            for file in self.files:
                reader = open_reader(file)
                self._readers += [(n, reader) for n in range(reader.num_row_groups)]
        within, reader = self._readers[number]
        # One thread: those of a library do not survive a fork.
        values = reader.read_row_group(within, columns=[self.column], use_threads=False).column(0)
        return _take_bytes(values)


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

    def name(self, index: int) -> str:
        return f"{self.title}:{self.names[index]}"

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def num_bytes(self, index: int) -> int:
        try:
            return self.images.num_bytes(int(self.rows[index]))
        except list_errors():
            return 0

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
    files, ends = [], [0]
    for path in paths:
        with named_errors(path):
            files.append(OpenFile(os.path.abspath(path)))
            metadata = open_reader(files[-1]).metadata
            for number in range(metadata.num_row_groups):
                ends.append(ends[-1] + metadata.row_group(number).num_rows)
    return ImageColumn(files, column, ends[1:])


def open_reader(file: OpenFile) -> Any:
    """Open a file of Parquet in pyarrow, so that it is read without threads."""
    import pyarrow
    import pyarrow.parquet

    # pre_buffer reads in threads, which a forked process would wait for in vain.
    return pyarrow.parquet.ParquetFile(
        pyarrow.PythonFile(_FileView(file), mode="r"), pre_buffer=False
    )


def _take_bytes(values: Any) -> Any:
    """Return the bytes of a column of bytes, or of structs that have them."""
    import pyarrow
    import pyarrow.types as types

    if types.is_struct(values.type):
        at = values.type.get_field_index(BYTES)
        chunks = [chunk.flatten()[at] for chunk in values.chunks]
        values = pyarrow.chunked_array(chunks, type=values.type.field(at).type)
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
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error
