"""Arrow files as tables, as `datasets.save_to_disk` writes them: streams, and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deitctl.data.readers.arrow_arrays import Place as ColumnPlace
from deitctl.data.readers.arrow_arrays import (
    enter,
    has_dictionary,
    list_places,
    read_array,
    read_spans,
)
from deitctl.data.readers.arrow_messages import (
    MAGIC,
    RECORD_BATCH,
    SCHEMA,
    Batch,
    is_big_endian,
    read_batch,
    read_messages,
    read_schema,
)
from deitctl.data.readers.columnar_file import BATCH_ROWS, ColumnarFile, list_values
from deitctl.data.readers.columnar_schema import (
    describe_schema,
    list_parts,
    require_different_names,
)
from deitctl.data.readers.parquet_file import FileView, Place, get_place, named_errors, open_place
from deitctl.data.readers.row_groups import BYTES, PATH
from deitctl.data.stores.address import is_remote, redact
from deitctl.data.stores.stored_file import StoredFile, open_stored
from deitctl.errors import DataError
from deitctl.paths import read_json

SUFFIXES = (".arrow", ".feather", ".ipc")
INFO = "dataset_info.json"
"""Of a data set that was saved, beside its files."""
KIND = "Arrow"


_Arrays = tuple[dict[int, Any], int]
"""Columns by place, and their rows."""


@dataclass(frozen=True)
class ArrowFile(ColumnarFile):
    """A file of Arrow."""

    place: Place = field(kw_only=True)
    batches: Sequence[Batch] = field(kw_only=True)
    places: Sequence[ColumnPlace] = field(kw_only=True)
    """Where each column begins among those of a batch."""

    def read_rows(
        self, columns: Mapping[int, str], batch_rows: int = BATCH_ROWS
    ) -> Iterator[list[Any]]:
        with named_errors(self.path, KIND):
            file = open_place(self.place)
            is_coded = any(has_dictionary(self.places[at].kind) for at in columns)
            read = self._read_batches if is_coded else self._read_columns
            for arrays, num_rows in read(file, columns):
                for start in range(0, num_rows, batch_rows):
                    count = min(batch_rows, num_rows - start)
                    taken = {at: array.slice(start, count) for at, array in arrays.items()}
                    yield from list_values(taken, len(self.schema.names), count)

    def _read_columns(self, file: StoredFile, columns: Iterable[int]) -> Iterator[_Arrays]:
        """Yield columns of each batch, without reading the others."""
        parts = {
            at: enter(self.places[at], PATH) if at in self.schema.named else self.places[at]
            for at in columns
        }
        for batch in self.batches:
            arrays = {at: read_array(file, batch, part) for at, part in parts.items()}
            yield arrays, batch.num_rows

    def _read_batches(self, file: StoredFile, columns: Iterable[int]) -> Iterator[_Arrays]:
        """Yield columns of each batch, which is read as a whole with its dictionaries."""
        import pyarrow.ipc

        is_stream = file.read(0, len(MAGIC)) != MAGIC
        view = pyarrow.PythonFile(FileView(file), mode="r")
        reader = pyarrow.ipc.open_stream(view) if is_stream else pyarrow.ipc.open_file(view)
        count = len(self.batches)
        for number in range(count):
            batch = reader.read_next_batch() if is_stream else reader.get_batch(number)
            batch.validate(full=True)
            arrays = {}
            for at in columns:
                values = batch.column(at)
                is_named = at in self.schema.named
                arrays[at] = (
                    values.flatten()[values.type.get_field_index(PATH)] if is_named else values
                )
            yield arrays, batch.num_rows


def open_arrow(path: str, part: str = "") -> ArrowFile:
    """Read what an Arrow file has in its columns, and where its batches lie.

    Args:
        path: of a disk, or an address in a store.
        part: of the data that it is.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    name = redact(path)
    with named_errors(name, KIND):
        file = open_stored(path)
        schema, batches = _read_layout(file)
        require_different_names(name, schema.names)
        try:
            places = list_places(schema)
        except ValueError as error:
            raise DataError(f"{name} is not read: {error}.", _save_as_parquet(name)) from error
        if any(batch.is_compressed for batch in batches):
            raise DataError(f"{name} is compressed, which is not read.", _save_as_parquet(name))
        for batch in batches:
            _require_places(batch, places)
        num_rows = sum(batch.num_rows for batch in batches)

        def has_bytes(column: str) -> bool:
            return _has_bytes(file, batches, places[schema.names.index(column)])

        # As in Parquet: a row has a byte at least.
        if num_rows > file.size:
            raise ValueError(f"it claims {num_rows:,} rows in {file.size:,} bytes")
        described = describe_schema(schema, num_rows, has_bytes, _read_info(path))
    return ArrowFile(
        name, described, file.size, part, place=get_place(file), batches=batches, places=places
    )


def _save_as_parquet(name: str) -> str:
    return (
        f"Save it as Parquet: `datasets.Dataset.from_file({name!r}).to_parquet('train.parquet')`."
    )


def _read_layout(file: StoredFile) -> tuple[Any, list[Batch]]:
    schema, batches = None, []
    for message in read_messages(file):
        if message.kind == SCHEMA and schema is None:
            if is_big_endian(message):
                raise ValueError("its numbers are big-endian")
            schema = read_schema(message)
        elif message.kind == RECORD_BATCH:
            batches.append(read_batch(message))
    if schema is None:
        raise ValueError("it has no schema")
    return schema, batches


def _require_places(batch: Batch, places: Sequence[ColumnPlace]) -> None:
    if (len(batch.nodes), len(batch.buffers)) != (places[-1].node, places[-1].buffer):
        raise ValueError("its batches are not those of its schema")
    if (batch.nodes[[place.node for place in places[:-1]], 0] != batch.num_rows).any():
        raise ValueError("a column has another length than its batch")


def _has_bytes(file: StoredFile, batches: Sequence[Batch], place: ColumnPlace) -> bool:
    """Whether the first row of a column of structs has bytes, not a path alone."""
    if BYTES not in list_parts(place.kind):
        return False
    first = next((batch for batch in batches if batch.num_rows), None)
    return first is None or bool(read_spans(file, first, place)[1][0] >= 0)


def _read_info(path: str) -> Mapping[str, Any] | None:
    """Return what a saved data set says of its columns."""
    if is_remote(path):
        return None
    try:
        info = read_json(Path(path).parent / INFO)
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None
