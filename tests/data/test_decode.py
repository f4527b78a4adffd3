"""Any image becomes upright RGB or one clear error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deitctl.data.decode import decode, read_bytes, read_image
from deitctl.data.file_types import EXTENSIONS
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def values(data: bytes) -> np.ndarray:
    image = decode(data, "image")
    assert image.mode == "RGB"
    return np.asarray(image)


def test_png_is_exact(make_image):
    assert np.array_equal(values(encode(make_image(), "PNG")), np.asarray(make_image()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_every_common_format_is_read(kind, make_image):
    image = make_image(64, 48)
    assert np.abs(values(encode(image, kind)).astype(int) - np.asarray(image)).mean() < 20
    assert all(e.startswith(".") for e in EXTENSIONS)


def test_text_named_jpg_is_no_image():
    with pytest.raises(DataError, match=r"^a/b\.jpg is a text file, not an image\.$"):
        decode(b"hello, this is text\n" * 20, "a/b.jpg")


def test_empty_file_is_called_empty():
    with pytest.raises(DataError, match=r"^x\.jpg is empty\.$"):
        decode(b"", "x.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_image_cut_short_is_an_error(kind, make_image):
    data = encode(make_image(), kind)
    with pytest.raises(DataError, match="x.img"):
        decode(data[: len(data) // 2], "x.img")


def test_cmyk_jpeg_becomes_rgb():
    rgb = values(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() < 12


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    assert values(encode(Image.fromarray(ramp), "PNG"))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_a_dark_image_of_sixteen_bit_data_stays_dark():
    ramp = np.array([[0, 100, 200]], dtype=np.uint16)
    data = encode(Image.fromarray(ramp), "PNG")
    assert np.asarray(decode(data, "x.png", value_range=ValueRange(0, 65535))).max() == 1


@pytest.mark.parametrize(
    ("highest", "dtype"), [(1.0, np.float32), (255.0, np.float32), (65535, np.int32)]
)
def test_thirty_two_bit_tiff_is_scaled(highest, dtype):
    ramp = (np.array([[0, 0.2, 1.0]]) * highest).astype(dtype)
    assert values(encode(Image.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == [0, 51, 255]


def test_eight_bits_in_a_container_of_thirty_two_stay_as_they_are():
    ramp = np.array([[0, 51, 255]], dtype=np.int32)
    assert values(encode(Image.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == [0, 51, 255]


def test_not_a_number_is_black():
    ramp = np.array([[np.nan, 1.0, 0.0]], dtype=np.float32)
    assert values(encode(Image.fromarray(ramp), "TIFF"))[0, :, 0].tolist() == [0, 255, 0]


def test_transparency_of_a_palette_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert values(encode(image, "PNG", transparency=0))[0].tolist() == [
        [255, 255, 255],
        [0, 0, 255],
    ]
    assert values(encode(image, "GIF", transparency=0))[0].tolist() == [
        [255, 255, 255],
        [0, 0, 255],
    ]


def test_half_transparent_colors_are_laid_over_white():
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert np.abs(values(encode(image, "PNG"))[0, 0].astype(int) - (255, 127, 127)).max() <= 1
    gray = Image.new("LA", (1, 1), (0, 0))
    assert values(encode(gray, "PNG"))[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_color_of_rgb_is_laid_over_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert values(encode(image, "PNG", transparency=(1, 2, 3)))[0].tolist() == [
        [255, 255, 255],
        [9, 9, 9],
    ]


def test_one_bit_images_become_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert values(encode(image, "PNG"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The stored image is turned so that the upright one has its red corner at the top left."""
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = values(encode(stored, "JPEG", exif=exif, quality=95))
    assert rgb.shape == (24, 40, 3)
    assert np.abs(rgb.astype(int) - np.asarray(upright)).mean() < 6


def test_orientation_that_does_not_exist_is_ignored(make_image):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert values(encode(make_image(40, 24), "JPEG", exif=exif)).shape == (24, 40, 3)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), c) for c in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert values(data)[0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image():
    assert values(encode(Image.new("L", (1, 1), 7), "PNG")).tolist() == [[[7, 7, 7]]]


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(DataError, match=r"bomb\.png"):
        decode(png_header(side, side), "bomb.png")


@pytest.mark.parametrize("read", [read_bytes, read_image], ids=["bytes", "image"])
def test_missing_file_and_folder_are_errors(read, tmp_path):
    with pytest.raises(DataError, match=r"no\.png cannot be read: No such file"):
        read(tmp_path / "no.png")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(DataError, match="cannot be read: embedded null"):
        read(tmp_path / "a\0.png")


def test_a_file_is_read_as_it_is_and_decoded_under_its_own_name(tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    assert read_bytes(tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(make_image()))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.png is empty"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
@settings(max_examples=40)
@given(data=st.data())
def test_damage_gives_an_image_or_a_data_error_and_nothing_else(kind, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    whole = bytearray(
        encode(Image.linear_gradient("L").resize((20, 16)).convert("RGB"), kind, **options)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole), 400) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(whole), "x").mode == "RGB"
    except DataError as error:
        assert str(error).startswith("x ")


def test_scans_of_a_progressive_jpeg_are_counted(make_image, monkeypatch):
    monkeypatch.setattr("deitctl.data.decode_limits.MAX_SCANS", 3)
    data = encode(make_image(40, 30), "JPEG", progressive=True)
    with pytest.raises(
        DataError, match=rf"has {data.count(bytes([0xFF, 0xDA]))} scans, more than 3"
    ):
        decode(data, "x")


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_can_be_decoded_smaller_and_other_formats_stay_whole(shrink, make_image):
    """Each pixel is about the mean of those that it stands for; of a block of eight it is the mean."""
    image = make_image(96, 64)
    small = np.asarray(decode(encode(image, "JPEG", quality=95, subsampling=0), "x", shrink))
    blocks = (
        np.asarray(image).reshape(64 // shrink, shrink, 96 // shrink, shrink, 3).mean(axis=(1, 3))
    )
    assert np.abs(small - blocks).mean() < (1 if shrink == 8 else 6)
    assert decode(encode(make_image(90, 61), "JPEG"), "x", shrink).size == (
        -(-90 // shrink),
        -(-61 // shrink),
    )
    assert decode(encode(image, "PNG"), "x", shrink).size == (96, 64)


def test_an_image_cut_short_is_an_error_decoded_smaller_too(make_image):
    data = encode(make_image(400, 300), "JPEG")
    with pytest.raises(DataError, match=r"x\.img"):
        decode(data[: len(data) // 2], "x.img", 4)
