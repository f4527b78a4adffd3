"""Which column of a table is what: the image, its class, the part of the data that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

from deitctl.data.group_by import NOTATIONS, is_of_path
from deitctl.data.layout import find_split_word, match_split
from deitctl.data.readers.class_columns import ReadAll, describe_others, find_class_columns
from deitctl.data.readers.column_names import (
    FLAGS,
    LABEL,
    LABEL_KEYS,
    LABEL_NAMES,
    MAX_NAMED,
    PATH,
    PATH_KEYS,
    PATH_NAMES,
    SOURCE_NAMES,
    SPLIT,
    SPLIT_NAMES,
    SPLITS,
    is_label_word,
    name_columns,
    reduce_name,
)
from deitctl.data.readers.read_options import AS_IS, ReadOptions
from deitctl.errors import DataError, did_you_mean
from deitctl.models.tasks import MULTILABEL
from deitctl.names import canonicalize_name

SHORT_WORDS = {"tr": "train", "trn": "train", "va": "val", "vl": "val", "te": "test", "tst": "test"}
"""Values that seem to be parts, and are refused, because they may be something else."""
MAX_SPLIT_WORDS = 6
"""Different words for parts in a column; more are names of images, such as `train_1`."""
YES, NO = frozenset(("1", "1.0", "true", "yes")), frozenset(("0", "0.0", "false", "no"))
WAY_ON = "Call the column of image files 'path' and that of classes 'label'."
PIXEL = re.compile(r"(pixel|px|p|v)?\d+(x\d+)?")
MIN_PIXELS = 16
SAVE_PIXELS = "Its columns are pixels, and a table here names files: save each row as a PNG."


@dataclass(frozen=True)
class Columns:
    """Places of a table's columns, from 0."""

    path: int
    label: int | None
    """None: the table has a column of 0 and 1 for each class, in `one_hot`."""
    split: int | None
    names: tuple[str, ...]
    """Of all columns."""
    one_hot: tuple[int, ...] = ()
    rivals: tuple[str, ...] = ()
    """Columns that could be that of images or classes too, were no other called `path` or `label`."""
    without_parts: tuple[str, ...] = ()
    """Columns that are called as those of splits and hold none, such as numbers of folds."""
    group: int | None = None
    """Place of the column that names the group of an image."""

    @property
    def flag(self) -> tuple[str, str] | None:
        """Parts of the rows with yes and with no, if the split is a column of yes and no."""
        return None if self.split is None else FLAGS.get(reduce_name(self.names[self.split]))

    def list_places(self) -> list[int]:
        """Return the places of all columns that are read."""
        places = [self.path, self.label, self.split, self.group, *self.one_hot]
        return [at for at in places if at is not None]

    def list_rivals(self, at: int | None) -> list[str]:
        """Return the columns that could be what that of images or of classes is, by its place."""
        kinds = PATH_NAMES if at == self.path else LABEL_NAMES
        return [name for name in self.rivals if reduce_name(name) in kinds]

    @property
    def notes(self) -> list[str]:
        """Which columns were taken that are not called `path`, `label` or `split`."""
        chosen = [("images", self.path, PATH), ("classes", self.label, LABEL)]
        chosen.append(("splits", self.split, SPLIT))
        notes = [
            f"{what} by the column {self.names[at]!r}"
            for what, at, name in chosen
            if at is not None and self.names[at].casefold() != name
        ]
        notes += [
            f"{what} by the column {self.names[at]!r}, not {' or '.join(map(repr, rivals))}"
            for what, at in (("images", self.path), ("classes", self.label))
            if at is not None and (rivals := self.list_rivals(at))
        ]
        if self.one_hot:
            classes = name_columns([self.names[at] for at in self.one_hot])
            notes.append(f"classes are the {len(self.one_hot)} columns of 0 and 1: {classes}")
            taken = {*self.without_parts, *(self.names[at] for at in self.list_places())}
            if others := [name for name in self.names if name and name not in taken]:
                notes.append(f"not those of other values: {name_columns(others)}")
        if self.without_parts:
            notes.append(f"no splits are in {' and '.join(map(repr, self.without_parts))}")
        return notes


