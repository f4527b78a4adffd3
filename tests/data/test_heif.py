"""HEIC images are decoded by pillow-heif where it is installed, upright and once, and named where it is not."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_bytes, from_pillow

from deitctl.data import decode as decoding
from deitctl.data import file_types, heif
from deitctl.data.decode import decode, open_header
from deitctl.data.lazy_jpeg import open_image
from deitctl.data.stream import stream_batches
from deitctl.errors import DataError

PIXELS = np.kron(
    np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8),
    np.ones((16, 16, 1), np.uint8),
)
"""64 x 96, of large squares, which lossy compression keeps."""
MAX_ERROR = 8
"""Of 255 levels, in the mean, after lossy compression."""


def encode(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    from_pillow(image).save(file, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encode(Image.fromarray(PIXELS))


def differ(image: Image.Image, pixels: np.ndarray) -> float:
    assert np.asarray(image).shape == pixels.shape
    return float(np.abs(np.asarray(image).astype(int) - pixels).mean())


def test_a_photo_is_read_whatever_its_name_and_pillow_is_left_as_it_was(photo):
    assert differ(decode(photo, "a.jpg"), PIXELS) < MAX_ERROR
    assert open_header(photo, "a.heic").format == "HEIF"
    assert open_image(photo, "a.heic").size == (96, 64)
    assert "HEIF" not in Image.OPEN
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(photo))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_rotated_photo_is_rotated_once(orientation):
    """The file says it twice: as its own property, and in the EXIF data of the camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    data = encode(Image.fromarray(PIXELS), exif=exif.tobytes())
    assert differ(decode(data, "a.heic"), np.rot90(PIXELS, turns)) < MAX_ERROR


def test_ten_bits_and_gray_become_rgb_of_eight():
    deep = from_bytes(mode="RGB;16", size=(96, 64), data=(PIXELS.astype(np.uint16) * 257).tobytes())
    file = io.BytesIO()
    deep.save(file)
    assert open_header(file.getvalue(), "a.heic").info["bit_depth"] > 8
    assert differ(decode(file.getvalue(), "a.heic"), PIXELS) < MAX_ERROR
    gray = Image.fromarray(PIXELS).convert("L")
    assert differ(decode(encode(gray), "a.heic"), np.asarray(gray.convert("RGB"))) < MAX_ERROR


def test_transparency_is_laid_over_white():
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putalpha(0)
    assert np.asarray(decode(encode(image), "a.heic")).min() > 250


def test_of_several_images_the_primary_one_is_read_and_no_thumbnail(photo):
    file = io.BytesIO()
    several = from_pillow(Image.fromarray(PIXELS[::-1].copy()))
    several.add_from_pillow(Image.fromarray(PIXELS))
    several.save(file, primary_index=1)
    assert differ(decode(file.getvalue(), "a.heic"), PIXELS) < MAX_ERROR
    small = encode(Image.fromarray(PIXELS), thumbnails=[32])
    assert decode(small, "a.heic", shrink=2).size == (96, 64)


def test_a_damaged_file_is_one_line_wherever_it_is_cut(photo):
    for end in (12, 30, 100, 300, len(photo) // 2, len(photo) - 9):
        with pytest.raises(
            DataError, match=r"^a\.heic (is a HEIC image that is|cannot be decoded)"
        ) as e:
            decode(photo[:end], "a.heic")
        assert "\n" not in str(e.value)
    for place in range(0, len(photo), 29):
        data = photo[:place] + bytes((photo[place] ^ 0xFF,)) + photo[place + 1 :]
        try:
            decode(data, "a.heic")
        except DataError as error:
            assert str(error).startswith("a.heic ")


def resize(data: bytes, width: int, height: int) -> bytes:
    """The same file with another size in its header."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_the_limit_on_pixels_holds_before_anything_is_decoded(side, photo, monkeypatch):
    monkeypatch.setattr(Image.Image, "frombytes", None)
    with pytest.raises(DataError, match=r"x \d+ pixels, more than|Security limit|damaged"):
        decode(resize(photo, side, side), "a.heic")


def test_a_size_that_lies_is_refused(photo):
    with pytest.raises(DataError, match="cannot be decoded.*size"):
        decode(resize(photo, 8, 8), "a.heic")


def test_lists_of_items_are_limited_as_in_avif(photo):
    meta = photo.index(b"meta") - 4
    size = struct.unpack_from(">I", photo, meta)[0]
    table = struct.pack(">I4s", 2**17 + 8, b"iloc") + bytes(2**17)
    data = photo[: meta + size] + table + photo[meta + size :]
    data = data[:meta] + struct.pack(">I", size + len(table)) + data[meta + 4 :]
    with pytest.raises(DataError, match="bytes of lists of items"):
        decode(data, "a.heic")


def test_without_pillow_heif_the_line_names_the_extra(photo, monkeypatch):
    monkeypatch.setattr(decoding, "can_read_heic", lambda: False)
    monkeypatch.setattr(file_types, "can_read_heic", lambda: False)
    with pytest.raises(DataError) as error:
        decode(photo, "IMG_1.jpg")
    assert str(error.value) == "IMG_1.jpg is a HEIC image; pip install 'deitctl[heif]' reads it."


def test_a_broken_installation_is_named(photo, monkeypatch):
    def fail() -> None:
        raise ImportError("libheif.so.1: cannot open shared object file")

    monkeypatch.setattr(heif, "_import_reader", fail)
    with pytest.raises(DataError, match=r"libheif\.so\.1.*--force-reinstall"):
        decode(photo, "a.heic")


def test_threads_and_loader_processes_decode_as_one(photo):
    pixels = np.asarray(decode(photo, "a.heic"))
    with ThreadPoolExecutor(4) as threads:
        for image in threads.map(lambda _: decode(photo, "a.heic"), range(8)):
            assert np.array_equal(np.asarray(image), pixels)
    # after the decoder has run in this process, which is forked
    batches = stream_batches(_Decoder(photo).read, list, [[0, 1], [2, 3]], workers=2)
    for batch in batches:
        assert all(np.array_equal(image, pixels) for image in batch)


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, index: int) -> np.ndarray:
        return np.asarray(decode(self.data, f"{index}.heic"))
