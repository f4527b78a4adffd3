"""The rows of a table: paths, class names and parts of the data, checked and numbered.

Whatever its file is: text, lines of JSON, Parquet.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import Labels
from deitctl.data.layout import match_split
from deitctl.data.readers.columns import BITS, NO, WAY_ON, YES, Columns, name_columns
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.names import canonicalize_name, group_spellings

MISSING_WORDS = frozenset(("nan", "null", "<na>", "n/a", "#n/a", "nat"))
"""What programs write for a value that is missing."""
WHOLE = re.compile(r"(-?\d+)\.0+")
"""A whole number as pandas writes it in a column with missing values."""
LIST_BRACKETS = re.compile(r"[\[({].*[\])}]", re.DOTALL)
MAX_NAMED = 3


@dataclass(frozen=True)
class TableRows:
    """A table's rows, in order, or those of one part of it."""

    values: StringArray
    """Paths as they are written, [N]."""
    labels: Labels
    """Index into `class_names`, [N]."""
    class_names: tuple[str, ...]
    """In lexicographic order; a part may lack some."""
    splits: Mapping[str, NDArray[np.int64]]
    """Rows of each part of the data; those of a table without parts are under ""."""


def collect_rows(
    path: Path,
    columns: Columns,
    rows: Iterable[Sequence[str]],
    reporter: Reporter,
    *,
    first_row: int = 2,
    needs_path: bool = True,
) -> TableRows:
    """Read all rows of a table; a test part of which no row has a class is left out.

    Args:
        path: the table, for messages.
        columns: what is in which column.
        rows: fields of each row; a row may be shorter than the table is wide.
        reporter: receives what is odd about classes.
        first_row: number of the first row, for messages.
        needs_path: whether a row without a path is refused; images in the table need none.

    Raises:
        DataError: no rows, one without path, class or split, or with several classes, an unknown split.
    """
    codes, split_codes = array("q"), array("q")
    labels: dict[str, int] = {}
    splits: dict[str, int] = {}
    pathless, names = bytearray(), columns.names

    def iterate_values() -> Iterator[str]:
        for number, row in enumerate(rows, start=first_row):
            value = row[columns.path] if columns.path < len(row) else ""
            label = _read_label(path, columns, row, number)
            split = columns.split
            pathless.append(needs_path and not value.strip())
            codes.append(labels.setdefault(label, len(labels)))
            name = row[split] if split is not None and split < len(row) else ""
            split_codes.append(splits.setdefault(name, len(splits)))
            yield value

    try:
        values = StringArray.from_strings(iterate_values())
    except UnicodeEncodeError as error:
        raise DataError(f"{path} has a path that is no text: {error.object!r:.80}.") from error
    if not len(values):
        raise DataError(
            f"{path} has no rows.",
            f"It has the columns {name_columns(names)}."
            if any(names)
            else "It needs the columns path,label[,split].",
        )
    has_path = ~np.frombuffer(bytes(pathless), np.bool_)
    has_label = np.array([bool(label.strip()) for label in labels])[np.frombuffer(codes, np.int64)]
    label_column = "label" if columns.label is None else names[columns.label]
    if not has_path.all():
        _refuse_row(path, names, first_row, ~has_path, ~(has_path & has_label), names[columns.path])
    parts = np.array(_match_splits(path, columns, list(splits)))[
        np.frombuffer(split_codes, np.int64)
    ]
    is_test = parts == "test"
    if not has_label.all():
        if has_label.any() and np.array_equal(is_test, ~has_label):
            reporter.note(
                f"{path}: the {is_test.sum():,} test images have no labels, and are left out."
            )
        else:
            image = values[int(has_label.argmin())]
            _refuse_row(path, names, first_row, ~has_label, ~has_label, label_column, image)
    classes = _name_classes(path, [label for label in labels if label.strip()], reporter)
    class_names = tuple(sorted(set(classes)))
    places = {name: at for at, name in enumerate(class_names)}
    named = iter(classes)
    numbers = np.array([places[next(named)] if label.strip() else -1 for label in labels], np.int64)
    label_numbers = numbers[np.frombuffer(codes, np.int64)]
    _warn_of_lists(path, class_names, reporter)
    rows_of = {
        part: at
        for part in ("train", "val", "test", "")
        if len(at := np.flatnonzero((parts == part) & has_label))
    }
    if needs_path:
        _warn_of_duplicates(path, values, label_numbers, parts, reporter)
    return TableRows(values, label_numbers, class_names, rows_of)


