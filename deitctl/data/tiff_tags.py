"""The tags of a TIFF's first directory that say what it holds, where Pillow has no mode for it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL.TiffImagePlugin import COMPRESSION_INFO

MAX_TAGS = 512
"""Of a directory that are looked at; real ones have ten to eighty."""
NEW_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
SAMPLES, SUB_IFDS, FORMAT, DNG_VERSION = 277, 330, 339, 50706
ORIENTATION, PLANAR = 274, 284
MOSAICS = (32803, 34892)
"""Photometric interpretations of a sensor's values, with and without its color filters."""
RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65535)
"""Of Sony, Epson, Samsung, Nikon and Pentax."""
COMPRESSIONS = {
    34887: "LERC",
    50002: "JPEG XL",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
}
SIZES = {1: 1, 3: 2, 4: 4, 16: 8, 13: 4, 18: 8}
"""Bytes of a value by its type: BYTE, SHORT, LONG, LONG8, IFD, IFD8."""
CODES = {1: "B", 2: "H", 4: "L", 8: "Q"}
FORMATS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex numbers"}


@dataclass(frozen=True)
class TiffTags:
    """The first directory of a TIFF; 0 and empty for what it does not say."""

    values: dict[int, tuple[int, ...]]

    @property
    def is_raw(self) -> bool:
        """Whether it is a camera's raw file: of a sensor's values, or a thumbnail before other directories.

        An ordinary TIFF has its image first. (A pyramid has the smaller ones behind it.)
        """
        is_thumbnail = bool(self.values.get(NEW_SUBFILE, (0,))[0] & 1)
        is_mosaic = self.values.get(PHOTOMETRIC, (0,))[0] in MOSAICS
        is_packed = self.values.get(COMPRESSION, (0,))[0] in RAW_COMPRESSIONS
        has_others = is_thumbnail and SUB_IFDS in self.values
        return DNG_VERSION in self.values or is_mosaic or is_packed or has_others

    @property
    def is_unsigned(self) -> bool:
        """Whether its values are unsigned integers, or nothing else is stated."""
        return self.values.get(FORMAT, (1,))[0] not in FORMATS

    def describe(self) -> str:
        """Return what is unusual in it, such as `a TIFF of 5 bands of 8 bits`; empty if nothing is stated to be."""
        bits = self.values.get(BITS, (1,))
        samples = self.values.get(SAMPLES, (len(bits),))[0]
        width, height = (self.values.get(tag, (0,))[0] for tag in (WIDTH, HEIGHT))
        compression = self.values.get(COMPRESSION, (1,))[0]
        if compression not in COMPRESSION_INFO:
            return f"a TIFF whose compression ({COMPRESSIONS.get(compression, compression)}) is not read"
        is_ordinary = samples in (1, 3, 4) and set(bits) <= {1, 8} and self.is_unsigned
        if not (width and height and samples) or is_ordinary:
            return ""
        number = FORMATS.get(self.values.get(FORMAT, (1,))[0], "")
        depth = f"{' and '.join(sorted({str(b) for b in bits}, key=int))} bits"
        bands = "band" if samples == 1 else "bands"
        return f"a TIFF of {samples} {bands} of {depth}{f' in {number}' if number else ''}"


def read_tags(data: bytes) -> TiffTags:
    """Read the first directory of a TIFF or BigTIFF, as far as it is in `data`."""
    return next(iterate_directories(data), TiffTags({}))


def iterate_directories(data: bytes) -> Iterator[TiffTags]:
    """Yield the directories of a TIFF or BigTIFF in their order, each once, as far as they are in `data`."""
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
        link = order + ("Q" if is_big else "L")
        at = struct.unpack_from(link, data, 8 if is_big else 4)[0]
    except (KeyError, struct.error):
        return
    head, entry = (order + "Q", order + "HHQ8s") if is_big else (order + "H", order + "HHL4s")
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        values: dict[int, tuple[int, ...]] = {}
        following = 0
        try:
            count = struct.unpack_from(head, data, at)[0]
            at += struct.calcsize(head)
            for number in range(min(count, MAX_TAGS)):
                tag, kind, length, field = struct.unpack_from(
                    entry, data, at + number * struct.calcsize(entry)
                )
                values[tag] = _read_values(data, order, kind, length, field, is_big)
            following = struct.unpack_from(link, data, at + count * struct.calcsize(entry))[0]
        except (OverflowError, struct.error):  # cut: what was read counts
            pass
        yield TiffTags(values)
        at = following


def _read_values(
    data: bytes, order: str, kind: int, length: int, field: bytes, is_big: bool
) -> tuple[int, ...]:
    """Return up to 16 integers of a tag, (0,) for another type or where they lie outside."""
    size = SIZES.get(kind, 0)
    count = min(length, 16)
    if not size or not count:
        return (0,)
    if length * size > len(field):
        at = struct.unpack(order + ("Q" if is_big else "L"), field)[0]
        field = data[at : at + count * size]
    if len(field) < count * size:
        return (0,)
    return struct.unpack_from(f"{order}{count}{CODES[size]}", field)
