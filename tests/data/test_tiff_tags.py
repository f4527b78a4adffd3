"""What a TIFF holds is read from its first directory, and a camera's raw file is told from an image."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from deitctl.data.decode import decode
from deitctl.data.tiff_tags import read_tags
from deitctl.errors import DataError

SHORT, LONG = 3, 4


def tiff(tags: dict[int, tuple[int, list[int]]], order: str = "<", at_end: bytes = b"") -> bytes:
    """A TIFF of one directory, which lies behind `at_end`."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8 + len(at_end))
    start = 8 + len(at_end) + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'L'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(order + "L", start + len(values)), values + packed
        entries += struct.pack(order + "HHL", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return head + at_end + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values


def bands(count: int, bits: int = 8, number: int = 1) -> dict[int, tuple[int, list[int]]]:
    return {
        256: (LONG, [6]),
        257: (LONG, [4]),
        258: (SHORT, [bits] * count),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [count]),
        278: (LONG, [4]),
        279: (LONG, [6 * 4 * count * bits // 8]),
        339: (SHORT, [number] * count),
    }


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tags", "says"),
    [
        (bands(5), "a TIFF of 5 bands of 8 bits"),
        (bands(13, 16), "a TIFF of 13 bands of 16 bits"),
        (bands(3, 32, 3), "a TIFF of 3 bands of 32 bits in floating point"),
        (bands(1, 64, 3), "a TIFF of 1 band of 64 bits in floating point"),
        (bands(1, 64, 6), "a TIFF of 1 band of 64 bits in complex numbers"),
    ],
)
def test_a_tiff_of_other_bands_is_refused_as_what_it_is(order, tags, says):
    """Satellites and microscopes write them; the directory lies behind the pixels."""
    data = tiff(tags, order, at_end=bytes(4096))
    assert read_tags(data).describe() == says
    with pytest.raises(DataError, match=f"^x.tif is {says}; save what it shows as PNG of 8 bits"):
        decode(data, "x.tif")


def test_a_compression_that_is_not_read_is_named():
    data = tiff({**bands(3), 259: (SHORT, [34887])}, at_end=bytes(72))
    with pytest.raises(
        DataError, match=r"^x is a TIFF whose compression \(LERC\) is not read; save"
    ):
        decode(data, "x")


def test_an_ordinary_layout_that_cannot_be_read_is_damage():
    data = tiff({**bands(3), 262: (SHORT, [77])}, at_end=bytes(72))
    with pytest.raises(DataError, match="^x is a TIFF image that is damaged or cut short"):
        decode(data, "x")


def test_a_directory_that_is_cut_or_points_outside_says_nothing():
    data = tiff(bands(5))
    for end in range(len(data)):
        assert isinstance(read_tags(data[:end]).describe(), str)
    assert read_tags(b"II*\0\xff\xff\xff\x7f").describe() == ""
    assert read_tags(b"no tiff").values == {}


def test_a_raw_file_is_no_image_although_it_has_a_thumbnail(tmp_path):
    """Pillow would open the small image of its first directory."""
    thumbnail = {**bands(1), 254: (LONG, [1]), 330: (LONG, [8, 8])}
    dng = {**bands(1), 50706: (1, [])}
    mosaic, packed = {**bands(1), 262: (SHORT, [32803])}, {**bands(1), 259: (SHORT, [34713])}
    for tags in (thumbnail, dng, mosaic, packed):
        with pytest.raises(DataError, match=r"^x\.tif is a camera raw file; develop it"):
            decode(tiff(tags, at_end=bytes(24)), "x.tif")


def test_an_ordinary_tiff_and_a_pyramid_are_images():
    assert not read_tags(tiff(bands(1))).is_raw
    pyramid = {**bands(1), 254: (LONG, [0]), 330: (LONG, [8, 8])}
    data = tiff(pyramid, at_end=bytes(range(24)))
    assert not read_tags(data).is_raw
    assert np.array_equal(np.asarray(decode(data, "x.tif"))[..., 0], np.arange(24).reshape(4, 6))
