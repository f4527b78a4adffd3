"""Columns of 0 and 1, one for each class: which columns of a table are such, and what else they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

BITS = {
    **dict.fromkeys(("0", "0.0", "false", "no"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}
"""What columns hold that say of each class whether an image has it."""
UNCERTAIN = frozenset(("-1", "-1.0"))
"""What CheXpert writes where a report leaves open whether an image has a class."""
MAX_OTHERS = 0.05
"""Share of the fields that are filled which may hold something else by mistake; and one may where
`MIN_BITS` are 0 and 1."""
MIN_BITS = 3
BATCH = 10_000
"""Rows that are counted at a time."""
ReadAll = Callable[[Sequence[int]], Iterable[Sequence[str]]]
"""Reads all rows; fields that are not at the places given may be empty."""


def find_class_columns(
    rows: Sequence[Sequence[str]], places: Sequence[int], read_all: ReadAll
) -> dict[int, list[str]]:
    """Return the columns that hold 0 and 1, but for few fields, and what else is in them, each value once.

    Blanks, and signs of uncertainty, are as many as they are: a column of them is one of a class that
    is to be completed, not one of something else.

    Args:
        rows: the first ones, by which most columns of something else are known.
        places: of the columns that may be of a class.
        read_all: reads all rows; nothing where the first ones are all.
    """
    likely = [
        at
        for at, values in _count_values(rows, places).items()
        if (num_others := _count_others(values)) == 0 or num_others <= _count_bits(values)
    ]
    if len(likely) < 2:
        return {}
    counts = _count_values(read_all(likely), likely)
    if not any(counts.values()):
        counts = _count_values(rows, likely)
    return {
        at: [value for value in values if value not in BITS]
        for at, values in counts.items()
        if _is_of_class(values)
    }


def describe_others(values: Iterable[str]) -> str:
    """Name what columns of classes hold beside 0 and 1, the values that are most usual first."""
    texts = ["blanks" if not value else repr(value) for value in dict.fromkeys(values)]
    return " and ".join(texts[:3])


def _count_values(
    rows: Iterable[Sequence[str]], places: Sequence[int]
) -> Mapping[int, Counter[str]]:
    counts: dict[int, Counter[str]] = {at: Counter() for at in places}
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        for at, values in counts.items():
            values.update(row[at].strip().casefold() if at < len(row) else "" for row in batch)
    return counts


def _is_of_class(values: Counter[str]) -> bool:
    num_bits, num_others = _count_bits(values), _count_others(values)
    is_mistake = num_others == 1 and num_bits >= MIN_BITS
    return num_bits > 0 and (is_mistake or num_others <= MAX_OTHERS * (num_bits + num_others))


def _count_bits(values: Counter[str]) -> int:
    return sum(count for value, count in values.items() if value in BITS)


def _count_others(values: Counter[str]) -> int:
    return sum(
        count
        for value, count in values.items()
        if value and value not in BITS and value not in UNCERTAIN
    )
