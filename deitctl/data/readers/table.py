"""Reader of tables: text of many kinds, lines of JSON, Parquet; of paths of images, or images."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import numpy as np

from deitctl.data.dataset import FileDataset, ImageDataset, Labels
from deitctl.data.file_types import get_extensions
from deitctl.data.layout import match_split
from deitctl.data.readers.columns import (
    LABEL,
    PATH,
    SPLIT,
    Columns,
    find_columns,
    name_columns,
    rate_header,
    rate_paths,
)
from deitctl.data.readers.image_places import ADDRESS, ImagePlaces, find_images
from deitctl.data.readers.parquet import (
    ParquetSchema,
    is_parquet,
    name_images,
    read_rows,
    read_schema,
)
from deitctl.data.readers.parquet_images import CACHE_BYTES, ParquetDataset, open_images
from deitctl.data.readers.table_rows import TableRows, collect_rows
from deitctl.data.readers.text import SAMPLE_ROWS, WINDOWS, open_text
from deitctl.errors import DataError
from deitctl.events import Reporter

TEXT = (".csv", ".tsv", ".tab", ".txt")
LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet", ".pq")
SUFFIXES = (*TEXT, *LINES, *PARQUET)
"""Of tables that are read, in any case."""
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), "a spreadsheet's own format"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "an Arrow file"),
    ".json": "JSON",
}
"""Tables that are not read."""
WAYS_ON = {
    ".json": "Save one object a line as .jsonl, or a table as .csv.",
    **dict.fromkeys(
        (".arrow", ".feather", ".ipc"),
        "Save it as Parquet: `datasets.load_from_disk(FOLDER)['train'].to_parquet('train.parquet')`.",
    ),
}


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, read or refused by `open_table`."""
    return path.suffix.lower() in (*SUFFIXES, *OTHERS)


def open_table(path: Path, reporter: Reporter, image_folder: str = "") -> dict[str, ImageDataset]:
    """Open a table's `train`, `val` and `test` split, or all of it under "".

    Args:
        path: the table.
        reporter: receives how it was read where that had to be decided, and images that are missing.
        image_folder: the folder that paths are below; empty: that of the table, or one beside it.

    Raises:
        DataError: it cannot be read, has no rows, a row without image, class or split, no column of
            either, or no image is where it says.
    """
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise DataError(
            f"{path} is {OTHERS[suffix]}, which is not read.",
            WAYS_ON.get(suffix, "Save the sheet as CSV in UTF-8."),
        )
    if suffix in PARQUET or is_parquet(path):
        return _open_parquet(path, reporter, image_folder)
    if suffix in LINES:
        names, rows = _read_lines(path)
        first = list(islice(rows, SAMPLE_ROWS))
        columns = find_columns(path, names, first)
        table = collect_rows(path, columns, chain(first, rows), reporter, first_row=1)
        return _open_files(path, columns, table, columns.notes, reporter, image_folder)
    return _open_text(path, reporter, image_folder)


def _open_text(path: Path, reporter: Reporter, image_folder: str) -> dict[str, ImageDataset]:
    text = open_text(path, rate_header)
    notes = text.notes
    columns = _find_unnamed(path, text.header, image_folder)
    has_header = columns is None
    if columns is None:
        first = list(islice(text.read_rows(), SAMPLE_ROWS))
        columns = find_columns(path, text.header, first)
    else:
        notes.append(f"no header, so that its first row is the image {text.header[columns.path]!r}")
    rows = text.read_rows(skip_header=has_header)
    first_row = text.first_row - (not has_header)
    table = collect_rows(path, columns, rows, reporter, first_row=first_row)
    if text.encoding == WINDOWS:
        texts = chain(table.class_names, table.values)
        example = next((name for name in texts if not name.isascii()), "")
        reporter.warn(
            f"{path} is not UTF-8, and is read as Windows-1252"
            + (f": {example!r}" if example else "")
            + ". If a letter is wrong, save it as CSV in UTF-8."
        )
    return _open_files(path, columns, table, [*notes, *columns.notes], reporter, image_folder)


def _open_parquet(path: Path, reporter: Reporter, image_folder: str) -> dict[str, ImageDataset]:
    schema = read_schema(path)
    columns = _find_parquet_columns(path, schema)
    if columns.path in schema.images:
        if image_folder:
            refuse_image_folder(path)
        return _open_images({"": [path]}, path, schema, columns, reporter)
    table = _collect_parquet(path, schema, columns, reporter)
    return _open_files(path, columns, table, columns.notes, reporter, image_folder)


