"""Small files that take minutes or gigabytes: what they repeat is counted before they are decoded.

Pillow adds up comments and EXIF segments by copying, reads the value of every tag whether or not another tag
has the same bytes, and calls Python for every block. Its decoders give Python control back only where they
read, so a count comes first, and a limit on CPU time at each read is for what no count foresees. Figures are
those of Pillow 12.3.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any

from PIL import Image, TiffImagePlugin

from deitctl.errors import DataError

MAX_SCANS = 200
"""Scans of a progressive JPEG, each as slow to decode as an image; encoders write ten or so."""
MAX_SCANNED_IMAGES = 20
"""Scans times pixels, in images of the pixel limit: 200 scans of an image of that size take 7 s."""
MAX_EXIF_SEGMENTS = 200
"""Of a JPEG. One is usual; 1,600, which are 105 MB, took 48 s."""
MAX_SEGMENTS = 2**16
"""Of a JPEG of several scans: one has about three for each scan, and one for each 64 kB of metadata."""
SEGMENT = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")
"""The markers of a JPEG that a length follows, and its end. The others end the decoding, or are passed over."""
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = frozenset((0xC0, 0xC1, 0xC3, 0xC9))
"""Of the frames of a JPEG: one scan suffices for a sequential one, if all colors are in it."""
MAX_PROFILES = 20
"""Color profiles of a PNG, of which it may have one. Each can inflate to 1 MB from 1 kB."""
MAX_COMMENTS = 1000
"""`#` in a plain PNM: each copies up to 1 MB."""
MAX_TABLE_BYTES = 2**16
"""Of an AVIF's lists of items, whose number counts as its square: 200 kB took 2.7 s."""
MAX_TILES = 2**18
"""Strips or tiles of a TIFF; Pillow makes a Python object of each."""
MAX_OVERLAP = 4
"""Times the bytes of a TIFF or EXIF block that its tags may have as values, some of them the same bytes."""
MAX_GIF_READS = 20_000
"""Before the image of a GIF, two for each block of a comment or an extension."""
MAX_OPEN_S = 2.0
"""CPU time until the size of an image is known: thousandths of a second for any real one."""
MAX_DECODE_S = 30.0
"""CPU time of a decode, where it can be seen: whenever Python reads for the decoder."""
SMALL_BYTES = 2**18
"""Files up to this size cannot be slow by the number of their parts, and are read without a limit on time."""
READS_PER_CHECK = 16
STRIP = 2**20
"""Bytes that are processed at a time where that needs temporary copies."""
WITHOUT_LENGTH = frozenset((0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
"""Second bytes of JPEG markers that no length follows."""
STRIP_OFFSETS, TILE_OFFSETS = 273, 324
_thread = threading.local()


class TimedBytes(io.BytesIO):
    """The bytes of a file, of which no more are read once the CPU time of this thread is spent."""

    def __init__(self, data: bytes, name: str, seconds: float, max_reads: int = 0) -> None:
        """Begin to count.

        Args:
            data: the file.
            name: for messages.
            seconds: of CPU time from now on.
            max_reads: limit on the number of reads; 0: none.
        """
        super().__init__(data)
        self._name, self._num_reads, self._max_reads = name, 0, max_reads
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Set the CPU time from now on."""
        self._seconds, self._end_s = seconds, time.thread_time() + seconds

    def allow_reads(self) -> None:
        """Drop the limit on the number of reads."""
        self._max_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does; raise `DataError` where a limit is passed."""
        self._num_reads += 1
        if self._max_reads and self._num_reads > self._max_reads:
            raise DataError(
                f"{self._name} has more than {self._max_reads // 2:,} blocks before its image."
            )
        if self._num_reads % READS_PER_CHECK == 0 and time.thread_time() > self._end_s:
            raise DataError(
                f"{self._name} was given up: decoding takes longer than {self._seconds:.0f} s."
            )
        return super().read(size)


def open_bounded(
    data: bytes, name: str, formats: tuple[str, ...], seconds: float = MAX_DECODE_S
) -> Image.Image:
    """Open an image with Pillow, unless it repeats what makes a small file slow; within `limit_tags`.

    Args:
        data: the file.
        name: for messages.
        formats: Pillow's names of those that are tried.
        seconds: CPU time of what follows, after at most `MAX_OPEN_S` here.

    Raises:
        DataError: a limit is passed.
        Exception: whatever Pillow raises for damaged files.
    """
    require_few_parts(data, name)
    if len(data) <= SMALL_BYTES:
        return Image.open(io.BytesIO(data), formats=formats)
    is_gif = data.startswith(b"GIF8")
    source = TimedBytes(data, name, MAX_OPEN_S, MAX_GIF_READS if is_gif else 0)
    image = Image.open(source, formats=formats)
    source.allow(seconds)
    source.allow_reads()
    return image


def require_few_parts(data: bytes, name: str) -> None:
    """Count what a file repeats, by its format's layout.

    Raises:
        DataError: there is too much of it.
    """
    count, parts, most = _count_parts(data)
    if count > most:
        raise DataError(f"{name} has {count:,} {parts}, more than {most:,}.")


def _count_parts(data: bytes) -> tuple[int, str, int]:
    """Return how many parts of a kind a file has, the kind, and the limit."""
    if data.startswith(b"\xff\xd8\xff"):
        count = _count_exif_segments(data) if len(data) > SMALL_BYTES else 0
        return count, "EXIF segments", MAX_EXIF_SEGMENTS
    if data.startswith(b"\x89PNG"):
        return _count_png_profiles(data), "color profiles", MAX_PROFILES
    if data.startswith((b"P1", b"P2", b"P3")):
        return data.count(b"#"), "comments", MAX_COMMENTS
    if data[4:8] == b"ftyp":
        return _measure_avif_tables(data), "bytes of lists of items", MAX_TABLE_BYTES
    return 0, "", 0


def require_few_scans(data: bytes, pixels: int, max_pixels: int, name: str) -> None:
    """Raise `DataError` for a JPEG that is decoded many times over: ten thousand scans fit into 100 kB.

    Args:
        data: the file.
        pixels: of the image.
        max_pixels: the limit on them.
        name: for messages.
    """
    scans = count_scans(data, name)
    most = min(
        MAX_SCANS, max(MAX_SCANNED_IMAGES, MAX_SCANNED_IMAGES * max_pixels // max(pixels, 1))
    )
    if scans > most:
        raise DataError(f"{name} has {scans:,} scans, more than {most:,}.")


def count_scans(data: bytes, name: str) -> int:
    """Count the scans of a JPEG that libjpeg would decode, from marker to marker as it goes.

    What only looks like a marker does not count: in an APP segment, or behind the end of the image, where cameras
    put a film (Motion Photo) or a second image (MPO).

    Raises:
        DataError: there are more segments than a loop in Python should see.
    """
    scans, num_components, sequential = 0, 0, False
    for number, (marker, at) in enumerate(_iterate_segments(data)):
        if number == MAX_SEGMENTS:
            raise DataError(f"{name} has more than {MAX_SEGMENTS:,} segments.")
        if marker in FRAMES and at + 10 <= len(data):
            num_components, sequential = data[at + 9], marker in SEQUENTIAL
        if marker == 0xDA:
            scans += 1
            # All colors in a sequential scan: it is the only one that is read.
            if sequential and scans == 1 and data[at + 4 : at + 5] == bytes((num_components,)):
                break
    return scans


def _iterate_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and place of the segments of a JPEG until its end."""
    at = 2
    while (match := SEGMENT.search(data, at)) is not None:
        at = match.start()
        marker = data[at + 1]
        if marker == 0xD9:
            return
        yield marker, at
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _count_exif_segments(data: bytes) -> int:
    """Count those before a JPEG's first scan, from marker to marker as Pillow goes."""
    count, at = 0, 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:
            break
        if marker == 0xFF:  # padding
            at += 1
        elif marker < 0xC0 or marker in WITHOUT_LENGTH:
            at += 2
        else:
            count += marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return count


def _count_png_profiles(data: bytes) -> int:
    count, at = 0, 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        count += kind == b"iCCP"
        at += 12 + length
    return count


def _measure_avif_tables(data: bytes) -> int:
    """Return the bytes of the boxes that list items: `iinf`, `iloc`, `iref`, `ipma`."""
    size = 0
    for kind, start, end in _iterate_boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in _iterate_boxes(data, start + 4, end):
            if inner == b"iprp":
                boxes = _iterate_boxes(data, first, last)
                size += sum(b - a for box, a, b in boxes if box == b"ipma")
            elif inner in (b"iinf", b"iloc", b"iref"):
                size += last - first
    return size


def _iterate_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the contents of the boxes of an ISO media file, between two bytes."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # to the end of what it is in
            size = end - start
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size


@contextmanager
def limit_tags() -> Iterator[None]:
    """Let Pillow refuse directories of tags whose values lie upon each other, in this thread and block.

    It copies every value: 40,000 tags of the same half megabyte make 20 GB of a file of 1 MB. One class reads
    those of TIFF, and of EXIF in all formats, while it opens a file; it has no setting for this, and the
    program around deitctl may open files of its own with it.
    """
    _wrap_load()
    was_limited = _is_limited()
    _thread.is_limited = True
    try:
        yield
    finally:
        _thread.is_limited = was_limited


def _is_limited() -> bool:
    return getattr(_thread, "is_limited", False)


@lru_cache(maxsize=1)
def _wrap_load() -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2
    load = directory.load

    def load_bounded(self: Any, fp: IO[bytes]) -> None:
        if _is_limited():
            _require_few_values(self, fp)
        load(self, fp)

    directory.load = load_bounded  # type: ignore[method-assign]


def _require_few_values(directory: Any, fp: IO[bytes]) -> None:
    """Raise `OSError` if a directory's values are several times larger than its file, or too many tiles."""
    start = fp.tell()
    size = fp.seek(0, io.SEEK_END)
    fp.seek(start)
    head, layout = ("Q", "HHQQ") if directory._bigtiff else ("H", "HHLL")
    order = directory._endian
    num_tags = int.from_bytes(
        fp.read(struct.calcsize(order + head)), "little" if order == "<" else "big"
    )
    entry = struct.Struct(order + layout)
    table = fp.read(min(num_tags * entry.size, size))
    fp.seek(start)
    units = directory._load_dispatch
    total = 0
    for tag, kind, count, offset in entry.iter_unpack(
        table[: len(table) // entry.size * entry.size]
    ):
        length = count * units[kind][0] if kind in units else 0
        # What goes beyond the file is not read.
        if length > 4 and offset + length <= size:
            total += length
            if tag in (STRIP_OFFSETS, TILE_OFFSETS) and count > MAX_TILES:
                raise OSError(f"it has {count:,} tiles, more than {MAX_TILES:,}")
    if total > MAX_OVERLAP * size + SMALL_BYTES:
        raise OSError(f"its tags have {total:,} bytes, of a file of {size:,}")