def find_columns(
    path: Path | str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    images: Sequence[int] = (),
    class_labels: Sequence[int] = (),
    read_all: ReadAll = lambda places: (),
    options: ReadOptions = AS_IS,
) -> Columns:
    """Find the columns of a table by their names.

    Args:
        path: the table, for messages.
        names: of its columns.
        rows: its first rows, by which columns of 0 and 1 are found.
        images: places of columns that hold images, of which the one is taken that there is.
        class_labels: places of columns whose metadata name classes, of which the same holds where no
            column is called like one of classes.
        read_all: reads all rows, which are looked through where the first leave open what a column is.
        options: name the column of groups; for several labels an image columns of 0 and 1 are taken
            that stand beside others.

    Raises:
        DataError: there is no column of images or of classes, or more than one.
    """
    if not any(names):
        raise DataError(f"{path} has no rows.", "It needs the columns path,label[,split].")
    reduced = [reduce_name(name) for name in names]
    at = images[0] if len(images) == 1 else None
    if at is None:
        at = _find(path, names, reduced, PATH, (PATH_NAMES, PATH_KEYS), "image files")
    label = _find(path, names, reduced, LABEL, (LABEL_NAMES, LABEL_KEYS), "classes", taken=at)
    if label is None and class_labels:
        label = _take_only(path, names, class_labels, "classes", LABEL)
    words = [n for n, name in enumerate(reduced) if n != at and is_label_word(name)]
    has_label = label is not None or bool(words)
    split = _find_split(path, names, rows, read_all, {at, label}, has_label)
    group = _find_group(path, names, reduced, options.group_by)
    parts = [name in SPLIT_NAMES - SOURCE_NAMES for name in reduced]
    one_hot, bits = tuple[int, ...](), dict[int, list[str]]()
    if at is not None and label is None:
        places = [n for n in range(len(names)) if n not in (at, split, group) and not parts[n]]
        bits = find_class_columns(rows, places, read_all)
        may_stand_beside = options.task == MULTILABEL and not words
        is_one_hot = len(bits) > 1 and (may_stand_beside or len(bits) == len(places))
        one_hot = tuple(bits) if is_one_hot else ()
    if label is None and not one_hot:
        others = [n for n in words if n not in (split, group)]
        label = _take_only(path, names, others, "classes", LABEL) if others else None
    if at is None or (label is None and not one_hot):
        _refuse_columns(path, names, "image files" if at is None else "classes", bits)
    rivals = tuple(
        names[n]
        for kinds, chosen in ((PATH_NAMES, at), (LABEL_NAMES, label))
        for n, name in enumerate(reduced)
        if name in kinds and chosen is not None and n not in (at, label) and n != chosen
    )
    others = [n for n in range(len(names)) if split is None and n not in (at, label, *one_hot)]
    without_parts = tuple(names[n] for n in others if parts[n])
    return Columns(at, label, split, tuple(names), one_hot, rivals, without_parts, group)


def _find(
    path: Path | str,
    names: Sequence[str],
    reduced: Sequence[str],
    exact: str,
    kinds: Sequence[frozenset[str]],
    what: str,
    taken: int | None = None,
) -> int | None:
    """Return the column that is called `exact`, else the only one of the first kind of names that is there."""
    for spellings in (names, [name.casefold() for name in names]):
        if exact in spellings:
            return list(spellings).index(exact)
    for kind in kinds:
        places = [at for at, name in enumerate(reduced) if name in kind and at != taken]
        if places:
            return _take_only(path, names, places, what, exact)
    return None


def _find_split(
    path: Path | str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    read_all: ReadAll,
    taken: set[int | None],
    has_label: bool,
) -> int | None:
    """Return the column of splits: the one called so, else of a known name, else by its values."""
    called = [at for at, name in enumerate(names) if name.casefold() == SPLIT]
    if called:
        return called[0]
    # Without labels, `train` may be a class, of a column of 0 and 1.
    split_names = SPLITS | frozenset(FLAGS) if has_label else SPLITS
    places = [
        at
        for at, name in enumerate(map(reduce_name, names))
        if name in split_names
        and any(
            _holds_splits(name, (row[at] for row in some if at < len(row)))
            for some in (rows, read_all([at]))
        )
    ]
    # A flag knows two parts, and a column of all three may be beside it.
    if all(reduce_name(names[at]) in FLAGS for at in places):
        others = _find_parts(names, rows, read_all, taken)
        places += [at for at in others if at not in places]
    return _take_only(path, names, places, "splits", SPLIT) if places else None


