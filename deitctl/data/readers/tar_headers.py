"""The headers of an uncompressed tar, read in place: names of its members, and where their bytes are.

Formats: POSIX.1-1988 (ustar), GNU with its long names and sparse files, POSIX.1-2001 (pax); as Python's
tarfile reads them, in a third of its time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple
from zlib import adler32

from deitctl.data.stores.stored_file import StoredFile

BLOCK = 512
ZEROS = bytes(BLOCK)
RECORD = 20 * BLOCK
"""Bytes that tar writes at once, up to which it fills the last ones with zeros."""
MAX_RECORD = 2**20
"""That a program may be set to."""
NEAR = 4096
"""Bytes of a read: a header, and with it small members and their headers."""
FAR = 2**20
"""Bytes of a read where all of a tar is read, because its members are small."""
MAX_TEXT = 2**20
"""Bytes of a name or of a pax header."""
REGULAR = b"0\x007"
HAVE_NO_BYTES = b"123456"
"""Links, devices, folders and pipes."""
PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=\n]+)=")

Kind = Literal["file", "sparse", "hard link", "symbolic link", "other"]


class Entry(NamedTuple):
    """A member of a tar."""

    name: str
    offset: int
    """Of its bytes in the file."""
    size: int
    """In bytes."""
    kind: Kind
    target: str
    """Of a link."""


class DamagedTar(ValueError):
    """A tar that is cut short or damaged, or no tar; the message is the end of a sentence."""


class Window:
    """A part of a file in memory: nearby reads are one read of the file."""

    def __init__(self, file: StoredFile, near: int = NEAR) -> None:
        self.file = file
        self._near = self._step = near
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; raise `OSError` if they cannot be read."""
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            # Small members lie so close that reading on is cheaper than skipping them.
            gap = at - len(self._data)
            self._step = min(2 * self._step, FAR) if at >= 0 and gap <= self._step else self._near
            self._data = self.file.read(offset, max(size, self._step))
            self._start, at = offset, 0
        return self._data[at : at + size]


def iterate_entries(window: Window, start: int, end: int) -> Iterator[Entry]:
    """Yield the members of a tar.

    Args:
        window: of the file.
        start: offset of the tar in the file: 0, or that of a tar in a tar.
        end: offset behind it.

    Raises:
        DamagedTar: it is none, or is cut short or damaged.
        OSError: it cannot be read.
    """
    at, common, extra = start, dict[str, str](), dict[str, str]()
    while at < end:
        header = window.read(at, BLOCK) if at + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise DamagedTar(f"it is cut short at byte {end - start:,}, in a header")
        if header == ZEROS and not extra:
            _require_end(window, start, at, end)
            return
        if not _has_checksum(header):
            where = f"it is damaged at byte {at - start:,}" if at > start else "it is no tar"
            raise DamagedTar(f"{where}: no header of a member is there")
        size, kind = _parse_number(header[124:136]), header[156:157]
        if not 0 <= size < 2**62:
            raise DamagedTar(f"the member at byte {at - start:,} has {size} bytes")
        data, at = at + BLOCK, at + BLOCK
        if kind in b"LKxXg":
            text = _read_text(window, data, size, end)
            (common if kind == b"g" else extra).update(_parse_extra(kind, text))
            at += _round_up(size)
            continue
        entry = _make_entry(header, kind, data, size, {**common, **extra} if extra else common)
        if kind == b"S":
            entry = entry._replace(offset=_skip_sparse_map(window, header, data, end))
        extra = {}
        if entry.kind in ("file", "sparse", "other"):
            if entry.offset + entry.size > end:
                raise DamagedTar(
                    f"it is cut short: {entry.name!r:.200} ends {entry.offset + entry.size - end:,} bytes "
                    "behind its end"
                )
            at = entry.offset + _round_up(entry.size)
        yield entry
    if start == end:
        raise DamagedTar("it is empty")
    # Every writer ends with blocks of zeros; one that is cut between two members does not.
    raise DamagedTar(
        "it is cut short behind its last member: it has no block of zeros at its end (if that is all "
        "that it lacks, `truncate -s +1024` adds it)"
    )


