"""A file of columns as a table: Parquet or Arrow."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from deitctl.data.readers.columnar_schema import ColumnarSchema

BATCH_ROWS = 1024
"""That are objects of Python at a time."""
BATCH_BYTES = 256 * 2**20
"""That such a batch may have at most, unless a value alone has more."""


@dataclass(frozen=True)
class ColumnarFile(ABC):
    """One of the files of a data set."""

    path: str
    """Of a disk, or an address in a store."""
    schema: ColumnarSchema
    size: int
    """In bytes."""
    part: str = ""
    """Of the data, by its name; empty: not known."""

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return PurePath(self.path).stem

    @abstractmethod
    def read_rows(
        self, columns: Mapping[int, str], batch_rows: int = BATCH_ROWS
    ) -> Iterator[list[Any]]:
        """Yield the values of some columns of each row; those of the other columns are empty.

        Args:
            columns: what is read of a column, by its place: its name, or `name.path` of a struct.
            batch_rows: rows that are decoded at a time, or fewer.

        Raises:
            DataError: it is damaged, or cannot be read.
        """


def list_values(arrays: Mapping[int, Any], width: int, num_rows: int) -> Iterator[list[Any]]:
    """Yield the rows of arrays as text, empty where a column is none of them.

    Args:
        arrays: pyarrow's, by the place of their column; structs of one part are that part.
        width: number of columns.
        num_rows: length of the arrays.
    """
    taken = {at: _flatten(values).to_pylist() for at, values in arrays.items()}
    for number in range(num_rows):
        row: list[Any] = [""] * width
        for at, values in taken.items():
            row[at] = _to_text(values[number])
        yield row


def _flatten(values: Any) -> Any:
    """Return the only field of structs that were read in part."""
    import pyarrow.types as types

    return values.flatten()[0] if types.is_struct(values.type) else values


def _to_text(value: object) -> str:
    """Return a value as text, a list as JSON; empty for one that is missing, and for bytes."""
    if isinstance(value, bytes):
        return ""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or value != value else str(value)