def open_shards(
    folder: Path, parts: Mapping[str, Sequence[Path]], reporter: Reporter
) -> dict[str, ImageDataset]:
    """Open the Parquet files of a folder, as the hub has them.

    Args:
        folder: the folder, for messages.
        parts: of each part of the data its files, see `find_shards`.
        reporter: receives how they were read where that had to be decided.

    Raises:
        DataError: one of them cannot be read, or has other columns than the first, or no images.
    """
    first, *others = [path for paths in parts.values() for path in paths]
    schema = read_schema(first)
    columns = _find_parquet_columns(first, schema)
    if columns.path not in schema.images:
        raise DataError(
            f"{folder} has Parquet files without images: {first} has the columns "
            f"{name_columns(schema.names)}.",
            f"Name one table: {first}.",
        )
    for other in others:
        if (names := read_schema(other).names) != schema.names:
            raise DataError(
                f"{other} has the columns {name_columns(names)}, {first} "
                f"{name_columns(schema.names)}.",
                "Put files of different data into different folders.",
            )
    return _open_images(parts, folder, schema, replace(columns, split=None), reporter)


def _find_parquet_columns(path: Path, schema: ParquetSchema) -> Columns:
    texts = [at for at in range(len(schema.names)) if at not in schema.images]
    rows = list(islice(read_rows(path, schema.name_parts(texts)), SAMPLE_ROWS))
    images = (*schema.images, *schema.paths)
    return find_columns(path, schema.names, rows, images, [*schema.class_names])


def _collect_parquet(
    path: Path, schema: ParquetSchema, columns: Columns, reporter: Reporter
) -> TableRows:
    """Read paths, labels and splits; of images in the file names, empty where they have none."""
    is_image = columns.path in schema.images
    taken = columns.list_places()
    if is_image and columns.path not in schema.named:
        taken.remove(columns.path)  # bytes alone, without names
    names = schema.class_names.get(-1 if columns.label is None else columns.label)

    def name_label(label: str) -> str:
        if names is None or not label.removeprefix("-").isdecimal():
            return label
        number = int(label)
        if not -1 <= number < len(names):
            raise DataError(
                f"{path} has the label {number}, and names {len(names)} classes in its metadata."
            )
        return names[number] if number >= 0 else ""

    return collect_rows(
        path,
        columns,
        read_rows(path, schema.name_parts(taken)),
        reporter,
        first_row=1,
        name_label=name_label,
        needs_path=not is_image,
    )


def _open_images(
    parts: Mapping[str, Sequence[Path]],
    title: Path,
    schema: ParquetSchema,
    columns: Columns,
    reporter: Reporter,
) -> dict[str, ImageDataset]:
    """Open images that are stored in Parquet files, those of each part."""
    datasets: dict[str, ImageDataset] = {}
    column = schema.names[columns.path] + (".bytes" if columns.path in schema.structs else "")
    for part, paths in parts.items():
        tables = [_collect_parquet(path, schema, columns, reporter) for path in paths]
        class_names = tuple(sorted({name for table in tables for name in table.class_names}))
        places = {name: at for at, name in enumerate(class_names)}
        labels = np.concatenate(
            [np.array([places[name] for name in t.class_names])[t.labels] for t in tables]
        )
        names = name_images(paths, [table.values for table in tables])
        images = open_images(paths, column)
        splits = tables[0].splits if len(parts) == len(paths) == 1 else {}
        for split, rows in (splits or {part: np.arange(len(labels))}).items():
            datasets[split] = ParquetDataset(
                images,
                rows,
                names if len(rows) == len(names) else names.take(rows.tolist()),
                *number_classes(labels[rows], class_names),
                str(title),
            )
    if schema.num_bytes > CACHE_BYTES:
        reporter.note(
            f"Images of {title} are decoded by row groups, which is slow in random order: train on "
            f"what `deitctl pack {shlex.quote(str(title))} OUT.pack` writes."
        )
    if columns.notes:
        reporter.note(f"{title}: {'; '.join(columns.notes)}.")
    return datasets


def refuse_image_folder(path: Path) -> NoReturn:
    """Raise that `--images` names a folder for paths of a table, which data has none of."""
    raise DataError(
        f"--images is the folder of a table's paths, and {path} is no table of paths.",
        "Leave it out.",
    )


