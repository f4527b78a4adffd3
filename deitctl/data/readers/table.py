"""Reader of tables: text of many kinds, lines of JSON, Parquet, Arrow; of paths of images, or images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.file_types import get_extensions
from deitctl.data.layout import match_split
from deitctl.data.readers.arrow import SUFFIXES as ARROW
from deitctl.data.readers.column_names import (
    LABEL,
    PATH,
    SPLIT,
    name_columns,
    rate_header,
    rate_paths,
)
from deitctl.data.readers.columns import Columns, find_columns
from deitctl.data.readers.image_places import ADDRESS, ImagePlaces, find_images
from deitctl.data.readers.parquet import is_parquet
from deitctl.data.readers.parquet_table import (
    collect_files,
    find_parquet_columns,
    open_columnar,
    open_image_files,
    refuse_image_folder,
)
from deitctl.data.readers.read_options import AS_IS, ReadOptions
from deitctl.data.readers.table_rows import TableRows, collect_rows, number_classes
from deitctl.data.readers.text import SAMPLE_ROWS, TEXT_TYPES, WINDOWS, find_encoding, open_text
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home

TEXT = (".csv", ".tsv", ".tab", ".txt")
LINES = (".jsonl", ".ndjson")
COLUMNAR = (".parquet", ".pq", *ARROW)
SUFFIXES = (*TEXT, *LINES, *COLUMNAR)
"""Of tables that are read, in any case."""
JSON_TYPE = "a JSON file"
"""What `identify` calls lines of JSON."""
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), "a spreadsheet's own format"),
    ".json": "JSON",
}
"""Tables that are not read."""


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, read or refused by `open_table`."""
    return path.suffix.lower() in (*SUFFIXES, *OTHERS)


def open_table(
    path: Path, reporter: Reporter, options: ReadOptions = AS_IS
) -> dict[str, ImageDataset]:
    """Open a table's `train`, `val` and `test` split, or all of it under "".

    Args:
        path: the table.
        reporter: receives how it was read where that had to be decided, and images that are missing.
        options: the folder that paths are below, the task, and the column of groups.

    Raises:
        DataError: it cannot be read, has no rows, a row without image, class or split, no column of
            either, or no image is where it says.
    """
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise DataError(
            f"{path} is {OTHERS[suffix]}, which is not read.",
            "Save one object a line as .jsonl, or a table as .csv."
            if suffix == ".json"
            else "Save the sheet as CSV in UTF-8.",
        )
    if suffix in COLUMNAR or is_parquet(path):
        return _open_columns(path, reporter, options)
    if suffix in LINES:
        return _open_lines(path, reporter, options)
    return _open_text(path, reporter, options)


def _open_lines(path: Path, reporter: Reporter, options: ReadOptions) -> dict[str, ImageDataset]:
    encoding = find_encoding(path, (*TEXT_TYPES, JSON_TYPE))
    columns, read_all = _find_line_columns(path, encoding, options)
    table = collect_rows(path, columns, read_all(), reporter, options, first_row=1)
    if encoding == WINDOWS:
        _warn_of_windows(path, table, reporter)
    return _open_files(path, columns, table, columns.notes, reporter, options)


def _find_line_columns(
    path: Path, encoding: str, options: ReadOptions = AS_IS
) -> tuple[Columns, Callable[[], Iterable[Sequence[str]]]]:
    """Return the columns of lines of JSON, which are the keys of all objects, and what reads the rows."""
    names = tuple(dict.fromkeys(key for item in _read_objects(path, encoding) for key in item))

    def read_all(places: Sequence[int] = ()) -> Iterator[list[str]]:
        for item in _read_objects(path, encoding):
            yield ["" if item.get(name) is None else _to_text(item[name]) for name in names]

    first = list(islice(read_all(), SAMPLE_ROWS))
    columns = find_columns(path, names, first, read_all=read_all, options=options)
    return columns, read_all


