"""Which stored values of an image of more than 8 bits are black and white.

What the file states decides for it: the significant bits of a PNG (sBIT), the sample range or the
bits of a TIFF. Where files state nothing, one range is chosen for the whole data set
(`data/range_survey.py`), never image by image: two images of different light would look the same.

Sources: PNG specification (third edition) 11.3.2.4 "sBIT Significant bits"; TIFF 6.0, tags 258, 262,
280, 281, 339, 340, 341.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange

BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE = 258, 262, 281
SAMPLE_FORMAT, S_MIN_SAMPLE, S_MAX_SAMPLE = 339, 340, 341
NODATA = 42113
"""Tags of TIFF; the last one is GDAL's, a number as text."""
MIN_IS_WHITE = 0
"""A photometric interpretation, which Pillow applies to 8 bits alone."""
FULL = ValueRange(0, 65535)
"""Of 16 bits; Pillow scales PNM and JPEG 2000 to it by the largest value or precision they state."""
SIGNED_BYTE = ValueRange(-128, 127)
NO_RANGE = ValueRange(0, 0)
"""Of data in which no image needed a range: an image that does is refused."""
BITS = (8, 10, 12, 14, 16)
"""Depths that cameras and scanners have; 32-bit files may hold more."""
POWERS = tuple(2.0**k for k in range(33))
FLOAT_MAXIMA = (*POWERS[:8], 255.0, 1023.0, 4095.0, 16383.0, 65535.0, *POWERS[17:])
"""Of floats that are not negative; those from 255 on are integers in floats."""
MISSING_FROM = 1e36
"""Floats as large stand for no value: netCDF fills with 9.97e36, GDAL with 3.4e38."""
OPTION = "--value-range LOW,HIGH"


def find_stated_range(image: Image.Image, data: bytes) -> ValueRange | None:
    """Return the range that a file states for its values; None where it states its container alone.

    Args:
        image: opened by Pillow.
        data: the file, or empty for an image without one.
    """
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return FULL
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _find_tiff_range(image.tag_v2)
    if image.format == "PNG" and (bits := find_significant_bits(data)):
        return ValueRange(0, 2**bits - 1)
    return None


def _find_tiff_range(tags: Mapping[int, Any]) -> ValueRange | None:
    low, high = _read_number(tags, S_MIN_SAMPLE), _read_number(tags, S_MAX_SAMPLE)
    if high is not None and (low or 0) < high:
        return ValueRange(low or 0, high)
    bits = _read_number(tags, BITS_PER_SAMPLE) or 16
    if is_signed_byte(tags):
        return SIGNED_BYTE
    if 8 < bits < 16:
        return ValueRange(0, 2 ** int(bits) - 1)
    # Meant for statistics: of an image's own maximum the depth does not follow, of 2^k - 1 it does.
    largest = _read_number(tags, MAX_SAMPLE)
    if largest in {2.0**k - 1 for k in range(9, 16)}:
        return ValueRange(0, largest)
    return None


def is_signed_byte(tags: Mapping[int, Any]) -> bool:
    """Return whether a TIFF's values are signed integers of 8 bits, which Pillow takes for unsigned ones."""
    return (tags.get(BITS_PER_SAMPLE), tags.get(SAMPLE_FORMAT)) == ((8,), (2,))


def _read_number(tags: Mapping[int, Any], tag: int) -> float | None:
    """Return a tag's value, the largest of several samples; None if it is missing or no number."""
    value = tags.get(tag)
    values = value if isinstance(value, tuple) else (value,)
    try:
        return max(float(v) for v in values)
    except (TypeError, ValueError):
        return None


