"""Reader of Parquet files: what is in their columns, and images that are stored in one of them.

The hub's data sets have a column of structs of `bytes` and `path`, and the names of classes in the
metadata of the schema. A column of the images' bytes alone is read too.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.layout import match_split
from deitctl.data.open_file import OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"
CACHE_BYTES = 256 * 2**20
"""Of decoded row groups that a process keeps; one is always kept."""
MAX_GROUP_BYTES = 2 * 2**30
"""Of a row group, which is decoded whole for each image of it that is not in the cache."""
BYTES, PATH = "bytes", "path"


@dataclass(frozen=True)
class ParquetSchema:
    """What a Parquet file has in its columns."""

    names: tuple[str, ...]
    images: tuple[int, ...]
    """Places of columns that may hold images: bytes, or structs with bytes."""
    structs: frozenset[int]
    """Places of those that are structs."""
    paths: tuple[int, ...]
    """Places of columns of structs with paths and no bytes."""
    class_names: Mapping[int, tuple[str, ...]]
    """Names of the classes that numbers in a column stand for, by the column's place."""
    num_bytes: int
    """Of all columns, decoded."""

    def name_parts(self, places: Sequence[int]) -> dict[int, str]:
        """Return what is read of some columns to have text: of structs the path."""
        structs = {*self.structs, *self.paths}
        return {at: self.names[at] + (f".{PATH}" if at in structs else "") for at in places}


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
                reader = _open_reader(file)
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
        except _list_errors():
            return 0

    def read_bytes(self, index: int) -> bytes:
        row = int(self.rows[index])
        try:
            data = read_patiently(lambda: self.images.read(row), self.title)
        except _list_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise_read_error(self.name(index), error)
            # pyarrow reports damage as an OSError without a number.
            why = " ".join(str(error).split())[:120]
            raise DataError(f"{self.name(index)} cannot be read: {why}.") from error
        if data is None:
            raise DataError(f"{self.name(index)} has no bytes.")
        require_bytes(len(data), self.name(index))
        return data


def is_parquet(path: Path) -> bool:
    """Whether a file begins as a Parquet file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_schema(path: Path) -> ParquetSchema:
    """Return what a Parquet file has in its columns.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    with _named_errors(path):
        import pyarrow.types as types

        reader = _open_reader(OpenFile(str(path)))
        schema, metadata = reader.schema_arrow, reader.metadata
        images, paths, structs = [], [], set()
        for at, field in enumerate(schema):
            inner = field.type
            if types.is_struct(inner):
                parts = {part.name: part.type for part in _list_fields(field)}
                inner = parts.get(BYTES, inner)
                if PATH in parts and _has_paths_alone(reader, field):
                    paths.append(at)
                    continue
                structs.add(at)
            is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
            if any(check(inner) for check in is_bytes):
                images.append(at)
        groups = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    if max(groups, default=0) > MAX_GROUP_BYTES and images:
        raise DataError(
            f"{path} has a row group of {max(groups) / 2**30:.1f} GiB, which would be held in memory.",
            "Write it anew with row_group_size=1000.",
        )
    names = tuple(schema.names)
    class_names = _read_class_names(schema, names)
    return ParquetSchema(
        names, tuple(images), frozenset(structs), tuple(paths), class_names, sum(groups)
    )


