"""Parquet files as tables, of a disk or a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deitctl.data.readers.columnar_file import (
    BATCH_BYTES,
    BATCH_ROWS,
    ColumnarFile,
    list_values,
)
from deitctl.data.readers.columnar_schema import describe_schema, require_different_names
from deitctl.data.readers.parquet_file import (
    Place,
    count_nulls,
    get_place,
    list_ranges,
    measure_column,
    named_errors,
    open_place,
    open_reader,
)
from deitctl.data.readers.row_groups import BYTES, PATH
from deitctl.data.stores.address import redact
from deitctl.data.stores.stored_file import open_stored
from deitctl.errors import DataError

MAGIC = b"PAR1"
MAX_GROUP_BYTES = 2 * 2**30
"""Of a row group, which is decoded up to an image that is not in the cache."""


@dataclass(frozen=True)
class ParquetFile(ColumnarFile):
    """A file of Parquet."""

    place: Place = field(kw_only=True)
    metadata: Any = field(kw_only=True)
    """pyarrow's, of the footer, which is read once."""

    def read_rows(
        self, columns: Mapping[int, str], batch_rows: int = BATCH_ROWS
    ) -> Iterator[list[Any]]:
        with named_errors(self.path):
            reader = open_reader(open_place(self.place), self.metadata)
            names = reader.schema_arrow.names
            parts = list(columns.values())
            groups = range(self.metadata.num_row_groups)
            reader.view.expect(
                piece for group in groups for piece in list_ranges(self.metadata, group, parts)
            )
            for batch in reader.iter_batches(
                min(batch_rows, self._count_rows(parts)), columns=parts, use_threads=False
            ):
                arrays = {at: batch.column(names[at]) for at in columns}
                yield from list_values(arrays, len(names), batch.num_rows)

    def _count_rows(self, parts: list[str]) -> int:
        """Return how many rows are decoded at a time, because a dictionary may repeat a long text in each."""
        groups = (self.metadata.row_group(n) for n in range(self.metadata.num_row_groups))
        largest = max(
            (measure_column(group, part) for group in groups for part in parts), default=1
        )
        return max(1, BATCH_BYTES // max(1, largest))


def _require_counts(metadata: Any, size: int) -> None:
    """Raise `ValueError` for rows and values that a file cannot have.

    Each has a byte at least. A dictionary may repeat less, and nobody's data is that.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    counts = [metadata.num_rows, *(group.num_rows for group in groups)]
    for group in groups:
        counts += [group.column(number).num_values for number in range(group.num_columns)]
    if not 0 <= min(counts) <= max(counts) <= size:
        raise ValueError(f"it claims {max(counts):,} rows in {size:,} bytes")
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError("its row groups have other rows than it says")


def is_parquet(path: Path) -> bool:
    """Whether a file begins as a Parquet file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_parquet(path: str, part: str = "") -> ParquetFile:
    """Read what a Parquet file has in its columns.

    Args:
        path: of a disk, or an address in a store.
        part: of the data that it is.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    name = redact(path)
    with named_errors(name):
        file = open_stored(path)
        reader = open_reader(file)
        metadata = reader.metadata
        require_different_names(name, reader.schema_arrow.names)

        def has_bytes(column: str) -> bool:
            if (num_nulls := count_nulls(metadata, f"{column}.{BYTES}")) is not None:
                return num_nulls < int(metadata.row_group(0).num_rows)
            first = next(reader.iter_batches(1, columns=[column], use_threads=False), None)
            value = None if first is None or not first.num_rows else first.column(0)[0].as_py()
            return value is None or value[BYTES] is not None or not value[PATH]

        schema = describe_schema(reader.schema_arrow, metadata.num_rows, has_bytes)
        groups = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
        _require_counts(metadata, file.size)
    if max(groups, default=0) > MAX_GROUP_BYTES and schema.images:
        raise DataError(
            f"{name} has a row group of {max(groups) / 2**30:.1f} GiB, which is decoded for each image.",
            "Write it anew with row_group_size=1000.",
        )
    return ParquetFile(name, schema, file.size, part, place=get_place(file), metadata=metadata)
