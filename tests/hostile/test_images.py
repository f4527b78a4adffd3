"""Images that are bombs, lie about themselves, or are something else: docs/security.md, "Images"."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import deitctl
from deitctl.data import decode as decoding
from deitctl.data.decode import decode
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, body: bytes = b"\0" * 99) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def tiff(entries: dict[int, tuple[int, int, int]], pixels: bytes = b"\0" * 64) -> bytes:
    """A little-endian TIFF of one directory: tag -> type, count, value."""
    table = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(entries))
        + table
        + b"\0" * 4
    )


def refused(data: bytes, says: str = "x ") -> None:
    with pytest.raises(DataError, match=says) as caught:
        decode(data, "x")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("size", [(10_001, 10_001), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_what_its_header_says(size):
    refused(png(*size))
    refused(b"P6 %d %d 255\n" % size)
    refused(b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "AVIF", "JPEG2000", "PNG", "JPEG"])
def test_more_pixels_than_the_limit_are_refused_in_every_format(kind, monkeypatch):
    data = encode(Image.new("RGB", (40, 30)), kind)
    monkeypatch.setenv("DEITCTL_MAX_PIXELS", "1199")
    refused(data, "40 x 30 pixels, more than 1,199.*DEITCTL_MAX_PIXELS")
    monkeypatch.setenv("DEITCTL_MAX_PIXELS", "1200")
    assert decode(data, "x").size == (40, 30)


def test_a_side_that_no_camera_has_is_refused():
    refused(png(70_000, 1), "70000 x 1 pixels; a side")


@pytest.mark.parametrize("text", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_chunk_of_text_that_inflates_takes_no_memory(text):
    body = zlib.compress(b"\0" * 80 * 2**20, 9)
    body = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"p\0\0"}[text] + body
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert decode(png(2, 2, chunk(text, body)), "x").size == (2, 2)
    except DataError as error:
        assert str(error).startswith("x ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 2**10


def test_pixels_that_inflate_beyond_the_header_are_not_kept():
    decode(png(2, 2, body=b"\0" * 50 * 2**20), "x")


@pytest.mark.parametrize(
    "entries",
    [
        {
            256: (3, 1, 4),
            257: (3, 1, 4),
            258: (3, 1, 8),
            262: (3, 1, 1),
            273: (4, 1, 2**31),
            278: (3, 1, 4),
            279: (4, 1, 16),
        },
        {
            256: (3, 1, 4),
            257: (3, 1, 4),
            258: (3, 1, 8),
            262: (3, 1, 1),
            273: (4, 2**28, 8),
            278: (3, 1, 4),
            279: (4, 1, 16),
        },
        {256: (4, 1, 2**32 - 1), 257: (4, 1, 2**32 - 1), 273: (4, 1, 8), 279: (4, 1, 16)},
        {256: (2, 2**31, 8), 257: (12, 2**31, 8), 65535: (7, 2**32 - 1, 8)},
        {},
    ],
    ids=[
        "strip outside",
        "a quarter of a billion strips",
        "four billion a side",
        "tags of gigabytes",
        "no tags",
    ],
)
def test_a_tiff_of_absurd_tags_is_refused(entries):
    refused(tiff(entries))


def test_exif_that_is_garbage_is_no_end():
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        assert decode(encode(Image.new("RGB", (4, 3)), "JPEG", exif=exif), "x").size == (4, 3)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/deitctl-ps) (w) file closefile\n",
            "a PostScript drawing",
        ),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            "an SVG drawing",
        ),
        (b"\xd7\xcd\xc6\x9a" + b"\0" * 40, "a Windows metafile"),
        (encode(Image.new("RGB", (4, 4)), "ICO", sizes=[(4, 4)]), "a Windows icon"),
        (encode(Image.new("RGB", (4, 4)), "PCX"), "a PCX image"),
        (encode(Image.new("RGB", (4, 4)), "PDF"), "a PDF"),
        (encode(Image.new("RGB", (4, 4)), "TGA"), "a TGA image"),
    ],
    ids=["eps", "svg", "wmf", "ico", "pcx", "pdf", "tga"],
)
def test_formats_that_are_not_named_are_not_opened(data, kind):
    refused(data, f"^x is {kind}")


def test_a_jpeg_of_ten_thousand_scans_is_refused():
    """Each is a pass over the whole image: a file of 100 kB that would take minutes."""
    data = encode(Image.new("RGB", (600, 600), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode(data, "x").size == (600, 600)
    begun = time.monotonic()
    refused(data[:last] + data[last:-2] * 10_000 + data[-2:], "scans, more than 200")
    assert time.monotonic() - begun < 1


def test_a_ribbon_is_cut_before_it_is_resized():
    """Resized whole, one of 2 x 20,000 would become 248 x 2,480,000. The crop is equal up to rounding."""
    ribbon = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (3000, 3, 3), dtype=np.uint8)
    )
    pre = Preprocessing()
    cut = eval_transform(ribbon, pre).astype(int)
    whole = ribbon.resize((248, 248 * 1000), Image.Resampling.BICUBIC)
    top, left = round((whole.height - 224) / 2), 12
    wanted = np.asarray(whole.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    assert np.abs(cut - wanted).max() <= 1
    assert eval_transform(ribbon.transpose(Image.Transpose.TRANSPOSE), pre).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F", "I"])
def test_strips_give_what_the_whole_image_gives(mode, monkeypatch, make_image):
    gray = make_image(50, 40).convert("L")
    image = gray.point(lambda v: v * 257, "I") if mode in ("I;16", "I") else make_image(50, 40)
    if mode in ("RGBA", "LA"):
        image.putalpha(gray)
    image = image if mode == "I" else image.convert(mode)
    options = {"transparency": 7} if mode == "P" else {}
    data = encode(image, "TIFF" if mode in ("F", "I") else "PNG", **options)
    whole = np.asarray(decode(data, "x"))
    monkeypatch.setattr(decoding, "STRIP", 150)
    assert np.array_equal(np.asarray(decode(data, "x")), whole)


def test_the_largest_images_stay_below_the_stated_memory():
    """Seventeen bytes a pixel, here of 9 million of 16 bits with all that is done to them."""
    code = (
        "import io, resource, numpy as np; from PIL import Image\n"
        "from deitctl.data.decode import decode; b = io.BytesIO()\n"
        "Image.fromarray(np.zeros((3000, 3000), np.uint16)).save(b, 'PNG'); data = b.getvalue(); del b\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); decode(data, 'x'); print((peak() - before) / 9e6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 17


def test_want_of_memory_is_no_damage():
    """A sound image of 243 MB of pixels with room for 100 MB."""
    code = (
        "import io, resource; from PIL import Image; from deitctl.data.decode import decode\n"
        "b = io.BytesIO(); Image.new('RGB', (9, 9)).save(b, 'PNG'); decode(b.getvalue(), 'y')\n"
        "b = io.BytesIO(); Image.new('RGB', (9000, 9000)).save(b, 'PNG', compress_level=1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)\n"
        "try: decode(b.getvalue(), 'x')\n"
        "except MemoryError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "x: there is not enough memory to decode it.\n"


@pytest.mark.parametrize(
    "message", ["out of memory when reading image file", "Cannot allocate memory"]
)
def test_what_libraries_say_of_memory_is_no_damage_either(message, monkeypatch):
    def load(_: object) -> None:
        raise OSError(message)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError, match="x: there is not enough memory to decode it"):
        decode(encode(Image.new("RGB", (4, 4)), "PNG"), "x")


@pytest.mark.parametrize("name", ["p.jpg", "p.dat", "p"])
def test_pipes_among_images_hold_nothing_up(name, image_folder):
    """A pipe is opened by none of them: opening one waits for a writer."""
    root = image_folder({"a": 3, "b": 3})
    os.mkfifo(root / "a" / name)
    result = deitctl.check(str(root), workers=0)
    unreadable = [issue for issue in result.issues if issue.code == "unreadable"]
    assert len(unreadable) == (name == "p.jpg")
