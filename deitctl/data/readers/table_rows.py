"""The rows of a table: paths, class names and parts of the data, checked and numbered.

Whatever its file is: text, lines of JSON, Parquet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import Labels
from deitctl.data.labels import describe_labels
from deitctl.data.layout import match_split
from deitctl.data.readers.column_names import name_columns
from deitctl.data.readers.columns import NO, YES, Columns
from deitctl.data.readers.label_cells import WAY_ON, LabelCells, read_bits, read_cells
from deitctl.data.readers.raw_rows import RawRows, Texts, read_raw
from deitctl.data.readers.read_options import AS_IS, AUTO, ReadOptions
from deitctl.data.readers.repeated_rows import JoinedRows, join_repeated
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.models.tasks import MULTILABEL
from deitctl.names import canonicalize_name, group_spellings

MISSING_WORDS = frozenset(("nan", "null", "<na>", "n/a", "#n/a", "nat"))
"""What programs write for a value that is missing."""
WHOLE = re.compile(r"(-?\d+)\.0+")
"""A whole number as pandas writes it in a column with missing values."""
LIST_BRACKETS = re.compile(r"[\[({].*[\])}]", re.DOTALL)
NO_CLASS = "--task multilabel reads it as an image with none of the classes"
MAX_NAMED = 3


@dataclass(frozen=True)
class TableRows:
    """A table's images, in order of their first rows."""

    values: StringArray
    """Paths as they are written, [N]."""
    labels: Labels
    """Index into `class_names`, [N]; of several labels an image multi-hot, [N,K]."""
    class_names: tuple[str, ...]
    """In lexicographic order; a part may lack some."""
    splits: Mapping[str, NDArray[np.int64]]
    """Images of each part of the data; those of a table without parts are under ""."""
    group_names: Sequence[str] | None = None
    """Of each image, [N]; None without a column of groups."""
    notes: tuple[str, ...] = ()
    """By what an image is read as one of several labels."""

    def take_groups(self, rows: NDArray[np.int64]) -> Sequence[str] | None:
        """Return the groups of some images."""
        return None if self.group_names is None else [self.group_names[n] for n in rows.tolist()]

    def find_classes(self, rows: NDArray[np.int64]) -> set[int]:
        """Return the numbers of the classes that some images have."""
        return set(find_used(self.labels[rows]).tolist())


