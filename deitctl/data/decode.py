"""Decoding of image files to upright RGB, within limits on bytes, pixels and time."""

from __future__ import annotations

import errno
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deitctl.data.decode_limits import (
    MAX_DECODE_S,
    MAX_OPEN_S,
    STRIP,
    limit_tags,
    open_bounded,
    require_few_scans,
)
from deitctl.data.deep_image import (
    DeepImage,
    Measured,
    begins_with_eight_bits,
    keep_premultiplied,
    open_deep,
)
from deitctl.data.file_types import HEIC, can_read_heic, explain_file, identify, is_raw
from deitctl.data.heif import open_heif
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.data.value_range import FULL
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange
from deitctl.paths import read_regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""By content, whatever the extension. Pillow's other readers run programs (EPS) or are little
tested."""
MAX_PIXELS = 100_000_000
"""Decoding holds 17 bytes a pixel at most (WebP), so the largest image takes 1.7 GB."""
PIXELS_VARIABLE = "DEITCTL_MAX_PIXELS"
MAX_SIDE = 65_535  # JPEG's own limit; Pillow allocates a pointer for every row
MAX_BYTES = 512 * 2**20
"""Bytes of a stored image."""
LARGE = 16_000_000
"""Pixels above which a process decodes one image at a time, so that threads do not multiply the
memory."""
OUT_OF_MEMORY = ("out of memory", "cannot allocate", "can't allocate", "could not allocate")
"""In messages of Pillow, libtiff and libavif."""
DEEP_VERSION = 1
"""Increased when `decode` gives other pixels for an image of more than 8 bits; cached teacher targets
of such images are then stale."""
PLAIN_PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")
_one_large = threading.Lock()


def decode(
    data: bytes, name: str, shrink: int = 1, value_range: ValueRange | None = None
) -> Image.Image:
    """Decode an image into RGB, upright.

    EXIF orientation is applied, transparency is composited over white, more than 8 bits are scaled
    to 8, of an animation the first frame is taken.

    Args:
        data: the image file.
        name: of the image, for messages.
        shrink: 1, 2, 4 or 8: decode a JPEG at 1/shrink of its sides, rounded up, which is faster
            because fewer DCT coefficients are used. Other formats are decoded in full.
        value_range: of the data that an image of more than 8 bits is of, whose file states none;
            None: the image is all of the data, and the range is chosen by its own values.

    Raises:
        DataError: not an image of `FORMATS`, damaged, truncated, too large or too slow, or with
            values outside of its range.
        MemoryError: there is not enough memory, which says nothing about the image.
    """
    if (plain := read_plain_ppm(data)) is not None:
        return plain
    with named_errors(data, name):
        image = _open(data, name)
        # Threads decode in parallel, and 1.7 GB each would add up.
        with _one_large if image.width * image.height > LARGE else nullcontext():
            if shrink > 1:
                # libjpeg's scaled inverse DCT: at 1/8 in two fifths of the time.
                image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
            deep = open_deep(image, data, partial(_open, data, name))
            _load_upright(image, name)
            if deep is not None:
                image = _scale_deep(deep, value_range, name)
            return _to_rgb(image)


def read_plain_ppm(data: bytes) -> Image.Image | None:
    """Return the image of a plain PPM, as `pack --raw` stores, five times as fast as Pillow; None for others."""
    header = PLAIN_PPM.match(data)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    is_small = width * height <= min(LARGE, get_max_pixels()) and max(width, height) <= MAX_SIDE
    if not is_small or len(data) != header.end() + 3 * width * height:
        return None
    pixels = np.frombuffer(data, np.uint8, offset=header.end())
    return Image.fromarray(pixels.reshape(height, width, 3))


def decode_own_mode(data: bytes, name: str, value_range: ValueRange | None = None) -> Image.Image:
    """Decode an image as `decode`, but leave it in Pillow's mode of 8 bits: RGBA, LA, CMYK and others.

    Of TIFFs whose colors are multiplied by alpha the stored values are taken.
    """
    with named_errors(data, name):
        image = _open(data, name)
        with _one_large if image.width * image.height > LARGE else nullcontext():
            deep = open_deep(image, data, partial(_open, data, name))
            if deep is None:
                keep_premultiplied(image)
            _load_upright(image, name)
            return image if deep is None else _scale_deep(deep, value_range, name)


def read_pages(data: bytes, name: str, places: Sequence[int]) -> list[NDArray[Any]]:
    """Return the values of some images of a file, upright, each [H,W] or [H,W,C].

    Raises:
        DataError: as `decode`.
    """
    pages = []
    with named_errors(data, name):
        image = _open(data, name)
        for place in places:
            image.seek(place)
            require_size(image.size, name)
            image.load()
            pages.append(np.array(ImageOps.exif_transpose(image)))
    return pages


def _load_upright(image: Image.Image, name: str) -> None:
    image.load()
    require_size(image.size, name)  # again: the header may have been wrong
    # In place, because a copy of the largest image is 300 MB.
    if image.format != "HEIF":  # which is upright
        ImageOps.exif_transpose(image, in_place=True)


def _scale_deep(deep: DeepImage, value_range: ValueRange | None, name: str) -> Image.Image:
    # Of values that fill 16 bits, the low bytes change nothing.
    is_full = value_range is not None and value_range[:2] == FULL[:2]
    if not is_full or deep.stated not in (None, FULL) or deep.nodata is not None:
        deep.load_low_bytes(lambda image: _load_upright(image, name))
    return deep.scale(deep.choose(value_range, name), name)


def measure_values(data: bytes, name: str) -> Measured | None:
    """Measure the values of an image of more than 8 bits; None for one of 8, which is not decoded.

    Raises:
        DataError: as `decode`.
    """
    with named_errors(data, name):
        image = _open(data, name)
        deep = open_deep(image, data, partial(_open, data, name))
        if deep is None:
            return None
        with _one_large if image.width * image.height > LARGE else nullcontext():
            _load_upright(image, name)
            deep.load_low_bytes(lambda again: _load_upright(again, name))
            return deep.measure()


def is_deep(data: bytes) -> bool:
    """Whether an image has more than 8 bits, by its header; False if it cannot be read."""
    try:
        return not begins_with_eight_bits(data) and read_depth(data, "")
    except DataError:
        return False


def read_depth(data: bytes, name: str) -> bool:
    """Open an image as `decode` does, without its pixels, and return whether it has more than 8 bits.

    Raises:
        DataError: as `decode`, as far as the header shows.
    """
    with named_errors(data, name):
        return open_deep(_open(data, name), data, partial(_open, data, name)) is not None


def measure_image(image: Image.Image) -> Measured | None:
    """Measure a Pillow image as `measure_values` a file of it."""
    with named_errors(b"-", "the image"):
        deep = open_deep(image, b"", image.copy)
        if deep is None:
            return None
        image.load()
        return deep.measure()


def convert_image(
    image: Image.Image, name: str, value_range: ValueRange | None = None
) -> Image.Image:
    """Return a Pillow image as `decode` returns a file of it: upright RGB.

    `image` itself is not changed. Of color Pillow has 8 bits.
    """
    with named_errors(b"-", name):
        require_size(image.size, name)
        deep = open_deep(image, b"", image.copy)
        if deep is not None:
            image.load()
            exif = image.info.get("exif")
            image = deep.scale(deep.choose(value_range, name), name)
            image.info = {} if exif is None else {"exif": exif}
        return _to_rgb(ImageOps.exif_transpose(image))


def read_header(data: bytes, name: str) -> tuple[tuple[int, int], int] | None:
    """Return an RGB JPEG's stored (width, height) and EXIF orientation, 1 to 8.

    Returns None for any other image.

    Raises:
        DataError: as `decode`, as far as the header shows.
    """
    with named_errors(data, name):
        image = _open(data, name)
        if image.format != "JPEG" or image.mode != "RGB":
            return None
        # From the file, so anything: values outside of 1 to 8 are ignored, as exif_transpose does.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return image.size, orientation if orientation in range(1, 9) else 1


def open_header(data: bytes, name: str) -> Image.Image:
    """Open an image of `FORMATS` without decoding it, to look at its properties.

    Raises:
        DataError: as `decode`, as far as the header shows.
    """
    with named_errors(data, name):
        return _open(data, name, MAX_OPEN_S)


@contextmanager
def named_errors(data: bytes, name: str) -> Iterator[None]:
    """Turn what a damaged file raises into a `DataError` that names it, within Pillow's limits."""
    try:
        with warnings.catch_warnings(), limit_tags():
            warnings.simplefilter("ignore")  # Pillow's, on unusual EXIF, palettes and large images
            yield
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} has more than {get_max_pixels():,} pixels.",
            f"${PIXELS_VARIABLE} raises the limit.",
        ) from error
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: a TIFF's unknown compression
        raise DataError(
            f"{name} is {explain_file(data) or 'not an image of a known kind'}."
        ) from error
    except DataError:
        raise
    except Exception as error:  # damaged files raise a dozen types: struct.error, TypeError, ...
        if _ran_out_of_memory(error):
            raise MemoryError(f"{name}: there is not enough memory to decode it.") from error
        why = str(error).splitlines()[0][:200] if str(error) else "damaged"
        raise DataError(f"{name} cannot be decoded: {why}.") from error