def _require_end(window: Window, start: int, at: int, end: int) -> None:
    """Raise `DamagedTar` if there is more than padding from the block of zeros at `at` on."""
    size, rest = end - start, end - at
    # Programs fill the last record, of 10,240 bytes or of a power of two, and may add one.
    record = max(RECORD, min(size & -size, MAX_RECORD))
    if window.read(at, min(rest, record + BLOCK)).strip(b"\0"):
        raise DamagedTar(
            f"members follow behind its end at byte {at - start:,} (tars are joined by `tar -A`, not `cat`)"
        )
    if rest > record + BLOCK:
        raise DamagedTar(f"its last {rest:,} bytes are zeros, as of a download that was not ended")


def _make_entry(
    header: bytes, kind: bytes, data: int, size: int, extra: Mapping[str, str]
) -> Entry:
    name = _cut(header[:100])
    if kind == b"\0" and name.endswith("/"):  # a folder in tars of 1979
        kind = b"5"
    prefix = _cut(header[345:500])
    if prefix and kind not in b"LKS":
        name = f"{prefix}/{name}"
    sparse = kind == b"S"
    target = ""
    if kind in b"12":
        target = extra.get("linkpath") or _cut(header[157:257])
    if extra:
        name = extra.get("GNU.sparse.name") or extra.get("path") or name
        if "size" in extra:
            size = _parse_pax_size(extra["size"])
        sparse |= any(key.startswith("GNU.sparse") for key in extra)
    if kind in HAVE_NO_BYTES:
        links: dict[bytes, Kind] = {b"1": "hard link", b"2": "symbolic link"}
        # What has no bytes is followed by the next header, whatever size it claims.
        return Entry(name, data, 0, links.get(kind, "other"), target)
    of_files: Kind = "sparse" if sparse else "file" if kind in REGULAR else "other"
    return Entry(name, data, size, of_files, "")


def _has_checksum(header: bytes) -> bool:
    """Whether a block is a header by its checksum, of unsigned bytes or, as by old programs, of signed ones."""
    field = header[148:156]
    try:
        checksum = _parse_number(field)
    except DamagedTar:
        return False
    # The lower half of Adler-32 is one more than the sum of all bytes, in an eighth of its time.
    if adler32(header) & 0xFFFF == (checksum + sum(field) - 8 * ord(" ") + 1) % 65521 and (
        checksum < 65_000 and header.isascii()
    ):
        return True
    # Without zeros, which most bytes are: a third of the time.
    total = sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * ord(" ")
    if total == checksum:
        return True
    rest = header[:148] + header[156:]
    return total - 256 * sum(byte > 127 for byte in rest) == checksum


def _parse_number(field: bytes) -> int:
    """Return a number in octal digits, or in base 256 behind a bit that says so."""
    if field[0] in (0o200, 0o377):
        number = int.from_bytes(field[1:], "big")
        return number - 256 ** (len(field) - 1) if field[0] == 0o377 else number
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        raise DamagedTar("it is damaged: a number is none") from error


def _cut(field: bytes) -> str:
    """Return the text of a field, up to the first NUL."""
    end = field.find(b"\0")
    return (field if end < 0 else field[:end]).decode("utf-8", "surrogateescape")


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read_text(window: Window, offset: int, size: int, end: int) -> bytes:
    if size > MAX_TEXT or offset + size > end:
        raise DamagedTar(f"it is damaged: a name of {size:,} bytes")
    return window.read(offset, size)


def _parse_extra(kind: bytes, text: bytes) -> dict[str, str]:
    """Return what the header of a header says of the next member, or of all that follow."""
    if kind in b"LK":
        return {"path" if kind == b"L" else "linkpath": _cut(text)}
    records, at = dict[str, str](), 0
    while record := PAX_RECORD.match(text, at):
        length = int(record[1])
        if length < record.end() - at + 1 or at + length > len(text):
            raise DamagedTar("it is damaged: a pax header is")
        value = text[record.end() : at + length - 1]
        records[record[2].decode("utf-8", "replace")] = _cut(value)
        at += length
    return records


def _parse_pax_size(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise DamagedTar(f"a member has {text!r:.40} bytes")
    return int(text)


def _skip_sparse_map(window: Window, header: bytes, data: int, end: int) -> int:
    """Return where the bytes of a sparse file of GNU begin, behind the blocks of its map."""
    goes_on = header[482:483] not in (b"\0", b"")
    while goes_on:
        block = window.read(data, BLOCK) if data + BLOCK <= end else b""
        if len(block) < BLOCK:
            raise DamagedTar("it is cut short in the map of a sparse file")
        data, goes_on = data + BLOCK, block[504:505] != b"\0"
    return data