def number_classes(labels: Labels, class_names: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Number the labels of a part of a table by the classes that it has."""
    used = np.unique(labels)
    return np.searchsorted(used, labels).astype(np.int64), tuple(class_names[n] for n in used)


def _refuse_row(
    path: Path,
    names: Sequence[str],
    first_row: int,
    lack_it: NDArray[np.bool_],
    lack_something: NDArray[np.bool_],
    column: str,
    image: str = "",
) -> NoReturn:
    count = int(lack_something.sum())
    more = f"; {count:,} rows lack something" if count > 1 else ""
    raise DataError(
        f"{path}, row {first_row + int(lack_it.argmax())} has no {column!r}{more}.",
        f"Fill it in{f' for {image!r:.100}' if image else ''}, or remove the row"
        f"{'s' if more else ''}. The columns are "
        f"{name_columns(names)}.",
    )


def _read_label(path: Path, columns: Columns, row: Sequence[str], number: int) -> str:
    """Return a row's label; of columns of 0 and 1 the name of the one that holds 1.

    Raises:
        DataError: none of these does, or several do.
    """
    if columns.label is not None:
        return row[columns.label] if columns.label < len(row) else ""
    ones = []
    for at in columns.one_hot:
        field = row[at].strip() if at < len(row) else ""
        if field not in BITS:
            raise DataError(
                f"{path}, row {number} has {field!r} in the column {columns.names[at]!r}, and the "
                "columns of classes hold 0 and 1.",
                WAY_ON,
            )
        if float(field):
            ones.append(columns.names[at])
    if len(ones) != 1:
        what = f"several classes ({name_columns(ones)})" if ones else "no class"
        raise DataError(
            f"{path}, row {number} has {what}: of the columns {name_columns(columns.names)} "
            f"{len(ones)} of those of classes hold 1.",
            "An image has one class here: remove such rows, or choose a class for each in a column "
            "'label'.",
        )
    return ones[0]


def _name_classes(path: Path, labels: Sequence[str], reporter: Reporter) -> list[str]:
    """Return the class of each label, in canonical form."""
    names = [canonicalize_name(label) for label in labels]
    for several in group_spellings(labels).values():
        if len(several) > 1:
            reporter.warn(
                f"{path} spells one class {' and '.join(map(repr, several[:MAX_NAMED]))}: they are "
                "read as one."
            )
    numbers = [WHOLE.fullmatch(name) for name in names]
    if any(numbers) and all(
        m or re.fullmatch(r"-?\d+", n) for m, n in zip(numbers, names, strict=True)
    ):
        # A missing value anywhere in a column makes pandas write 1 as 1.0.
        reporter.note(
            f"{path}: labels such as {next(m[0] for m in numbers if m)!r} are whole numbers."
        )
        names = [m[1] if m else name for m, name in zip(numbers, names, strict=True)]
    if words := sorted({name for name in names if name.casefold() in MISSING_WORDS}):
        reporter.warn(
            f"{path} has images of the class {' and '.join(map(repr, words))}: if that stands for a "
            "missing label, remove those rows."
        )
    return names


def _warn_of_lists(path: Path, class_names: Sequence[str], reporter: Reporter) -> None:
    """Warn of labels that look like several classes."""
    # What stands alone, or in more than one list, is likely a class of its own.
    counts = Counter(part for name in class_names for part in set(_split_list(name)))
    likely = {*class_names, *(part for part, count in counts.items() if count > 1)}
    lists = [name for name in class_names if _is_list(name, set(class_names), likely)]
    if lists:
        count = "a label" if len(lists) == 1 else f"{len(lists):,} labels"
        reporter.warn(
            f"{path} has {count} such as {lists[0]!r}, which looks like several classes: it is read "
            "as one class of its own, because an image has one class here."
        )


def _split_list(name: str) -> list[str]:
    return [part for text in re.split("[,+&]", name) if (part := text.strip())]


def _is_list(name: str, class_names: set[str], likely: set[str]) -> bool:
    if LIST_BRACKETS.fullmatch(name) and re.search(r"['\",;]|^\[", name):
        return True
    # "cat, wild" is a name; "cat,wild" is how a program joins two.
    if re.search(r"[^|;\s]\s*[|;]\s*[^|;\s]|[^\W\d],[^\W\d]", name):
        return True
    parts = [part for part in re.split(r"[\s,+&]+", name) if part]
    # "golden retriever" is a class; "scab rust" is two where there are "scab" and "rust".
    elements = _split_list(name)
    return (len(parts) > 1 and class_names.issuperset(parts)) or (
        len(elements) > 1 and likely.issuperset(elements)
    )


def match_value(columns: Columns, value: str) -> str | None:
    """Return the part of the data that a value of the column of splits stands for, None for none."""
    name = canonicalize_name(value)
    if columns.flag is None:
        return match_split(name)
    yes, no = columns.flag
    return yes if name.casefold() in YES else no if name.casefold() in NO else match_split(name)


def _match_splits(path: Path, columns: Columns, values: Sequence[str]) -> list[str]:
    """Return the part of the data that each value of the column of splits stands for.

    Raises:
        DataError: a value that is none, or two words for one part, which may be two.
    """
    names = [canonicalize_name(value).casefold() for value in values]
    if set(names) <= {""}:
        return list(names)
    parts = [match_value(columns, value) for value in values]
    words: dict[str, str] = {}
    for value, name, part in zip(values, names, parts, strict=True):
        if part is None:
            raise DataError(
                f"{path} has rows of the split {value!r}."
                if name
                else f"{path} has rows without a split.",
                "Every row needs one of train, val, test in the column "
                f"{columns.names[columns.split or 0]!r}, or leave the column out.",
            )
        if words.setdefault(part, name) != name and columns.flag is None:
            raise DataError(
                f"{path} has a {words[part]} and a {name} split, which both mean {part}.",
                "Call them by one name, or rename the one that is something else.",
            )
    return [part for part in parts if part is not None]


def _warn_of_duplicates(
    path: Path,
    values: StringArray,
    labels: Labels,
    parts: NDArray[np.str_],
    reporter: Reporter,
) -> None:
    """Warn of paths that are there more than once, with different classes or in different parts."""
    # Hashes and not a dictionary: a million strings would take 100 MB.
    hashes = np.fromiter(map(hash, values), np.int64, len(values))
    order = np.argsort(hashes, kind="stable")
    again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    before = order[:-1][hashes[order[1:]] == hashes[order[:-1]]]
    for differs, what in (
        (labels[again] != labels[before], "different classes"),
        (parts[again] != parts[before], "different splits"),
    ):
        twice = np.sort(again[differs])
        if len(twice):
            reporter.warn(
                f"{path} has rows of the same image in {what}: {len(twice):,}, the first of "
                f"{values[int(twice[0])]!r}."
            )
