"""From the bytes of any picture to RGB: orientation, alpha, CMYK, 16 bits, palettes, the first frame of many."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deitctl.errors import DataError

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".jfif"]
)  # fmt: skip
MAX_PIXELS = 178_956_970  # where Pillow itself refuses a picture as a decompression bomb


def decode(data: bytes, name: str) -> Image.Image:
    """Decode a picture into RGB, upright.

    EXIF orientation is applied; transparency is laid over white; 16-bit and floating-point greys are scaled to
    8 bits; an animation gives its first frame.

    Raises:
        DataError: not a picture, damaged, cut short or too large; `name` is in the message.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF, of palettes and of what MAX_PIXELS refuses
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}.")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        what = "is empty" if not data else "is not a picture"
        raise DataError(f"{name} {what}.") from error
    except DataError:
        raise
    except Exception as error:  # damaged files raise a dozen kinds from Pillow's decoders: struct.error, TypeError, ...
        raise DataError(
            f"{name} cannot be decoded: {str(error).splitlines()[0] if str(error) else 'damaged'}."
        ) from error


def read_bytes(path: Path) -> bytes:
    """Read a file; raise `DataError` if it cannot be."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from error


def read_image(path: Path) -> Image.Image:
    """Read and decode a file; raise `DataError` if it cannot be."""
    return decode(read_bytes(path), str(path))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Map greys of more than 8 bits onto 0..255; Pillow's own conversion would clip them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    highest = 65535.0 if image.mode.startswith("I") else 1.0 if values.max(initial=0) <= 1 else 255.0
    if image.mode == "I" and values.max(initial=0) <= 255:  # 8-bit values in a 32-bit container
        highest = 255.0
    scaled = np.rint(np.clip(values / highest, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