def _open_text(path: Path, reporter: Reporter, options: ReadOptions) -> dict[str, ImageDataset]:
    text = open_text(path, rate_header)
    notes = text.notes
    columns = _find_unnamed(path, text.header, options.image_folder)
    has_header = columns is None
    if columns is None:
        first = list(islice(text.read_rows(), SAMPLE_ROWS))
        columns = find_columns(
            path, text.header, first, read_all=lambda _: text.read_rows(), options=options
        )
    else:
        notes.append(f"no header, so that its first row is the image {text.header[columns.path]!r}")
    rows = text.read_rows(skip_header=has_header)
    first_row = text.first_row - (not has_header)
    table = collect_rows(path, columns, rows, reporter, options, first_row=first_row)
    if text.encoding == WINDOWS:
        _warn_of_windows(path, table, reporter)
    return _open_files(path, columns, table, [*notes, *columns.notes], reporter, options)


def _warn_of_windows(path: Path, table: TableRows, reporter: Reporter) -> None:
    texts = chain(table.class_names, table.values)
    example = next((name for name in texts if not name.isascii()), "")
    reporter.warn(
        f"{path} is not UTF-8, and is read as Windows-1252"
        + (f": {example!r}" if example else "")
        + ". If a letter is wrong, save it as CSV in UTF-8."
    )


def _open_columns(path: Path, reporter: Reporter, options: ReadOptions) -> dict[str, ImageDataset]:
    file = open_columnar(str(path))
    columns = find_parquet_columns([file], options)
    if columns.path in file.schema.images:
        if options.image_folder:
            refuse_image_folder(path)
        return open_image_files(path, [file], columns, reporter, options)
    table = collect_files(path, [file], columns, reporter, options)
    return _open_files(path, columns, table, columns.notes, reporter, options)


def name_rivals(path: Path) -> str:
    """Return which other columns of a table may be that of classes, in a sentence; empty for none."""
    try:
        if path.suffix.lower() in COLUMNAR or is_parquet(path):
            columns = find_parquet_columns([open_columnar(str(path))])
        elif path.suffix.lower() in LINES:
            columns = _find_line_columns(path, find_encoding(path, (*TEXT_TYPES, JSON_TYPE)))[0]
        else:
            text = open_text(path, rate_header)
            columns = find_columns(path, text.header, [], read_all=lambda _: text.read_rows())
    except DataError:
        return ""
    rivals = columns.list_rivals(columns.label)
    if columns.label is None or not rivals:
        return ""
    return (
        f"Its classes are by the column {columns.names[columns.label]!r}; if "
        f"{' or '.join(map(repr, rivals))} has them, call that one 'label'."
    )


def _find_unnamed(path: Path, header: Sequence[str], image_folder: str) -> Columns | None:
    """Return the columns of a table without a header: an image that its first row names, and a class."""
    if not 2 <= len(header) <= 3 or rate_paths(header):
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
    options: ReadOptions,
) -> dict[str, ImageDataset]:
    """Find the files of a table's rows, and build its parts, of the images that are there unless others are wanted."""
    image_folder = str(expand_home(options.image_folder)) if options.image_folder else ""
    places = find_images(path, table.values, image_folder)
    decisions = [*notes, *table.notes, *places.notes]
    _require_images(path, columns, table, places, image_folder, reporter)
    if decisions:
        reporter.note(f"{path}: {'; '.join(decisions)}.")
    taken = table.splits
    if not options.with_missing:
        taken = {part: at[~places.is_missing[at]] for part, at in taken.items()}
    return {
        part: FileDataset(
            places.names if len(at) == len(places.names) else places.names.take(at.tolist()),
            *number_classes(table.labels[at], table.class_names),
            places.root,
            table.take_groups(at),
        )
        for part, at in taken.items()
    }


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
            at = table.splits[part]
            lost = table.find_classes(at) - table.find_classes(at[~places.is_missing[at]])
            reporter.warn(
                f"{len(rows):,} of the {len(at):,} {part + ' ' if part else ''}images "
                f"of {path} are missing, the first is {table.values[int(rows[0])]!r:.200}: they are left "
                "out"
                + (
                    f", and with them all of the class {table.class_names[min(lost)]!r}"
                    if lost
                    else ""
                )
                + (f" and of {len(lost) - 1:,} more" if len(lost) > 1 else "")
                + "."
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


def _read_objects(path: Path, encoding: str) -> Iterator[dict[str, object]]:
    try:
        with path.open(encoding=encoding) as file:
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