def _find_unnamed(path: Path, header: Sequence[str], image_folder: str) -> Columns | None:
    """Return the columns of a table without a header: an image that its first row names, and a class."""
    if rate_paths(header) or not 2 <= len(header) <= 3:
        return None
    base = image_folder or path.parent
    images = [
        at
        for at, value in enumerate(header)
        if os.path.splitext(value)[1].lower() in get_extensions()
        or (value and "\0" not in value and os.path.isfile(os.path.join(base, value)))
    ]
    others = [at for at in range(len(header)) if at not in images]
    splits = [at for at in others if match_split(header[at])] if len(header) == 3 else []
    labels = [at for at in others if at not in splits]
    if len(images) != 1 or len(labels) != 1:
        return None
    names = [PATH] * len(header)
    names[labels[0]] = LABEL
    if splits:
        names[splits[0]] = SPLIT
    return Columns(images[0], labels[0], splits[0] if splits else None, tuple(names))


def _open_files(
    path: Path,
    columns: Columns,
    table: TableRows,
    notes: Iterable[str],
    reporter: Reporter,
    image_folder: str,
) -> dict[str, ImageDataset]:
    """Find the files of a table's rows, and build its parts."""
    places = find_images(path, table.values, image_folder)
    decisions = [*notes, *places.notes]
    _require_images(path, columns, table, places, image_folder, reporter)
    if decisions:
        reporter.note(f"{path}: {'; '.join(decisions)}.")
    return {
        part: FileDataset(
            places.names if len(at) == len(places.names) else places.names.take(at.tolist()),
            *number_classes(table.labels[at], table.class_names),
            places.root,
        )
        for part, at in table.splits.items()
    }


def number_classes(labels: Labels, class_names: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Number the labels of a part of a table by the classes that it has."""
    used = np.unique(labels)
    return np.searchsorted(used, labels).astype(np.int64), tuple(class_names[n] for n in used)


def _require_images(
    path: Path,
    columns: Columns,
    table: TableRows,
    places: ImagePlaces,
    image_folder: str,
    reporter: Reporter,
) -> None:
    """Warn of images that are not there.

    Raises:
        DataError: no image of a part that a training needs is there.
    """
    missing = {part: at[places.is_missing[at]] for part, at in table.splits.items()}
    # A test split is scored on demand, and may be without images here, as a competition's is.
    needed = [part for part in table.splits if part != "test" or "val" not in table.splits]
    for part in needed:
        if len(missing[part]) == len(table.splits[part]):
            _refuse_places(path, columns, table, part, image_folder)
    for part, rows in missing.items():
        if len(rows):
            reporter.warn(
                f"{len(rows):,} of the {len(table.splits[part]):,} {part + ' ' if part else ''}images "
                f"of {path} are missing, the first is {table.values[int(rows[0])]!r:.200}: they are left "
                "out."
            )


def _refuse_places(
    path: Path, columns: Columns, table: TableRows, part: str, image_folder: str
) -> None:
    at = table.splits[part]
    value = table.values[int(at[0])]
    count = f"{len(at):,} {part + ' ' if part else ''}images"
    if ADDRESS.match(value):
        raise DataError(
            f"The {count} of {path} are web addresses, the first is {value!r:.100}.",
            "Download them, and write their file names into the table.",
        )
    where = image_folder or str(path.parent)
    raise DataError(
        f"None of the {count} of {path} is there: the first, {value!r:.200}, is not in {where}; it is "
        f"of the column {columns.names[columns.path]!r} of {name_columns(columns.names)}.",
        "--images FOLDER names the folder that these paths are below.",
    )


def _read_lines(path: Path) -> tuple[tuple[str, ...], Iterator[list[str]]]:
    """Return the keys of the objects of a file of JSON lines, and their values as rows of text."""
    objects = _read_objects(path)
    first = list(islice(objects, SAMPLE_ROWS))
    names = tuple(dict.fromkeys(key for item in first for key in item))
    return names, (
        ["" if item.get(name) is None else _to_text(item[name]) for name in names]
        for item in chain(first, objects)
    )


def _read_objects(path: Path) -> Iterator[dict[str, object]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise DataError(
                        f"{path}, line {number} is no JSON object.",
                        'Each line is one, such as {"path": "1.jpg", "label": "cat"}.',
                    )
                yield item
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {why!s:.120}.") from error


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