def collect_rows(
    path: Path | str,
    columns: Columns,
    rows: Iterable[Sequence[str]],
    reporter: Reporter,
    options: ReadOptions = AS_IS,
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
        options: the task: whether an image may have several labels, or none.
        first_row: number of the first row, for messages.
        needs_path: whether a row without a path is refused; images in the table need none.

    Raises:
        DataError: no rows, one without path, class or split, or with several classes where an image
            has one, a list of labels that is broken, an unknown split.
    """
    raw, names = read_raw(path, columns, rows, needs_path), columns.names
    cells = raw.cells

    def name_row(cell: int) -> str:
        return f"row {first_row + int((cells.rows == cell).argmax())}"

    of_names = partial(read_cells, counts=np.bincount(cells.rows).tolist())
    read = of_names if columns.label is not None else partial(read_bits, columns)
    cell_labels = read(path, list(cells.numbers), options.task, name_row)
    has_class = np.array([bool(labels) for labels in cell_labels.labels])[cells.rows]
    if not raw.has_path.all():
        lacks_some = ~(raw.has_path & has_class)
        _refuse_row(path, names, first_row, ~raw.has_path, lacks_some, names[columns.path])
    parts = np.array(_match_splits(path, columns, list(raw.splits.numbers)))[raw.splits.rows]
    is_read = _leave_test_out(path, parts, has_class, reporter)
    if options.task != MULTILABEL:
        _require_labels(path, columns, raw, cell_labels, has_class | ~is_read, first_row)
    group_names = _name_groups(path, columns, raw.groups, first_row)
    labels, class_names = _number_cells(path, cell_labels, reporter)
    if not any(cell_labels.labels):
        raise DataError(f"{path} has no image with a class, in {name_columns(names)}.")
    if not cell_labels.is_multilabel and options.task == AUTO:
        _warn_of_lists(path, class_names, reporter)
    row_labels, read_rows = labels[cells.rows], np.flatnonzero(is_read)
    joined = JoinedRows(read_rows, row_labels[read_rows])
    if needs_path:
        joined = join_repeated(
            path, raw.values, row_labels, class_names, parts, read_rows, options.task, reporter
        )
    first = joined.first
    return TableRows(
        raw.values if len(first) == len(raw.values) else raw.values.take(first.tolist()),
        joined.labels,
        class_names,
        {
            part: at
            for part in ("train", "val", "test", "")
            if len(at := np.flatnonzero(parts[first] == part))
        },
        None if group_names is None else [group_names[n] for n in first.tolist()],
        _describe(cell_labels, joined),
    )


def _require_labels(
    path: Path | str,
    columns: Columns,
    raw: RawRows,
    cell_labels: LabelCells,
    is_labeled: NDArray[np.bool_],
    first_row: int,
) -> None:
    """Raise `DataError` for a row without a label; of several labels an empty list is one that says so."""
    cells, names, way_on = raw.cells, columns.names, ""
    if cell_labels.is_multilabel:
        is_filled = np.array([bool(cell.strip()) for cell in cells.numbers])[cells.rows]
        is_labeled, way_on = is_labeled | is_filled, f"; {NO_CLASS}"
    if not is_labeled.all():
        column = "label" if columns.label is None else names[columns.label]
        image = raw.values[int(is_labeled.argmin())]
        _refuse_row(path, names, first_row, ~is_labeled, ~is_labeled, column, image, way_on)


def _name_groups(
    path: Path | str, columns: Columns, groups: Texts, first_row: int
) -> list[str] | None:
    """Return the group of each row; None without a column of groups."""
    if columns.group is None:
        return None
    if "" in groups.numbers:
        lacks_it = groups.rows == groups.numbers[""]
        column = columns.names[columns.group]
        _refuse_row(path, columns.names, first_row, lacks_it, lacks_it, column)
    texts = list(groups.numbers)
    return [texts[n] for n in groups.rows.tolist()]


def _describe(cell_labels: LabelCells, joined: JoinedRows) -> tuple[str, ...]:
    """Say how labels were separated, and how many images have them."""
    notes = [note for note in (cell_labels.note, joined.note) if note]
    if joined.labels.ndim == 2:
        notes.append(f"task multilabel, as {describe_labels(joined.labels)}")
    return tuple(notes)


def _leave_test_out(
    path: Path | str, parts: NDArray[np.str_], has_class: NDArray[np.bool_], reporter: Reporter
) -> NDArray[np.bool_]:
    """Return which rows are read, [N]: all, but for a test part of which none has a class."""
    is_test = np.asarray(parts == "test", np.bool_)
    if is_test.any() and has_class.any() and not has_class[is_test].any():
        reporter.note(
            f"{path}: the {is_test.sum():,} test images have no labels, and are left out."
        )
        return np.logical_not(is_test)
    return np.ones(len(parts), np.bool_)


def _number_cells(
    path: Path | str, cell_labels: LabelCells, reporter: Reporter
) -> tuple[Labels, tuple[str, ...]]:
    """Return the labels of each cell by number, -1 for none or multi-hot, and the classes."""
    texts = list(dict.fromkeys(chain(chain.from_iterable(cell_labels.labels), cell_labels.columns)))
    class_of = dict(zip(texts, _name_classes(path, texts, reporter), strict=True))
    class_names = tuple(sorted(set(class_of.values())))
    places = {name: at for at, name in enumerate(class_names)}
    if not cell_labels.is_multilabel:
        numbers = [places[class_of[cell[0]]] if cell else -1 for cell in cell_labels.labels]
        return np.array(numbers, np.int64), class_names
    labels = np.zeros((len(cell_labels.labels), len(class_names)), np.bool_)
    for number, cell in enumerate(cell_labels.labels):
        labels[number, [places[class_of[text]] for text in cell]] = True
    return labels, class_names


def number_classes(labels: Labels, class_names: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Number the labels of a part of a table by the classes that it has; of several labels an image it has
    all of the table, as an image without a class says something about it too."""
    if labels.ndim == 2:
        return labels, tuple(class_names)
    used = find_used(labels)
    return np.searchsorted(used, labels).astype(np.int64), tuple(class_names[n] for n in used)


def find_used(labels: Labels) -> NDArray[np.int64]:
    """Return the numbers of the classes that images have, in rising order."""
    return np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)


def _refuse_row(
    path: Path | str,
    names: Sequence[str],
    first_row: int,
    lack_it: NDArray[np.bool_],
    lack_something: NDArray[np.bool_],
    column: str,
    image: str = "",
    way_on: str = "",
) -> NoReturn:
    count = int(lack_something.sum())
    more = f"; {count:,} rows lack something" if count > 1 else ""
    raise DataError(
        f"{path}, row {first_row + int(lack_it.argmax())} has no {column!r}{more}.",
        f"Fill it in{f' for {image!r:.100}' if image else ''}, or remove the row"
        f"{'s' if more else ''}{way_on}. The columns are "
        f"{name_columns(names)}.",
    )


def _name_classes(path: Path | str, labels: Sequence[str], reporter: Reporter) -> list[str]:
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


def _warn_of_lists(path: Path | str, class_names: Sequence[str], reporter: Reporter) -> None:
    """Warn of labels that look like several classes."""
    # What stands alone, or in more than one list, is likely a class of its own.
    counts = Counter(part for name in class_names for part in set(_split_list(name)))
    likely = {*class_names, *(part for part, count in counts.items() if count > 1)}
    lists = [name for name in class_names if _is_list(name, set(class_names), likely)]
    if lists:
        count = "a label" if len(lists) == 1 else f"{len(lists):,} labels"
        reporter.warn(
            f"{path} has {count} such as {lists[0]!r}, which looks like several classes: it is read "
            f"as one class of its own. {WAY_ON}"
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


def _match_splits(path: Path | str, columns: Columns, values: Sequence[str]) -> list[str]:
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
