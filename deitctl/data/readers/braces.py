"""Names in braces, as a shell expands them."""

from __future__ import annotations

import re

from deitctl.errors import DataError

MAX_SHARDS = 1_000_000
"""Of a reference in braces: a typing mistake may mean more."""
MAX_BRACES = 50
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that braces mean, as in bash: `{000..146}`, `{a,b}`, several, one in another.

    Raises:
        DataError: they mean more than `MAX_SHARDS`, or nothing.
    """
    if pattern.count("{") > MAX_BRACES:
        raise _refuse_braces(pattern)
    return _expand(pattern, pattern)


def _expand(text: str, pattern: str) -> list[str]:
    """Return the names that a part of a pattern means."""
    start = text.find("{")
    end = _find_end(text, start)
    if start < 0 or end < 0:
        return [text]
    values = _list_values(text[start + 1 : end], pattern)
    tails = _expand(text[end + 1 :], pattern)
    if len(values) * len(tails) > MAX_SHARDS:
        raise _refuse_braces(pattern)
    return [text[:start] + value + tail for value in values for tail in tails]


def _find_end(text: str, start: int) -> int:
    """Return where the brace that opens at `start` closes, -1 if it does not."""
    depth = 0
    for at in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return at
    return -1


def _list_values(text: str, pattern: str) -> list[str]:
    """Return what the inside of braces means: numbers, or what stands between commas."""
    span = RANGE.fullmatch(text)
    if span is None:
        alternatives = _split_commas(text)
        if len(alternatives) < 2:
            raise DataError(
                f"{pattern!r:.200} has {{{text:.40}}}, which means no numbers.",
                "Shards are named as in a shell: x-{000000..000146}.tar or x-{a,b}.tar.",
            )
        values = list[str]()
        for part in alternatives:
            values += _expand(part, pattern)
            if len(values) > MAX_SHARDS:
                raise _refuse_braces(pattern)
        return values
    first, last, step = int(span[1]), int(span[2]), abs(int(span[3] or 1)) or 1
    if abs(last - first) // step >= MAX_SHARDS:
        raise _refuse_braces(pattern)
    is_padded = any(re.match(r"-?0\d", end) for end in (span[1], span[2]))
    width = max(len(span[1]), len(span[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if last >= first else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _split_commas(text: str) -> list[str]:
    """Return what stands between commas that are in no inner braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _refuse_braces(pattern: str) -> DataError:
    return DataError(f"{pattern!r:.200} means more than {MAX_SHARDS:,} shards.", "Name fewer.")
