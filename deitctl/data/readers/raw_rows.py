"""The rows of a table as they are written, whatever its file is."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.readers.column_names import name_columns
from deitctl.data.readers.columns import Columns
from deitctl.errors import DataError


class Texts:
    """A column of few different texts, each kept once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._rows = array("q")

    def add(self, text: str) -> None:
        """Append a row's text."""
        self._rows.append(self.numbers.setdefault(text, len(self.numbers)))

    @property
    def rows(self) -> NDArray[np.int64]:
        """The number of each row's text, [N]."""
        return np.frombuffer(self._rows, np.int64)


@dataclass(frozen=True)
class RawRows:
    """The columns of a table as they are written."""

    values: StringArray
    """Paths, [N]."""
    has_path: NDArray[np.bool_]
    """Whether a row has one, or needs none, [N]."""
    cells: Texts
    """Labels; of a column for each class their fields, joined by tabs."""
    splits: Texts
    groups: Texts


def read_raw(
    path: Path | str, columns: Columns, rows: Iterable[Sequence[str]], needs_path: bool
) -> RawRows:
    """Read the columns of a table.

    Args:
        path: the table, for messages.
        columns: what is in which column.
        rows: fields of each row; a row may be shorter than the table is wide.
        needs_path: whether a row without a path lacks something.

    Raises:
        DataError: there are no rows, or a path is no text.
    """
    cells, splits, groups, pathless = Texts(), Texts(), Texts(), bytearray()

    def iterate_values() -> Iterator[str]:
        for row in rows:
            value = _get(row, columns.path)
            pathless.append(needs_path and not value.strip())
            cells.add(
                _get(row, columns.label)
                if columns.label is not None
                else "\t".join(_get(row, at).strip() for at in columns.one_hot)
            )
            splits.add(_get(row, columns.split))
            groups.add(_get(row, columns.group).strip())
            yield value

    try:
        values = StringArray.from_strings(iterate_values())
    except UnicodeEncodeError as error:
        raise DataError(f"{path} has a path that is no text: {error.object!r:.80}.") from error
    if not len(values):
        raise DataError(
            f"{path} has no rows.",
            f"It has the columns {name_columns(columns.names)}."
            if any(columns.names)
            else "It needs the columns path,label[,split].",
        )
    has_path = np.logical_not(np.frombuffer(bytes(pathless), np.bool_))
    return RawRows(values, has_path, cells, splits, groups)


def _get(row: Sequence[str], at: int | None) -> str:
    return row[at] if at is not None and at < len(row) else ""