def _read_class_names(schema: Any, names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the hub's names of classes, by the place of their column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    class_names = {}
    for at, name in enumerate(names):
        feature = features.get(name) if isinstance(features, dict) else None
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            listed = feature.get("names")
            if isinstance(listed, list) and all(isinstance(n, str) for n in listed):
                class_names[at] = tuple(listed)
    return class_names


def read_rows(path: Path, columns: Mapping[int, str]) -> Iterator[list[Any]]:
    """Yield the values of some columns of each row; those of the other columns are empty.

    Args:
        path: the file.
        columns: what is read of a column, by its place: its name, or `name.path` of a struct.
    """
    with _named_errors(path):
        reader = _open_reader(OpenFile(str(path)))
        width = len(reader.schema_arrow.names)
        for batch in reader.iter_batches(columns=list(columns.values()), use_threads=False):
            taken = {
                at: _flatten(batch.column(reader.schema_arrow.names[at])).to_pylist()
                for at in columns
            }
            for number in range(batch.num_rows):
                row: list[Any] = [""] * width
                for at, values in taken.items():
                    row[at] = _to_text(values[number])
                yield row


def _has_paths_alone(reader: Any, field: Any) -> bool:
    """Whether structs have paths and no bytes, by their type or else by the first row."""
    if BYTES not in [part.name for part in _list_fields(field)]:
        return True
    batches = reader.iter_batches(1, columns=[field.name], use_threads=False)
    first = next(iter(batches), None)
    value = None if first is None or not first.num_rows else first.column(0)[0].as_py()
    return value is not None and value[BYTES] is None and bool(value[PATH])


def _list_fields(field: Any) -> list[Any]:
    return [field.type.field(n) for n in range(field.type.num_fields)]


def name_images(paths: Sequence[Path], names: Sequence[StringArray]) -> StringArray:
    """Return unique names of images: those that all of them have, else file and row.

    Args:
        paths: files.
        names: of the images in each, empty where they have none.
    """
    given = [name.replace("\\", "/").removeprefix("/") for file in names for name in file]
    if all(given) and len(set(given)) == len(given):
        return StringArray.from_strings(given)
    rows = (
        (path.stem, number)
        for path, file in zip(paths, names, strict=True)
        for number in range(len(file))
    )
    return StringArray.from_strings(f"{stem}/{number}" for stem, number in rows)


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of a folder by part of the data, as the hub has them; empty for none.

    They lie in it, in `data/` or in `default/`, or there in a folder of a part. The part is what the
    name begins with (`train-00000-of-00002.parquet`), or that of the folder.
    """
    for place in (folder, folder / "data", folder / "default"):
        files = sorted([*place.glob("*.parquet"), *place.glob("*/*.parquet")])
        if files:
            break
    else:
        return {}
    parts: dict[str, list[Path]] = {}
    for file in files:
        name = re.sub(r"(-\d+-of-\d+)?$", "", file.stem)
        part = match_split(name) or (
            match_split(file.parent.name) if file.parent != place else None
        )
        parts.setdefault(part or "", []).append(file)
    if len(parts) > 1 and "" in parts:
        raise DataError(
            f"{folder} has {parts[''][0].name} beside files of splits.",
            "Name its files after the splits, such as train-00000-of-00001.parquet, or move it away.",
        )
    return parts


def open_images(paths: Sequence[Path], column: str) -> ImageColumn:
    """Open the images of a column of some files of one schema."""
    files, ends = [], [0]
    for path in paths:
        with _named_errors(path):
            files.append(OpenFile(os.path.abspath(path)))
            metadata = _open_reader(files[-1]).metadata
            for number in range(metadata.num_row_groups):
                ends.append(ends[-1] + metadata.row_group(number).num_rows)
    return ImageColumn(files, column, ends[1:])


def _open_reader(file: OpenFile) -> Any:
    import pyarrow
    import pyarrow.parquet

    # pre_buffer reads in threads, which a forked process would wait for in vain.
    return pyarrow.parquet.ParquetFile(
        pyarrow.PythonFile(_FileView(file), mode="r"), pre_buffer=False
    )


def _flatten(values: Any) -> Any:
    """Return the only field of structs that were read in part."""
    import pyarrow.types as types

    return values.flatten()[0] if types.is_struct(values.type) else values


def _take_bytes(values: Any) -> Any:
    """Return the bytes of a column of bytes, or of structs that have them."""
    import pyarrow
    import pyarrow.types as types

    if types.is_struct(values.type):
        at = values.type.get_field_index(BYTES)
        chunks = [chunk.flatten()[at] for chunk in values.chunks]
        values = pyarrow.chunked_array(chunks, type=values.type.field(at).type)
    return values.cast(pyarrow.large_binary())


def _to_text(value: object) -> str:
    """Return a value as text, empty for one that is missing."""
    return "" if value is None or value != value else str(value)


def _list_errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises on a file that is damaged or cannot be read."""
    import pyarrow

    return OSError, ValueError, pyarrow.ArrowException


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        errors = _list_errors()
    except ImportError as error:
        raise DataError(
            "Parquet tables need pyarrow.", "Install it: `pip install pyarrow`."
        ) from error
    try:
        yield
    except errors as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error
