"""Small JPEGs of images."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.band_image import show_pixels

THUMBNAIL_PX = 160
JPEG_QUALITY = 78  # keeps 3 galleries of 24 images with two maps each near a megabyte


def encode_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 [C,H,W], as a JPEG of at most `THUMBNAIL_PX` pixels a side."""
    colors = show_pixels(pixels.transpose(1, 2, 0))
    return encode_jpeg(Image.fromarray(np.ascontiguousarray(colors)))


def encode_jpeg(image: Image.Image) -> bytes:
    """Return an image as a JPEG of at most `THUMBNAIL_PX` pixels a side."""
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()