def _find_parts(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    read_all: ReadAll,
    taken: set[int | None],
) -> list[int]:
    """Return the columns all of whose values name a part of the data, and not the same one."""
    values: dict[int, set[str]] = {}
    others = taken - {None}

    def look_through(rows: Iterable[Sequence[str]]) -> None:
        for row in rows:
            for at, value in enumerate(row):
                if at in others or value in values.get(at, ("",)) or not value.strip():
                    continue
                values.setdefault(at, set()).add(value)
                if _find_part(value) is None or len(values[at]) > MAX_SPLIT_WORDS:
                    others.add(at)
            if len(others) >= len(names):
                return

    look_through(rows)
    if open_places := [at for at in range(len(names)) if at not in others]:
        look_through(read_all(open_places))
    return [
        at
        for at, words in values.items()
        if at not in others and len(set(map(_find_part, words))) > 1
    ]


def _find_part(value: str) -> str | None:
    """Return the part that a value seems to mean; it need not be one that is read."""
    return find_split_word(value) or SHORT_WORDS.get(value.strip().casefold())


def _holds_splits(name: str, values: Iterable[str]) -> bool:
    """Whether the values of a column are splits; of a flag, yes and no in all rows that have any."""
    filled = (value for value in map(canonicalize_name, values) if value)
    if name in FLAGS:
        first = next(filled, None)
        return first is not None and all(v.casefold() in YES | NO for v in chain([first], filled))
    return any(map(match_split, filled))


def _take_only(
    path: Path | str, names: Sequence[str], places: Sequence[int], what: str, exact: str
) -> int:
    """Return the only place of a column that may be that of something.

    Raises:
        DataError: there are more.
    """
    if len(places) > 1:
        raise DataError(
            f"{path} has the columns {name_columns(names)}, of which "
            f"{' and '.join(repr(names[at]) for at in places[:MAX_NAMED])} may be that of {what}.",
            f"Call the right one {exact!r}.",
        )
    return places[0]


def _find_group(
    path: Path | str, names: Sequence[str], reduced: Sequence[str], group_by: str
) -> int | None:
    """Return the column that is called as that of groups, in its own spelling or nearly.

    Raises:
        DataError: there is none, or there are several.
    """
    if not group_by or is_of_path(group_by):
        return None
    if group_by in names:
        return list(names).index(group_by)
    places = [at for at, name in enumerate(reduced) if name == reduce_name(group_by)]
    if not places:
        near = did_you_mean(group_by, names)
        raise DataError(
            f"{path} has the columns {name_columns(names)}, and no {group_by!r}, which --group-by names.",
            near or NOTATIONS,
        )
    return _take_only(path, names, places, "groups", group_by)


def _refuse_columns(
    path: Path | str, names: Sequence[str], missing: str, bits: dict[int, list[str]]
) -> NoReturn:
    """Raise `DataError` for a table that lacks a column, with the columns of 0 and 1 that are."""
    has_pixels = sum(bool(PIXEL.fullmatch(reduce_name(name))) for name in names) >= MIN_PIXELS
    if has_pixels or len(bits) < 2:
        what = (
            f"has the columns {name_columns(names)}, and none of them is known as that of {missing}"
        )
        raise DataError(f"{path} {what}.", SAVE_PIXELS if has_pixels else WAY_ON)
    mixed = [names[at] for at, values in bits.items() if values]
    others = describe_others(chain.from_iterable(bits.values()))
    raise DataError(
        f"{path} has no column of class names: {name_columns([names[at] for at in bits])} hold 0 and 1"
        + (f", but for {others} in {name_columns(mixed)}" if mixed else "")
        + f"; {name_columns([name for at, name in enumerate(names) if at not in bits])} do not.",
        "--task multilabel takes columns of 0 and 1 beside others as classes; a column of class names "
        f"is called {LABEL!r}.",
    )
