"""What makes a small file slow is counted before it is decoded; real files stay far below each limit."""

from __future__ import annotations

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from deitctl.data import decode_limits
from deitctl.data.decode import decode
from deitctl.data.decode_limits import (
    MAX_COMMENTS,
    MAX_EXIF_SEGMENTS,
    MAX_GIF_READS,
    MAX_PROFILES,
    MAX_TABLE_BYTES,
    MAX_TILES,
    SMALL_BYTES,
    TimedBytes,
    count_scans,
    limit_tags,
    open_bounded,
    require_few_scans,
)
from deitctl.errors import DataError

SPARE = b"\0" * SMALL_BYTES


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def jpeg_of_exif(count: int) -> bytes:
    data = encode("JPEG")
    return data[:2] + segment(0xE1, b"Exif\0\0MM\0*") * count + data[2:] + SPARE


def png_of_profiles(count: int) -> bytes:
    data = encode("PNG")
    return data[:33] + chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x")) * count + data[33:]


def pnm_of_comments(count: int) -> bytes:
    return b"P3 64 64 255\n" + b"#\n" * count + b"1 " * 64 * 64 * 3


def gif_of_blocks(count: int) -> bytes:
    data = encode("GIF")
    at = data.index(b",")
    return data[:at] + b"\x21\xfe" + b"\1x" * count + b"\0" + data[at:] + SPARE


@pytest.mark.parametrize(
    ("make", "most", "says"),
    [
        (jpeg_of_exif, MAX_EXIF_SEGMENTS, "x has 201 EXIF segments, more than 200."),
        (png_of_profiles, MAX_PROFILES, "x has 21 color profiles, more than 20."),
        (pnm_of_comments, MAX_COMMENTS, "x has 1,001 comments, more than 1,000."),
    ],
)
def test_parts_are_counted_exactly(make, most, says):
    assert decode(make(most), "x").size == (64, 64)
    with pytest.raises(DataError) as caught:
        decode(make(most + 1), "x")
    assert str(caught.value) == says


