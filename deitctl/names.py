"""Names as people write them: class names, labels of tables and splits, compared in one form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence


def canonicalize_name(name: str) -> str:
    """Return a name in Unicode's composed form, without white space at its ends.

    macOS decomposes letters with accents in file names, and spreadsheets leave spaces behind a
    label: neither makes another class. A name in canonical form is its own canonical form.
    """
    if name.isascii():
        return name.strip()
    return unicodedata.normalize("NFC", name).strip()


def reduce_name(name: str) -> str:
    """Return a name without what people spell in several ways; equal ones may be one class.

    Case, Unicode form, characters that are not seen, and spaces, underscores and hyphens between
    words. Not signs: `-1`, `B-` and `C++` are other names than `1`, `B` and `C`, and `1-2` than `12`.
    """
    name = unicodedata.normalize("NFKC", name).casefold()
    name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    name = re.sub(r"[\s_]+", " ", name).strip()
    separator = r"(?: +|-+| +-+ +)"
    letter = r"[^\W\d]"
    return re.sub(rf"(?<=\w){separator}(?={letter})|(?<={letter}){separator}(?=\w)", "", name)


def group_spellings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the spellings of each name by its canonical form, in order."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(canonicalize_name(name), []).append(name)
    return spellings


def find_names(names: Sequence[str], choices: Sequence[str]) -> list[int | None]:
    """Return the place of each name among others: the same name, else one of the same canonical form.

    Args:
        names: what is looked for.
        choices: where; the first of several of one canonical form is taken.
    """
    exact: dict[str, int] = {}
    canonical: dict[str, int] = {}
    for place, choice in enumerate(choices):
        exact.setdefault(choice, place)
        canonical.setdefault(canonicalize_name(choice), place)
    return [exact.get(name, canonical.get(canonicalize_name(name))) for name in names]
