"""Reader of .csv and .parquet tables with the columns `path,label[,split]`."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import FileDataset, Labels, drop_empty_classes
from deitctl.data.splits import SPLIT_NAMES, find_splits
from deitctl.errors import DataError

COLUMNS = ("path", "label", "split")


def open_table(path: Path) -> dict[str, FileDataset]:
    """Open a table's `train`, `val` and `test` split, or all of it under "".

    File names are relative to the table's folder.

    Raises:
        DataError: it cannot be read, has no rows, a row without path or label, an unknown split, or
            two names of one.
    """
    codes, splits = array("q"), array("q")
    root = os.path.join(path.parent, "")
    classes: dict[str, int] = {}
    split_codes: dict[str, int] = {}

    def iterate_files() -> Iterator[str]:
        for file, label, split in _read_rows(path):
            codes.append(classes.setdefault(label, len(classes)))
            splits.append(split_codes.setdefault(split, len(split_codes)))
            # An absolute path stays as it is. A table is trusted as a list of files is.
            yield os.path.join(root, file)

    names = StringArray.from_strings(iterate_files())
    if not split_codes:
        raise DataError(f"{path} has no rows.", "It needs the columns path,label[,split].")
    labels, split_of = np.frombuffer(codes, np.int64), np.frombuffer(splits, np.int64)
    if set(split_codes) == {""}:
        return {"": _build_split(names, labels, classes, root)}
    choices = [name for names in SPLIT_NAMES.values() for name in names]
    if unknown := sorted(set(split_codes).difference(choices)):
        raise DataError(
            f"{path} has rows of the split {unknown[0]!r}."
            if unknown[0]
            else f"{path} has rows without a split.",
            f"Every row needs one of {', '.join(choices)}, or leave the column out.",
        )
    rows = {
        split: np.flatnonzero(split_of == split_codes[name])
        for split, name in find_splits(split_codes, str(path)).items()
    }
    return {
        split: _build_split(names.take(at.tolist()), labels[at], classes, root)
        for split, at in rows.items()
    }


def _build_split(
    names: StringArray, labels: Labels, classes: Iterable[str], root: str
) -> FileDataset:
    return drop_empty_classes(FileDataset(names, labels, tuple(classes), root))[0]


def _read_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, label and split, which may be empty, of every row."""
    rows = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    for number, row in enumerate(rows, start=2):  # the header is line 1
        if row.get("path") in (None, "") or row.get("label") in (None, ""):
            raise DataError(
                f"{path}, row {number} has no 'path' or no 'label'.",
                "Every row needs the columns path,label[,split].",
            )
        yield str(row["path"]), str(row["label"]), str(row.get("split") or "")


def _read_csv(path: Path) -> Iterator[Mapping[str, object]]:
    try:
        # utf-8-sig: Excel writes a byte order mark, which would be part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Not DictReader: a header of a million empty columns would fill each row with as many.
            table = csv.reader(file)
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
        raise DataError(
            "Parquet tables need pyarrow.", "Install it: `pip install pyarrow`."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for rows in file.iter_batches(columns=columns):
                yield from rows.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error