def test_blocks_before_the_image_of_a_gif_are_limited():
    assert decode(gif_of_blocks(MAX_GIF_READS // 2 - 10), "x").size == (64, 64)
    with pytest.raises(DataError, match="x has more than 10,000 blocks before its image"):
        decode(gif_of_blocks(MAX_GIF_READS // 2 + 1), "x")


def test_exif_is_counted_where_pillow_finds_it():
    """Behind padding, junk, restart markers and other segments; not in a scan, nor within a segment."""
    exif = segment(0xE1, b"Exif\0\0MM\0*")
    data = b"\xff\xd8" + b"\xff\xff" + exif + b"junk" + b"\xff\0" + exif + b"\xff\xd0" + exif
    data += segment(0xFE, exif) + segment(0xDA, b"") + exif
    assert decode_limits._count_exif_segments(data) == 3
    real = encode("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert decode_limits._count_exif_segments(real) == 1


@pytest.mark.parametrize("list_box", [b"iinf", b"iloc", b"iref", b"ipma"])
@pytest.mark.parametrize("size_of_meta", ["stated", "to the end", "64 bits"])
def test_lists_of_items_are_measured_in_every_form_of_box(list_box, size_of_meta):
    table = box(list_box, b"\0" * (MAX_TABLE_BYTES + 1))
    body = b"\0" * 4 + (box(b"iprp", table) if list_box == b"ipma" else table)
    meta = {
        "stated": box(b"meta", body),
        "to the end": struct.pack(">I4s", 0, b"meta") + body,
        "64 bits": struct.pack(">I4sQ", 1, b"meta", len(body) + 16) + body,
    }[size_of_meta]
    with pytest.raises(DataError, match="x has 65,537 bytes of lists of items, more than 65,536"):
        decode(box(b"ftyp", b"avif\0\0\0\0") + meta, "x")


def test_a_real_avif_is_far_below_the_limit():
    data = encode("AVIF")
    assert 0 < decode_limits._measure_avif_tables(data) < MAX_TABLE_BYTES / 100
    assert decode(data, "x").size == (64, 64)


def jpeg_of_scans(count: int, frame: int = 0xC2) -> bytes:
    """Three components, scans of one."""
    sof = segment(frame, struct.pack(">BHHB", 8, 64, 64, 3) + bytes((1, 17, 0, 2, 17, 1, 3, 17, 1)))
    return (
        b"\xff\xd8" + sof + (segment(0xDA, b"\1\1\0\0\0\0") + b"\x12\xff\0") * count + b"\xff\xd9"
    )


def test_scans_are_limited_by_the_pixels_that_they_run_over():
    scans = jpeg_of_scans(100)
    require_few_scans(scans, 10**6, 10**8, "x")
    with pytest.raises(DataError, match="x has 100 scans, more than 20"):
        require_few_scans(scans, 10**8, 10**8, "x")
    with pytest.raises(DataError, match="x has 198 scans, more than 20"):
        require_few_scans(jpeg_of_scans(198), 10**8, 10**8, "x")
    with pytest.raises(DataError, match="x has 300 scans, more than 200"):
        require_few_scans(jpeg_of_scans(300), 1, 10**8, "x")


@pytest.mark.parametrize("progressive", [False, True])
def test_what_only_looks_like_a_scan_is_not_counted(progressive):
    """In the metadata of a camera and in what it puts behind the image: films, and further images."""
    data = encode("JPEG", progressive=progressive)
    real = data.count(b"\xff\xda") if progressive else 1
    assert count_scans(data, "x") == real
    marks = b"\xff\xda" * 5000
    metadata = segment(0xE4, marks) + segment(0xFE, marks)
    for changed in (
        data + marks,
        data[:2] + metadata * 50 + data[2:],
        data[:2] + b"\xff\xff" + metadata + b"junk\xff\0\xff\xd0" + data[2:],
        data + data * 300,
    ):
        assert count_scans(changed, "x") == real
        assert decode(changed, "x").size == (64, 64)
        require_few_scans(changed, 10**8, 10**8, "x")


def test_a_second_image_of_an_mpo_is_not_counted():
    buffer = io.BytesIO()
    others = [Image.new("RGB", (64, 64), "blue")] * 50
    Image.new("RGB", (64, 64), "red").save(buffer, "MPO", save_all=True, append_images=others)
    data = buffer.getvalue()
    assert data.count(b"\xff\xda") >= 51
    assert count_scans(data, "x") == 1
    assert decode(data, "x").getpixel((5, 5))[0] > 200


def test_a_single_scan_needs_no_end():
    """libjpeg reads no further than it: a camera's file without an end, but with a film behind it."""
    data = encode("JPEG")[:-2]
    assert count_scans(data + b"\xff\xda\0\2" * 300, "x") == 1


@pytest.mark.parametrize("frame", [0xC0, 0xC1, 0xC2, 0xC9, 0xCA])
def test_scans_of_one_color_are_counted_in_every_frame(frame):
    assert count_scans(jpeg_of_scans(7, frame), "x") == 7


def test_scans_behind_fill_bytes_and_restarts_are_counted():
    data = jpeg_of_scans(3)
    for at in (b"\xff\xff\xff\xda", b"\xff\xd3\xff\xda", b"\xff\0\xff\xda", b"\xff\1\xff\xda"):
        assert count_scans(data.replace(b"\xff\xda", at), "x") == 3


def test_scans_are_counted_in_linear_time():
    """A second for the largest file: neither bytes that are no marker nor empty segments take longer."""
    head = jpeg_of_scans(1)[:-2]
    begun = time.thread_time()
    for rest in (b"\xff" * 2**24, b"\xff\0" * 2**23, b"\xff\xd0" * 2**23):
        assert count_scans(head + rest, "x") == 1
    with pytest.raises(DataError, match="x has more than 65,536 segments"):
        count_scans(head + b"\xff\xfe\0\2" * 2**22, "x")
    assert time.thread_time() - begun < 2


def tiff(entries: list[tuple[int, int, int, int]], values: bytes) -> bytes:
    """Little-endian, of one directory behind `values`: tag, type, count, value or its place, from 8 on."""
    table = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    return (
        b"II*\0"
        + struct.pack("<L", 8 + len(values))
        + values
        + struct.pack("<H", len(entries))
        + table
        + b"\0" * 4
    )


GRAY = [
    *((256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (262, 3, 1, 1)),
    *((273, 4, 1, 8), (278, 3, 1, 64), (279, 4, 1, 4096)),
]
"""Width, height, bits, photometric, and one strip of 64 rows."""


def test_tags_that_share_their_values_are_refused_and_others_read():
    """Pillow copies each: a file of 1 MB would take 20 GB."""
    values = b"\0" * 2**19
    whole = tiff([*GRAY, (1000, 7, len(values), 8)], values)
    assert decode(whole, "x").size == (64, 64)
    many = tiff([*GRAY, *((1000 + n, 7, len(values), 8) for n in range(9000))], values)
    with pytest.raises(DataError, match=r"its tags have 4,718,592,000 bytes, of a file of "):
        decode(many, "x")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "AVIF"])
def test_exif_whose_tags_share_their_values_is_refused_in_every_format(kind):
    size = 2**15
    exif = tiff([(1000 + n, 7, size, 8) for n in range(2600)], b"\0" * size)
    # Written with no tags first, because Pillow reads it when it writes an AVIF.
    harmless = exif[:4] + struct.pack("<L", len(exif) - 6) + b"\0" * (len(exif) - 8)
    data = encode(kind, exif=b"Exif\0\0" + harmless)
    assert decode(data, "x").size == (64, 64)
    assert data.count(harmless) == 1
    data = data.replace(harmless, exif)
    if kind == "PNG":
        at = data.index(b"eXIf")
        end = at + 4 + len(exif)
        data = data[:end] + struct.pack(">I", zlib.crc32(data[at:end])) + data[end + 4 :]
    with pytest.raises(DataError, match="its tags have 85,196,800 bytes"):
        decode(data, "x")


def test_files_that_others_open_are_read_as_before():
    """The limit is on what deitctl opens, not on the program around it."""
    values = b"\1" * 2**19
    many = tiff([*GRAY, *((1000 + n, 7, len(values), 8) for n in range(20))], values)
    with pytest.raises(DataError, match="its tags have"):
        decode(many, "x")
    with Image.open(io.BytesIO(many)) as image:
        assert image.tag_v2[1019] == values
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + many)
    assert exif[1019] == values
    with pytest.raises(DataError, match="its tags have"):  # and after it as well
        decode(many, "x")


def test_tags_are_limited_in_the_thread_that_decodes():
    values = b"\1" * 2**19
    many = tiff([*GRAY, *((1000 + n, 7, len(values), 8) for n in range(20))], values)

    def read_tag() -> bytes:
        with Image.open(io.BytesIO(many)) as image:
            return image.tag_v2[1019]

    with limit_tags(), ThreadPoolExecutor(1) as other:
        assert other.submit(read_tag).result() == values
        with limit_tags():
            pass
        with pytest.raises(OSError, match="its tags have"):
            read_tag()
    assert read_tag() == values


def test_tags_beyond_the_file_are_passed_over_as_before():
    exif = tiff([(274, 3, 1, 6), (1000, 7, 2**31, 8)], b"")
    assert decode(encode("JPEG", exif=b"Exif\0\0" + exif), "x").size == (64, 64)


def test_a_tiff_of_a_million_tiles_is_refused():
    count = MAX_TILES + 1
    offsets = b"\x08\0\0\0" * count
    tiles = [e for e in GRAY if e[0] not in (273, 278, 279)]
    tiles += [(322, 3, 1, 1), (323, 3, 1, 1), (324, 4, count, 8), (325, 4, count, 8)]
    with pytest.raises(DataError, match="it has 262,145 tiles, more than 262,144"):
        decode(tiff(tiles, offsets), "x")


def test_a_decode_that_takes_long_is_given_up():
    """Pillow reads a gray image of 16 levels pixel by pixel; the limit is on CPU time, not on waiting."""
    data = b"P5 1000 1000 15\n" + b"\1" * 10**6
    image = open_bounded(data, "x", ("PPM",), 0.05)
    begun = time.thread_time()
    with pytest.raises(DataError, match="x was given up: decoding takes longer than 0 s"):
        image.load()
    assert time.thread_time() - begun < 0.5
    image = open_bounded(data, "x", ("PPM",), 30)
    image.load()
    assert image.getpixel((0, 0)) == 17


def test_time_is_looked_at_while_reading_and_not_while_waiting():
    file = TimedBytes(b"abc" * 100, "x", 0.01)
    time.sleep(0.02)
    assert b"".join(file.read(1) for _ in range(300)) == b"abc" * 100
    file.allow(-1)
    with pytest.raises(DataError, match="given up"):
        b"".join(file.read(1) for _ in range(16))
