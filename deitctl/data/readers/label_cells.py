"""Which classes a table's labels name: one, or several in a list or with signs between them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deitctl.config import TaskChoice
from deitctl.data.labels import MIN_SEVERAL
from deitctl.data.readers.class_columns import BITS, UNCERTAIN
from deitctl.data.readers.column_names import name_columns
from deitctl.data.readers.columns import Columns
from deitctl.data.readers.read_options import AUTO
from deitctl.errors import DataError
from deitctl.models.tasks import MULTILABEL
from deitctl.names import canonicalize_name

STRONG_SIGNS = ("|", ";")
"""Signs that join labels wherever one of these stands elsewhere too."""
WEAK_SIGNS = (",", "+", "&", " ")
"""Signs that names have too: they join labels where each of these stands alone elsewhere."""
SIGN_NAMES = {",": "a comma", " ": "a space"}
BRACKETS = {"[": "]", "(": ")", "{": "}"}
ITEM = re.compile(
    r"""\s*(?:("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|([^\s"',;\[\](){}][^"',\[\](){}]*?))\s*(,|(?=["'])|$)"""
)
"""An item of a list in quotes of either kind or in none, and what is behind it; NumPy writes no commas."""
ESCAPE = re.compile(
    r"""\\(?:([\\'"])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4}))"""
)
"""What Python writes for a quote, a backslash and a letter that cannot be printed; other backslashes, as
those of paths that nothing has doubled, stand for themselves."""
QUOTE = re.compile(r"[\"']")
NUMBERS = re.compile(r"\s*[\d.]+(\s+[\d.]+)+\s*")
"""Of a list as NumPy writes it."""
SEPARATOR = re.compile(r"\s*[,;|]\s*|\s+")
"""Between the fields of a list of 0 and 1."""
Items = tuple[str, ...] | DataError | None
WAY_ON = "--task multilabel reads several labels an image."
MAX_NAMED = 3


@dataclass(frozen=True)
class LabelCells:
    """The labels that each of some cells names."""

    labels: tuple[tuple[str, ...], ...]
    """Of each cell; of one label an image one, or none where the cell is empty."""
    is_multilabel: bool
    note: str = ""
    """How the labels of a cell were separated; empty for one label each."""
    columns: tuple[str, ...] = ()
    """Of several labels an image, the classes that have a column, whether an image has them or not."""


NameRow = Callable[[int], str]
"""Names the first row of a cell by its number, for messages."""


def read_cells(
    path: Path,
    cells: Sequence[str],
    task: TaskChoice,
    name_row: NameRow,
    counts: Sequence[int] | None = None,
) -> LabelCells:
    """Read the distinct cells of a column of labels.

    Args:
        path: the table, for messages.
        cells: of the column, each once.
        task: multilabel splits cells, classification takes them whole but for lists of one, auto
            splits them where they leave no doubt: lists of several, signs in `MIN_SEVERAL` of the rows.
        name_row: names a cell's row.
        counts: rows of each cell; None: one.

    Raises:
        DataError: a list that is not closed, with an empty item or with a label twice; lists of
            several labels for one label an image; rows of 0 and 1 that name no class.
    """
    filled = [cell for cell in cells if cell.strip()]
    _refuse_vectors(path, cells, name_row)
    lists = [_split_brackets(cell) for cell in cells]
    if _are_lists(lists, filled, task):
        return _read_lists(path, cells, lists, task, name_row)
    one_each = tuple((cell,) if cell.strip() else () for cell in cells)
    if task == "classification":
        return LabelCells(one_each, is_multilabel=False)
    sign = find_sign(filled, task == MULTILABEL)
    if not sign or (task == AUTO and _is_rare(sign, cells, counts or [1] * len(cells))):
        return LabelCells(one_each, is_multilabel=task == MULTILABEL)
    labels = []
    for number, cell in enumerate(cells):
        parts = tuple(map(str.strip, cell.split(sign))) if sign != " " else tuple(cell.split())
        labels.append(parts if cell.strip() else ())
        _require_labels(path, cell, labels[-1], partial(name_row, number))
        other = next((other for other in STRONG_SIGNS if other != sign and other in cell), "")
        if other and sign in STRONG_SIGNS:
            raise DataError(
                f"{path}, {name_row(number)} has {other!r} in {cell!r:.100}, and labels have {sign!r} "
                "between them.",
                "Write the same sign between all labels, or lists where a name has the other.",
            )
    return LabelCells(
        tuple(labels),
        is_multilabel=True,
        note=f"labels have {SIGN_NAMES.get(sign, repr(sign))} between them",
    )


def read_bits(
    columns: Columns, path: Path, cells: Sequence[str], task: TaskChoice, name_row: NameRow
) -> LabelCells:
    """Read the distinct rows of columns of 0 and 1, one a class, their fields joined by tabs.

    Otherwise as `read_cells`: several labels an image where a row has several 1s.

    Raises:
        DataError: a field is neither; for one label an image a row of none or several.
    """
    labels: list[tuple[str, ...]] = []
    for number, cell in enumerate(cells):
        ones: list[str] = []
        for at, field in zip(columns.one_hot, cell.split("\t"), strict=True):
            if field.casefold() not in BITS:
                what = f"has {field!r}" if field else "is blank"
                raise DataError(
                    f"{path}, {name_row(number)} {what} in the column {columns.names[at]!r}, and the "
                    "columns of classes hold 0 and 1.",
                    _suggest_bits(cells),
                )
            ones += [columns.names[at]] if BITS[field.casefold()] else []
        labels.append(tuple(ones))
    is_multilabel = task == MULTILABEL or (task == "auto" and max(map(len, labels)) > 1)
    for number, names in enumerate(labels):
        if len(names) != 1 and not is_multilabel:
            what = f"several classes ({name_columns(names)})" if names else "no class"
            raise DataError(
                f"{path}, {name_row(number)} has {what}: of the columns {name_columns(columns.names)} "
                f"{len(names)} of those of classes hold 1.",
                WAY_ON if names else f"{WAY_ON[:-1]}, or none.",
            )
    named = tuple(columns.names[at] for at in columns.one_hot) if is_multilabel else ()
    return LabelCells(tuple(labels), is_multilabel, columns=named)


def _suggest_bits(cells: Sequence[str]) -> str:
    """Return what to do about columns of classes that hold more than 0 and 1."""
    fields = {field for cell in cells for field in cell.split("\t")}
    kinds = ["0 where a blank means no"] if "" in fields else []
    if UNCERTAIN & fields:
        kinds.append("either one where -1 means uncertain")
    say = f" ({', '.join(kinds)})" if kinds else ""
    return f"Write 0 or 1 in all of them{say}; remove a column that is of no class."


def find_sign(cells: Sequence[str], is_multilabel: bool) -> str:
    """Return the sign between labels, empty where each cell is one.

    Args:
        cells: each once, none empty.
        is_multilabel: whether cells are known to have several labels.
    """
    alone = {canonicalize_name(cell) for cell in cells}
    for sign in (*STRONG_SIGNS, *WEAK_SIGNS):
        joined = [parts for cell in cells if len(parts := _split(cell, sign)) > 1]
        counts = Counter(part for parts in joined for part in set(parts))
        is_elsewhere = [all(part in alone for part in parts) for parts in joined]
        if is_multilabel and sign in (*STRONG_SIGNS, ",") and joined:
            return sign
        if sign in STRONG_SIGNS and any(part in alone or counts[part] > 1 for part in counts):
            return sign
        # "golden retriever" is a class; "scab rust" is two where there are "scab" and "rust".
        if (sign == "," or is_multilabel) and joined and all(is_elsewhere):
            return sign
    return ""


def _is_rare(sign: str, cells: Sequence[str], counts: Sequence[int]) -> bool:
    """Whether so few rows have a sign between labels that it may be a mistake."""
    rows = Counter[bool]()
    for cell, count in zip(cells, counts, strict=True):
        if cell.strip():
            rows[len(_split(cell, sign)) > 1] += count
    return rows[True] < MIN_SEVERAL * rows.total()


def _split(cell: str, sign: str) -> list[str]:
    parts = cell.split() if sign == " " else cell.split(sign)
    return [canonicalize_name(part) for part in parts]


def _are_lists(lists: Sequence[Items], filled: Sequence[str], task: TaskChoice) -> bool:
    """Whether cells are lists: all of them, or some and one of several items."""
    bracketed = [items for items in lists if items is not None]
    if not bracketed or len(bracketed) == len(filled):
        return bool(bracketed)
    several = any(isinstance(items, tuple) and len(items) != 1 for items in bracketed)
    return task != "classification" and (several or task == MULTILABEL)


def _read_lists(
    path: Path,
    cells: Sequence[str],
    lists: Sequence[Items],
    task: TaskChoice,
    name_row: NameRow,
) -> LabelCells:
    labels = []
    for number, (cell, items) in enumerate(zip(cells, lists, strict=True)):
        if isinstance(items, DataError):
            raise DataError(
                f"{path}, {name_row(number)} has the labels {cell!r:.100}: {items.message}",
                items.hint,
            )
        one = (cell,) if cell.strip() else ()
        labels.append(one if items is None else items)
        _require_labels(path, cell, labels[-1], partial(name_row, number))
        if task == "classification" and items is not None and len(items) != 1:
            raise DataError(
                f"{path}, {name_row(number)} has {len(items)} labels in a list, {cell!r:.100}, and "
                "--task classification is for one an image.",
                "Leave --task out, or choose one label.",
            )
    several = any(items is not None and len(labels[n]) != 1 for n, items in enumerate(lists))
    is_multilabel = task == MULTILABEL or (task == "auto" and several)
    note = "labels are lists" if is_multilabel else "labels are lists of one"
    return LabelCells(tuple(labels), is_multilabel, note)


def _refuse_vectors(path: Path, cells: Sequence[str], name_row: NameRow) -> None:
    """Raise `DataError` if cells are equally many 0s and 1s, one for each class: no class has a name."""
    widths = {_measure_vector(cell.strip()) for cell in cells if cell.strip()}
    if len(widths) != 1 or 0 in widths:
        return
    first = next(number for number, cell in enumerate(cells) if cell.strip())
    raise DataError(
        f"{path}, {name_row(first)} has {cells[first]!r:.100}: 0 or 1 for each of {widths.pop():,} "
        "classes, which have no names.",
        "Give each class a column of 0 and 1, called by its name.",
    )


def _measure_vector(text: str) -> int:
    """Return the length of a list of 0 and 1, with brackets or without; 0 for any other text."""
    fields = SEPARATOR.split(text.strip("[](){}").strip())
    # "0,1" may be a decimal number, [0, 1] is a list; NumPy writes floats as "1."
    is_list = len(fields) > (1 if text[0] in BRACKETS else 2)
    is_vector = is_list and all(field.casefold().rstrip(".") in BITS for field in fields)
    return len(fields) if is_vector else 0


def _require_labels(
    path: Path, cell: str, labels: Sequence[str], name_row: Callable[[], str]
) -> None:
    """Raise `DataError` if one of several labels is empty, or one is there twice."""
    names = list(map(canonicalize_name, labels))
    if "" in names:
        raise DataError(
            f"{path}, {name_row()} has an empty label in {cell!r:.100}.",
            "Remove the sign too many, or write the label that is missing there.",
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{path}, {name_row()} has the label {twice!r} twice in {cell!r:.100}.",
            "Remove one, or correct it if it stands for another.",
        )


def _split_brackets(cell: str) -> Items:
    """Return the items of a list; None for a text that is none, an error for one that is broken."""
    text = cell.strip()
    is_list = text[:1] == "[" or re.match(r"[({]\s*['\"]", text)
    if not is_list:
        return None
    if text[-1] != BRACKETS[text[0]]:
        return _break(f"{text[0]} is not closed") if re.match(r".\s*['\"]", text) else None
    items = _read_json(text)
    return _split_items(text[1:-1]) if items is None else items


def _read_json(text: str) -> Items:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or any(isinstance(item, list | dict) for item in items):
        return _break("its items are no labels")
    return tuple("" if i is None else i if isinstance(i, str) else json.dumps(i) for i in items)


def _split_items(inner: str) -> Items:
    """Return the items between brackets, in quotes or without them, as Python, NumPy and people write them."""
    if not inner.strip():
        return ()
    if NUMBERS.fullmatch(inner):
        return tuple(inner.split())
    items, at = [], 0
    while at < len(inner):
        match = ITEM.match(inner, at)
        if match is None:
            rest = inner[at:].strip()
            if rest.startswith(","):
                return _break("an item is empty")
            return (
                _break(f"its quotes and commas do not match at {rest:.20}")
                if QUOTE.search(inner)
                else None
            )
        quoted, bare, behind = match.groups()
        items.append(bare if quoted is None else ESCAPE.sub(_unescape, quoted[1:-1]))
        at = match.end()
        if behind and not inner[at:].strip():
            break  # Python's tuple of one
    return tuple(items)


def _unescape(match: re.Match[str]) -> str:
    sign, *codes = match.groups()
    return sign or chr(int(next(filter(None, codes)), 16))


def _break(what: str) -> DataError:
    return DataError(f"{what}.", 'A list is ["cat", "dog"]; cat|dog says the same.')
