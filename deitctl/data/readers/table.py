"""A .csv or .parquet table of `path,label[,split]` becomes sources, row by row."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import FileSource, Source
from deitctl.data.splits import TRAIN_NAMES, VAL_NAMES, name_parts
from deitctl.data.string_array import StringArray
from deitctl.errors import DataError

COLUMNS = ("path", "label", "split")


def open_table(path: Path) -> dict[str, Source]:
    """Return the `train` and `val` part of a table, or its whole under the empty name; files are relative to the table.

    Raises:
        DataError: it cannot be read, has no rows, a row lacks something, or a split is unknown.
    """
    codes, splits = array("q"), array("q")
    classes: dict[str, int] = {}
    known: dict[str, int] = {}

    def files() -> Iterator[str]:
        for file, label, split in _read_table(path):
            codes.append(classes.setdefault(label, len(classes)))
            splits.append(known.setdefault(split, len(known)))
            yield os.path.join(path.parent, file)

    names = StringArray.of(files())
    if not known:
        raise DataError(f"{path} has no rows.")
    labels, split_of = np.frombuffer(codes, np.int64), np.frombuffer(splits, np.int64)
    if set(known) == {""}:
        return {"": _part(names, labels, tuple(classes))}
    if unknown := sorted(set(known).difference(TRAIN_NAMES, VAL_NAMES)):
        choice = ", ".join((*TRAIN_NAMES, *VAL_NAMES))
        raise DataError(
            f"{path} has the split {unknown[0]!r}.",
            f"A split is one of {choice}, in every row or in none.",
        )
    rows = {
        part: np.flatnonzero(split_of == known[name]) for part, name in name_parts(known).items()
    }
    return {
        part: _part(names.take(at.tolist()), labels[at], tuple(classes))
        for part, at in rows.items()
    }


def _part(names: StringArray, codes: NDArray[np.int64], classes: tuple[str, ...]) -> FileSource:
    """Number the classes that have a row here in lexicographic order."""
    class_names = tuple(sorted(classes[code] for code in np.unique(codes)))
    number = {name: i for i, name in enumerate(class_names)}
    renumber = np.array([number.get(name, -1) for name in classes], dtype=np.int64)
    return FileSource(names, renumber[codes], class_names)


def _read_table(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, label and split (may be empty) of every row."""
    for number, row in enumerate(
        _read_csv(path) if path.suffix == ".csv" else _read_parquet(path), start=2
    ):
        if row.get("path") in (None, "") or row.get("label") in (None, ""):
            raise DataError(
                f"{path}, row {number} has no 'path' or no 'label'.",
                "The columns are path,label[,split].",
            )
        yield str(row["path"]), str(row["label"]), str(row.get("split") or "")


def _read_csv(path: Path) -> Iterator[Mapping[str, object]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.reader(
                file
            )  # a million empty columns in every row would take the memory of a million rows
            header = next(table, [])
            places = {name: header.index(name) for name in COLUMNS if name in header}
            for row in filter(None, table):
                yield {name: row[at] for name, at in places.items() if at < len(row)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _read_parquet(path: Path) -> Iterator[Mapping[str, object]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet tables need pyarrow.", "pip install 'deitctl[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(
                columns=[name for name in COLUMNS if name in file.schema_arrow.names]
            ):
                yield from rows.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error
