"""From the bytes of any image to RGB: orientation, alpha, CMYK, 16 bits, palettes, the first frame of many."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deitctl.errors import DataError
from deitctl.paths import read_regular

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
        ".jfif",
    ]
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Whatever a file is called: Pillow's other readers run programs (EPS), or are little used and little tried."""
MAX_PIXELS = 100_000_000
"""Decoding holds 17 bytes a pixel at most (WebP), so the largest image takes 1.7 GB."""
PIXELS_VARIABLE = "DEITCTL_MAX_PIXELS"
MAX_SIDE = 65_535  # JPEG's own limit; Pillow keeps a pointer for every row
MAX_BYTES = 512 * 2**20
"""Bytes of an image's file."""
MAX_SCANS = 200
"""Passes over a progressive JPEG, each as slow as an image; encoders make ten or so."""
LARGE = 16_000_000
"""Pixels from which a process decodes one image at a time, so that threads do not multiply the memory."""
STRIP = 2**20
"""Pixels that are converted, or bytes that are looked at, at a time where that needs several copies."""
_one_large = threading.Lock()


def decode(data: bytes, name: str, shrink: int = 1) -> Image.Image:
    """Decode an image into RGB, upright.

    EXIF orientation is applied; transparency is laid over white; 16-bit and floating-point greys are scaled to
    8 bits; an animation gives its first frame. With `shrink` 2, 4 or 8 a JPEG is decoded at that part of its sides,
    rounded up, which is cheaper (fewer DCT coefficients); other formats are decoded whole.

    Raises:
        DataError: not an image of `FORMATS`, damaged, cut short or too large; `name` is in the message.
    """
    with _named_errors(data, name):
        image = _open(data, name)
        with _one_large if image.width * image.height > LARGE else nullcontext():
            if shrink > 1:
                image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
            image.load()
            _require_size(image.size, name)  # a header may have lied
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)


def read_header(data: bytes, name: str) -> tuple[tuple[int, int], int] | None:
    """Return width and height as stored, and the EXIF orientation (1 to 8), of an RGB JPEG; None: another image.

    Raises:
        DataError: as `decode`, of what a header shows.
    """
    with _named_errors(data, name):
        image = _open(data, name)
        if image.format != "JPEG" or image.mode != "RGB":
            return None
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return image.size, orientation if orientation in range(1, 9) else 1


@contextmanager
def _named_errors(data: bytes, name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of odd EXIF, of palettes and of large images
            yield
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} has more than {max_pixels():,} pixels (${PIXELS_VARIABLE})."
        ) from error
    except UnidentifiedImageError as error:
        what = "is empty" if not data else "is not an image"
        raise DataError(f"{name} {what}.") from error
    except DataError:
        raise
    except Exception as error:  # damaged files raise a dozen kinds from Pillow's decoders: struct.error, TypeError, ...
        why = str(error).splitlines()[0][:200] if str(error) else "damaged"
        raise DataError(f"{name} cannot be decoded: {why}.") from error


def _open(data: bytes, name: str) -> Image.Image:
    """Read a header and hold it against the limits; nothing is decoded yet."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _require_size(image.size, name)
    scans = _count_scans(data) if image.format in ("JPEG", "MPO") else 0
    if scans > MAX_SCANS:
        raise DataError(f"{name} has {scans:,} scans, more than {MAX_SCANS}.")
    return image


def _count_scans(data: bytes) -> int:
    """Count FF DA, the beginning of a scan: by NumPy, which takes a sixth of the time of `data.count`."""
    values = np.frombuffer(data, np.uint8)
    strips = (
        values[start : start + STRIP + 1] for start in range(0, len(values), STRIP)
    )  # a pair may lie across two
    return sum(
        int(np.count_nonzero((strip[:-1] == 0xFF) & (strip[1:] == 0xDA))) for strip in strips
    )


def max_pixels() -> int:
    """Return the most pixels an image may have: `$DEITCTL_MAX_PIXELS`, at most what Pillow allows, or `MAX_PIXELS`."""
    said = os.environ.get(PIXELS_VARIABLE, "")
    return int(said) if said.isdecimal() else MAX_PIXELS


def _require_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > max_pixels():
        raise DataError(
            f"{name} has {width} x {height} pixels, more than {max_pixels():,}.",
            f"${PIXELS_VARIABLE} raises the limit.",
        )
    if max(size) > MAX_SIDE:
        raise DataError(
            f"{name} has {width} x {height} pixels; a side of more than {MAX_SIDE:,} is not read."
        )


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`; raise `DataError` if it cannot be."""
    try:
        return read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from error


def read_image(path: Path) -> Image.Image:
    """Read and decode a file; raise `DataError` if it cannot be."""
    return decode(read_bytes(path), str(path))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_strips(image, _over_white)
    if (
        image.mode == "RGB" and image.format == "JPEG"
    ):  # it is what it should be, and has no second frame
        return image
    return image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image some rows at a time, pixel by pixel what the whole would give, in the memory of the result."""
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(convert(strip), (0, top))
    return whole


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Map greys of more than 8 bits onto 0..255; Pillow's own conversion would clip them to white."""
    highest = 65535.0 if image.mode.startswith("I") else 1.0 if _largest(image) <= 1 else 255.0
    if image.mode == "I" and _largest(image) <= 255:  # 8-bit values in a 32-bit container
        highest = 255.0

    def scale(strip: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(strip, dtype=np.float64))
        return Image.fromarray(
            np.rint(np.clip(values / highest, 0, 1) * 255).astype(np.uint8)
        ).convert("RGB")

    return _by_strips(image, scale)


def _largest(image: Image.Image) -> float:
    rows = max(1, STRIP // image.width)
    strips = (
        image.crop((0, t, image.width, min(t + rows, image.height)))
        for t in range(0, image.height, rows)
    )
    return max((float(np.nan_to_num(np.asarray(s)).max(initial=0)) for s in strips), default=0.0)
