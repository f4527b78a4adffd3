"""Text of tables: which encoding it is in, what separates its columns, and its rows.

What spreadsheets and programs write: UTF-8 and UTF-16 with a byte order mark, the encoding of older
Windows, columns separated by commas, semicolons, tabulators or bars.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NoReturn

from deitctl.data.file_types import START_BYTES, identify
from deitctl.data.text_types import MARKS
from deitctl.errors import DataError

WINDOWS = "cp1252"
"""Of text that is not UTF-8: what spreadsheets of western Europe and America write by default."""
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tabulator", "|": "bar", " ": "space"}
"""In order of preference; a space only where nothing else separates anything."""
CHUNK = 1 << 20
"""Bytes that are read at a time."""
SAMPLE_CHARACTERS = 1 << 16
SAMPLE_ROWS = 20
"""Rows by which the delimiter is found, at the start of the text."""
TEXT_TYPES = ("", "a text file", "a text file with an image in Base64")
"""What `identify` calls a file that may be a table; "" is what it does not know."""
END_MARK = "\x1a"
"""Ctrl-Z, by which DOS ended a text."""


@dataclass(frozen=True)
class TextTable:
    """A table of text, its rows not yet read."""

    path: Path
    encoding: str
    """Python's name of it."""
    delimiter: str
    header: tuple[str, ...]
    """Names of the columns, stripped, or the fields of the first row of a table without them."""
    first_row: int = 2
    """Line of the first row below the header, from 1."""
    strips: bool = field(default=False, kw_only=True)
    """Whether white space behind a delimiter is no part of a field."""

    @property
    def notes(self) -> list[str]:
        """What is unusual about it, as parts of a sentence."""
        notes = []
        if self.delimiter not in (",", "\t"):
            notes.append(f"columns separated by {DELIMITERS[self.delimiter]}s")
        if self.encoding not in ("utf-8", "utf-8-sig", WINDOWS):
            notes.append(f"text in {self.encoding.upper()}")
        return notes

    def read_rows(self, *, skip_header: bool = True) -> Iterator[list[str]]:
        """Yield the fields of each row that is not blank.

        Raises:
            DataError: the file cannot be read, or is no table.
        """
        try:
            with self.path.open(newline="", encoding=self.encoding) as file:
                lines = _skip_hint(file)[0]
                table = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.strips)
                # Spreadsheets write rows of blank fields below a table.
                rows = (row for row in table if "".join(row).strip().strip(END_MARK))
                for row in islice(rows, int(skip_header), None):
                    if "".join(row[len(self.header) :]).strip():
                        self._refuse_wide(row, table.line_num)
                    yield row
        except (OSError, UnicodeError, csv.Error) as error:
            raise DataError(f"{self.path} cannot be read: {_describe(error)}.") from error

    def _refuse_wide(self, row: Sequence[str], line: int) -> NoReturn:
        # Which of its fields are the columns is not known: a delimiter in one that is not quoted,
        # or a header that lacks the name of the first.
        raise DataError(
            f"{self.path}, line {line} has {len(row)} fields, and the first row {len(self.header)}.",
            f"Put a field with a {DELIMITERS[self.delimiter]} in it between double quotes, and give "
            "every column a name.",
        )


def open_text(path: Path, rate: Callable[[Sequence[str]], int]) -> TextTable:
    """Find out how a table is written.

    Args:
        path: the file.
        rate: how many of the columns that are needed a header names.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    encoding = find_encoding(path)
    try:
        with path.open(newline="", encoding=encoding) as file:
            lines, hint = _skip_hint(file)
            text = "".join(_take_characters(lines))
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read: {_describe(error)}.") from error
    try:
        delimiter, rows = _find_delimiter(text, hint, rate)
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {_describe(error)}.") from error
    header = list(rows[0]) if rows else []
    # "path, label": spaces that stand behind the delimiter in the header do so in every row.
    strips = delimiter == " " or any(name[:1] == " " for name in header[1:])
    if strips:
        header = next(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True))
    while header and not header[-1].strip():  # what stands below such a name is of no column
        header.pop()
    first_row = 2 + bool(hint)
    return TextTable(
        path, encoding, delimiter, tuple(name.strip() for name in header), first_row, strips=strips
    )


def find_encoding(path: Path, kinds: Sequence[str] = TEXT_TYPES) -> str:
    """Return the encoding of a file, which is read to the end unless it begins with a mark.

    Args:
        path: the file.
        kinds: what `identify` may call it.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
            for mark, encoding in MARKS:
                if start.startswith(mark):
                    return encoding
            # ASCII in UTF-16 has a zero in every other byte.
            if len(start) >= 4 and not any(start[1:8:2]) and all(start[0:8:2]):
                return "utf-16-le"
            if len(start) >= 4 and not any(start[0:8:2]) and all(start[1:8:2]):
                return "utf-16-be"
            kind = identify(start, path.stat().st_size)
            if kind == "empty":
                return "utf-8"
            if kind not in kinds:
                raise DataError(
                    f"{path} is {kind}, not a table of text.",
                    "Save it as CSV in UTF-8." if "ZIP" in kind else "",
                )
            if _is_utf8(file, start):
                return "utf-8"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_describe(error)}.") from error
    return WINDOWS


def _is_utf8(file: BinaryIO, start: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(start)
        while data := file.read(CHUNK):
            decoder.decode(data)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _skip_hint(file: io.TextIOWrapper) -> tuple[Iterator[str], str]:
    """Return the lines behind Excel's hint `sep=;`, and the delimiter that it names."""
    first = file.readline(CHUNK)
    hint = first.strip().strip('"').lower()
    if hint.startswith("sep=") and len(hint) <= 5:
        delimiter = first.strip().strip('"')[4:] or "\t"
        return iter(file), delimiter if delimiter in DELIMITERS else ""
    return chain([first], file), ""


def _take_characters(lines: Iterator[str]) -> Iterator[str]:
    """Yield the first lines, a hundred of them or `SAMPLE_CHARACTERS`."""
    count = 0
    for line in islice(lines, 100):
        count += len(line)
        # A header is read whole, however long it is.
        yield line
        if count > SAMPLE_CHARACTERS:
            return


def _find_delimiter(
    text: str, hint: str, rate: Callable[[Sequence[str]], int]
) -> tuple[str, list[list[str]]]:
    """Return the delimiter and the first rows by it.

    It is the one by which the header names most of the columns that are needed; then the one by
    which most rows have as many fields as the header, and more than one.
    """
    best: tuple[tuple[int, int, int], str, list[list[str]]] | None = None
    for delimiter in [hint] if hint else DELIMITERS:
        table = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter == " "
        )
        try:
            rows = list(islice((row for row in table if "".join(row).strip()), SAMPLE_ROWS))
        except csv.Error:  # a field that is too long, by this delimiter
            if best is None and delimiter == list(DELIMITERS)[-1]:
                raise
            continue
        width = len(rows[0]) if rows else 0
        even = sum(len(row) == width for row in rows[1:]) if width > 1 else 0
        score = (rate(rows[0]) if rows else 0, even, width if even else 0)
        if delimiter == " ":
            # Spaces are in names and paths; a list of `path label` has them nowhere else.
            is_list = 2 <= width <= 3 and even == len(rows) - 1
            score = score if is_list and (best is None or best[0][1:] == (0, 0)) else (0, 0, 0)
        if best is None or score > best[0]:
            best = (score, delimiter, rows)
    assert best is not None
    return best[1], best[2]


def _describe(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "its text is in none of UTF-8, UTF-16 and Windows-1252; save it as CSV in UTF-8"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