def _ran_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out in Pillow or in a library that it calls."""
    is_shortage = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return is_shortage or any(text in str(error).lower() for text in OUT_OF_MEMORY)


def _open(data: bytes, name: str, seconds: float = MAX_DECODE_S) -> Image.Image:
    """Read a header and check it against the limits, without decoding."""
    if data[4:8] == b"ftyp" and can_read_heic() and identify(data) == HEIC:
        image = open_heif(data, name)
    elif is_raw(data):  # Pillow would show its thumbnail
        raise UnidentifiedImageError
    else:
        image = open_bounded(data, name, FORMATS, seconds)
    require_size(image.size, name)
    if image.format in ("JPEG", "MPO"):
        require_few_scans(data, image.width * image.height, get_max_pixels(), name)
    return image


def get_max_pixels() -> int:
    """Return the pixel limit of an image: `$DEITCTL_MAX_PIXELS` or `MAX_PIXELS`.

    Pillow's own limit holds besides.
    """
    value = os.environ.get(PIXELS_VARIABLE, "")
    return int(value) if value.isdecimal() else MAX_PIXELS


def require_bytes(size: int, name: str) -> None:
    """Raise `DataError` if a stored image has more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}.")


def require_size(size: tuple[int, int], name: str) -> None:
    """Raise `DataError` if an image of this width and height has more pixels than are read."""
    width, height = size
    if width * height > get_max_pixels():
        raise DataError(
            f"{name} has {width} x {height} pixels, more than {get_max_pixels():,}.",
            f"${PIXELS_VARIABLE} raises the limit.",
        )
    if max(size) > MAX_SIDE:
        raise DataError(
            f"{name} has {width} x {height} pixels; a side may have {MAX_SIDE:,} at most."
        )


def read_bytes(path: Path, *, was_there: bool = False) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Args:
        path: of the file.
        was_there: whether it has been listed, see `read_patiently`.

    Raises:
        ReadError: it cannot be read now.
        DataError: it is no regular file, or too large.
    """
    try:
        return read_patiently(lambda: read_regular(path, MAX_BYTES), str(path), was_there=was_there)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise_read_error(str(path), error)


def read_image(path: Path, value_range: ValueRange | None = None) -> Image.Image:
    """Read and decode a file, see `decode`; raise `DataError` if it cannot be."""
    return decode(read_bytes(path), str(path), value_range=value_range)


def _to_rgb(image: Image.Image) -> Image.Image:
    # convert("RGB") drops alpha and shows what lies under it, often black.
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _convert_by_strips(image, _composite_over_white)
    if image.mode == "RGB" and image.format == "JPEG":  # no copy; other formats may have frames
        return image
    return image.convert("RGB")


def _convert_by_strips(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Apply a pixelwise conversion by strips of rows, in little more memory than the result."""
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(convert(strip), (0, top))
    return converted


def _composite_over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