def find_significant_bits(data: bytes) -> int:
    """Return the bits a channel that a PNG of 16 states as significant; 0 if it states none, or 16."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"sBIT":
            channels = data[at + 8 : at + 8 + min(length, 4)]
            bits = max(
                channels[:-1] if len(channels) in (2, 4) else channels, default=0
            )  # no alpha
            return bits if 0 < bits < 16 else 0
        if kind == b"IDAT":
            break
        at += 12 + length
    return 0


def choose_range(low: float, high: float, *, is_float: bool) -> ValueRange:
    """Return the smallest usual range that holds the values between two.

    Integers: 0 to 2^k - 1 for 8, 10, 12, 14 or 16 bits (more in 32-bit files), with negative ones
    -2^(k-1) to 2^(k-1) - 1 for any k. Floats: 0 to 1, a power of two up to 128, 255, or as integers; with
    negative ones a power of two on both sides, or on theirs alone.

    Raises:
        DataError: floats beyond 2^32, which measure no light.
    """
    if is_float:
        largest = max(abs(low), abs(high))
        top = next((m for m in (POWERS if low < 0 else FLOAT_MAXIMA) if largest <= m), None)
        if top is None:
            raise DataError(
                f"Values from {low:,.6g} to {high:,.6g} are in no range that images have.",
                f"Say which are black and white: {OPTION}.",
            )
        return ValueRange(-top if low < 0 else 0, 0 if low < 0 and high <= 0 else top)
    if low < 0:
        bits = next(k for k in range(8, 33) if low >= -(2 ** (k - 1)) and high < 2 ** (k - 1))
        return ValueRange(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    bits = next(k for k in (*BITS, *range(18, 33, 2)) if high < 2**k)
    return ValueRange(0, 2**bits - 1)


def find_nodata(image: Image.Image) -> float | None:
    """Return the value that stands for none in a TIFF, as GDAL writes it; None if it states none."""
    text = getattr(image, "tag_v2", {}).get(NODATA)
    try:
        return float(text.strip(" \0")) if isinstance(text, str) else None
    except ValueError:
        return None


def find_missing(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_] | None:
    """Return which values stand for none: nodata, NaN, infinite or huge; None if they all are values.

    Such a value says nothing about the range, and is shown as its low end.
    """
    is_float = values.dtype.kind == "f"
    if not is_float and nodata is None:
        return None
    missing = ~(np.abs(values) < MISSING_FROM) if is_float else np.zeros(values.shape, np.bool_)
    if nodata is not None:
        # The text has more digits, or fewer, than a float of 32 bits.
        missing |= values == (np.float32(nodata) if is_float else nodata)
    return missing if missing.any() else None


def require_in_range(
    low: float, high: float, value_range: ValueRange, name: str, *, stated: bool = False
) -> None:
    """Raise `DataError` if an image has values outside of a range that does not clip.

    Args:
        low: its smallest value.
        high: its largest.
        value_range: of its data or, if `stated`, of its file.
        name: of the image.
        stated: whether its file states that range.
    """
    if value_range.clips or (value_range.low <= low and high <= value_range.high):
        return
    whose = "its file states" if stated else "this data is scaled by"
    raise DataError(
        f"{name} holds values from {low:,.6g} to {high:,.6g}, outside of the "
        f"{describe_range(value_range)} that {whose}.",
        f"{OPTION} sets another, and clips.",
    )


def write_range(value_range: ValueRange | None) -> str:
    """Return a range as text that `parse_range` reads back; empty for None."""
    return "" if value_range is None else ",".join(map(repr, map(float, value_range)))


def parse_range(text: str) -> ValueRange | None:
    """Return what `write_range` wrote; None for anything else."""
    try:
        low, high, clips = map(float, text.split(","))
    except ValueError:
        return None
    return ValueRange(low, high, bool(clips))


def describe_range(value_range: ValueRange) -> str:
    """Return a range in words, with its bits where they are whole: `12 bits (0..4095)`."""
    low, high = value_range[:2]
    bits = int(high - low + 1).bit_length() - 1
    text = f"{low:.0f}..{high:.0f}" if max(-low, high) > 2 else f"{low:g}..{high:g}"
    return f"{bits} bits ({text})" if bits >= 8 and high - low + 1 == 2**bits else text
