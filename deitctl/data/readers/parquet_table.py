"""Parquet and Arrow files as data: images in a column, in one file or in many of the same columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset
from deitctl.data.layout import match_split
from deitctl.data.readers.arrow import SUFFIXES as ARROW
from deitctl.data.readers.arrow import ArrowFile, open_arrow
from deitctl.data.readers.arrow_images import open_arrow_images
from deitctl.data.readers.column_names import LABEL, SPLIT, list_candidates, name_columns
from deitctl.data.readers.columnar_dataset import ColumnarDataset, StoredImages
from deitctl.data.readers.columnar_file import ColumnarFile
from deitctl.data.readers.columnar_files import require_all_files
from deitctl.data.readers.columnar_schema import ColumnarSchema
from deitctl.data.readers.columns import Columns, find_columns
from deitctl.data.readers.parquet import ParquetFile, open_parquet
from deitctl.data.readers.parquet_images import ImageColumn, open_images
from deitctl.data.readers.read_options import AS_IS, ReadOptions
from deitctl.data.readers.row_groups import BYTES
from deitctl.data.readers.table_rows import TableRows, collect_rows, match_value, number_classes
from deitctl.data.readers.text import SAMPLE_ROWS
from deitctl.data.stores.address import get_name
from deitctl.data.stores.store_settings import get_cache
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.threads import DaemonThreads

MAX_WORD = 1000
"""Characters of a value by which it is seen whether a column is of labels or splits."""
MAX_TEXT, TEXT_RATIO = 2**28, 100
"""Characters of labels and names that a file may have: these, and so many more for each of its bytes."""
NUM_THREADS = 16
"""That open files of a store."""


def open_columnar_files(
    folder: Path | str,
    parts: Mapping[str, Sequence[Path]],
    reporter: Reporter,
    options: ReadOptions = AS_IS,
    addresses: Mapping[Path, Sequence[str]] | None = None,
) -> dict[str, ImageDataset]:
    """Open the Parquet or Arrow files of a folder, as the hub has them.

    Args:
        folder: the folder, for messages.
        parts: of each part of the data its files, see `find_columnar_files`.
        reporter: receives how they were read where that had to be decided.
        options: the task, and the column of groups.
        addresses: of the files in a store that have a path; several where their URLs differ behind it.

    Raises:
        DataError: one of them cannot be read, has other columns than the first, no images, or a split
            that its name contradicts.
    """
    require_all_files(parts, reporter)
    places = [(path, part) for part in parts for path in parts[part]]
    if addresses is None:
        files = [open_columnar(str(path), part) for path, part in places]
    else:  # each takes some requests
        with DaemonThreads(NUM_THREADS) as threads:
            named = ((address, part) for path, part in places for address in addresses[path])
            files = list(threads.map(lambda place: open_columnar(*place), named))
    # A test part may be without labels.
    files.sort(key=lambda file: file.part == "test")
    first = files[0]
    columns = find_parquet_columns(files, options)
    if columns.path not in first.schema.images:
        raise DataError(
            f"{folder} has Parquet files without images: {first.path} has the columns "
            f"{name_columns(first.schema.names)}.",
            f"Take one table as DATA: {first.path}.",
        )
    for other in files[1:]:
        _require_same_columns(first, other, columns)
    return open_image_files(folder, files, columns, reporter, options)


def find_parquet_columns(files: Sequence[ColumnarFile], options: ReadOptions = AS_IS) -> Columns:
    """Find the columns of some files, by those of the first; see `find_columns`."""
    path, schema = files[0].path, files[0].schema
    if schema.several and not (schema.images or schema.paths):
        at = min(schema.several)
        raise DataError(
            f"{path} has lists of images in its column {schema.names[at]!r}; a row is one image here.",
            "Write a row for each image, with its label.",
        )
    of_parts = _find_part_names(schema)
    hidden = schema.nested - schema.lists
    labels = [at for at in schema.class_names if at not in hidden and at not in of_parts]
    # Where files are called as parts, no column has to be found by its values.
    is_parted = any(file.part for file in files)
    header = [*schema.names, LABEL] if labels else schema.names  # then no class is a column
    looked_at = [
        at
        for at in (list_candidates(header) if is_parted else range(len(schema.names)))
        if at < len(schema.names) and at not in schema.nested and at not in schema.images
    ]
    names = schema.name_parts(looked_at)
    rows = list(islice(_read_parts(files[0], names, SAMPLE_ROWS), SAMPLE_ROWS)) if names else []

    def read_all(places: Sequence[int]) -> Iterator[Sequence[str]]:
        taken = {at: names[at] for at in places if at in names}
        return chain.from_iterable(
            _read_parts(file, taken)
            for file in files
            if taken and file.schema.names == schema.names
        )

    images = (*schema.images, *schema.paths)
    return find_columns(path, schema.names, rows, images, labels, read_all, options)


def collect_files(
    title: Path | str,
    files: Sequence[ColumnarFile],
    columns: Columns,
    reporter: Reporter,
    options: ReadOptions,
) -> TableRows:
    """Read paths, labels and splits; of images in the files their names, empty where they have none.

    Args:
        title: the file or folder, for messages.
        files: of the same columns.
        columns: of the first file.
        reporter: see `collect_rows`; so are options.

    Raises:
        DataError: see `collect_rows`; a label without a class, a split that a file's name contradicts.
    """
    return collect_rows(
        title,
        columns if not files[0].part else _add_part(columns),
        chain.from_iterable(_read_file(file, columns) for file in files),
        reporter,
        options,
        first_row=1,
        needs_path=columns.path not in files[0].schema.images,
    )


def open_image_files(
    title: Path | str,
    files: Sequence[ColumnarFile],
    columns: Columns,
    reporter: Reporter,
    options: ReadOptions,
) -> dict[str, ImageDataset]:
    """Open images that are stored in Parquet files, those of each part."""
    table = collect_files(title, files, columns, reporter, options)
    schema = files[0].schema
    images = _open_images(files, schema.names[columns.path], columns.path in schema.structs)
    datasets: dict[str, ImageDataset] = {}
    for split, rows in table.splits.items():
        datasets[split] = ColumnarDataset(
            images,
            rows,
            _name_images(table.values.take(rows.tolist()), files, rows),
            *number_classes(table.labels[rows], table.class_names),
            str(title),
            table.take_groups(rows),
        )
    if isinstance(images, ImageColumn) and (slowness := images.explain_slowness()):
        reporter.warn(f"{title}: {slowness}")
    # The only column of images is no choice.
    usual = (
        f"images by the column {schema.names[columns.path]!r}" if len(schema.images) == 1 else ""
    )
    if notes := [note for note in (*columns.notes, *table.notes) if note != usual]:
        reporter.note(f"{title}: {'; '.join(notes)}.")
    return datasets


def open_columnar(path: str, part: str = "") -> ColumnarFile:
    """Read what a file has in its columns; raise `DataError` if it cannot be read."""
    is_arrow = get_name(path).lower().endswith(ARROW)
    return open_arrow(path, part) if is_arrow else open_parquet(path, part)


def _open_images(files: Sequence[ColumnarFile], column: str, is_struct: bool) -> StoredImages:
    arrow = [file for file in files if isinstance(file, ArrowFile)]
    if arrow:
        return open_arrow_images(arrow, column)
    parquet = [file for file in files if isinstance(file, ParquetFile)]
    return open_images(parquet, column + (f".{BYTES}" if is_struct else ""), get_cache())


def refuse_image_folder(path: Path) -> NoReturn:
    """Raise that `--images` names a folder for paths of a table, which data has none of."""
    raise DataError(
        f"--images is the folder of a table's paths, and {path} is no table of paths.",
        "Leave it out.",
    )


def _require_same_columns(first: ColumnarFile, other: ColumnarFile, columns: Columns) -> None:
    """Raise `DataError` unless files have the same columns; a test part may lack that of classes."""
    name = first.schema.names[columns.path]
    label = None if columns.label is None else first.schema.names[columns.label]
    names = other.schema.names
    is_unlabeled = other.part == "test" and label is not None and label not in names
    if names != first.schema.names and not (is_unlabeled and name in names):
        raise DataError(
            f"{other.path} has the columns {name_columns(names)}, {first.path} "
            f"{name_columns(first.schema.names)}.",
            "Put files of different data into different folders.",
        )
    at = names.index(name)
    if at not in other.schema.images or (
        (at in other.schema.structs) != (columns.path in first.schema.structs)
    ):
        raise DataError(
            f"{other.path} has no images in the column {name!r}, as {first.path} has them.",
            "Put files of different data into different folders.",
        )
    has_names = [
        None
        if label not in file.schema.names
        else file.schema.names.index(label) in file.schema.class_names
        for file in (first, other)
    ]
    if False in has_names and True in has_names:
        with_names, without = (first, other) if has_names[0] else (other, first)
        raise DataError(
            f"{with_names.path} names the classes of the numbers in its column {label!r}, and "
            f"{without.path} does not.",
            "Write them anew from one data set.",
        )


def _add_part(columns: Columns) -> Columns:
    """Return columns with the part of the data behind them."""
    return replace(columns, split=len(columns.names), names=(*columns.names, SPLIT))


def _read_file(file: ColumnarFile, columns: Columns) -> Iterator[list[str]]:
    """Yield the rows of a file in the columns of the first, with names of classes, and its part."""
    schema, names = file.schema, columns.names
    place_of = {name: at for at, name in enumerate(schema.names)}
    taken = [place_of[names[at]] for at in columns.list_places() if names[at] in place_of]
    at_path = place_of[names[columns.path]]
    if at_path in schema.images and at_path not in schema.named:
        taken.remove(at_path)  # bytes alone, without names
    classes = {
        at: listed
        for at in (columns.label, columns.split)
        if at is not None and (listed := _get_classes(schema, names[at]))
    }
    order = [place_of.get(name) for name in names]
    # A dictionary may repeat a long text in every row.
    rest = MAX_TEXT + TEXT_RATIO * file.size
    for row in file.read_rows(schema.name_parts(taken)):
        rest -= sum(len(row[at]) for at in taken)
        if rest < 0:
            raise DataError(
                f"{file.path} has gigabytes of text in its columns of labels and names."
            )
        if schema.names != names:
            row = ["" if at is None else row[at] for at in order]
        for at, listed in classes.items():
            name = _name_labels if at in schema.lists else _name_label
            row[at] = name(file.path, row[at], listed)
        if file.part:
            _require_part(file, columns, row)
            row.append(file.part)
        yield row


def _read_parts(
    file: ColumnarFile, columns: Mapping[int, str], *batch_rows: int
) -> Iterator[list[str]]:
    """Yield the rows of some columns, with the parts that numbers in them stand for."""
    of_parts = _find_part_names(file.schema)
    for row in file.read_rows(columns, *batch_rows):
        for at, listed in of_parts.items():
            row[at] = _name_label(file.path, row[at], listed)
        yield [value[:MAX_WORD] for value in row]


def _find_part_names(schema: ColumnarSchema) -> dict[int, tuple[str, ...]]:
    """Return the names in the metadata of columns whose names are parts of the data, of two at least."""
    parts = {at: set(map(match_split, listed)) for at, listed in schema.class_names.items()}
    return {
        at: schema.class_names[at] for at in parts if len(parts[at]) > 1 and None not in parts[at]
    }


def _get_classes(schema: ColumnarSchema, label: str) -> tuple[str, ...]:
    return schema.class_names.get(schema.names.index(label), ()) if label in schema.names else ()


def _name_label(path: str, label: str, classes: Sequence[str]) -> str:
    """Return the name of a class by its number in a file, empty for -1."""
    if not label.removeprefix("-").isdecimal():
        return label
    number = int(label)
    if not -1 <= number < len(classes):
        raise DataError(
            f"{path} has the label {number}, and names {len(classes)} classes in its metadata."
        )
    return classes[number] if number >= 0 else ""


def _name_labels(path: str, labels: str, classes: Sequence[str]) -> str:
    """Return the names of a list of classes, by their numbers in a file."""
    if not labels:
        return ""
    numbers = map(str, json.loads(labels))
    return json.dumps([_name_label(path, number, classes) for number in numbers])


def _require_part(file: ColumnarFile, columns: Columns, row: Sequence[str]) -> None:
    """Raise `DataError` if the column of splits says another part than the file's name."""
    if columns.split is None or not (value := row[columns.split]):
        return
    if match_value(columns, value) not in (None, file.part):
        raise DataError(
            f"{file.path} has rows of the split {value!r} in the column "
            f"{columns.names[columns.split]!r}, and is called as the {file.part} split.",
            "If the column is right, give the files names without parts, such as "
            "data-00000-of-00002.parquet; if the name is, rename the column.",
        )


def _name_images(
    names: StringArray, files: Sequence[ColumnarFile], rows: NDArray[np.int64]
) -> StringArray:
    """Return unique names of images: those that all of them have, else file and row."""
    image_paths = [name.replace("\\", "/").removeprefix("/") for name in names]
    if all(image_paths) and len(set(image_paths)) == len(image_paths):
        return StringArray.from_strings(image_paths)
    ends = np.cumsum([file.schema.num_rows for file in files])
    places = np.searchsorted(ends, rows, side="right")
    stems = _name_files(files)
    return StringArray.from_strings(
        f"{stems[place]}/{row - (ends[place] - files[place].schema.num_rows)}"
        for place, row in zip(places, rows, strict=True)
    )


def _name_files(files: Sequence[ColumnarFile]) -> list[str]:
    """Return unique names of files: their stems, of equal ones with a number behind the second and later."""
    counts = Counter[str]()
    names = []
    for file in files:
        counts[file.stem] += 1
        names.append(file.stem + (f"~{counts[file.stem]}" if counts[file.stem] > 1 else ""))
    return names
