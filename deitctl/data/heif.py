"""HEIC images, which pillow-heif decodes where it is installed; nothing of Pillow's is changed for it."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, UnidentifiedImageError

from deitctl.data.decode_limits import require_few_parts
from deitctl.data.file_types import HEIC, INSTALL_HEIF
from deitctl.errors import DataError


def open_heif(data: bytes, name: str) -> Image.Image:
    """Open a HEIC image without decoding it: the primary one, of a sequence the first.

    It is upright as soon as it is decoded: libheif applies the rotation of the file, and the EXIF
    orientation, which repeats it, is removed. More than 8 bits become 8.

    Args:
        data: the file.
        name: for messages.

    Raises:
        DataError: pillow-heif does not load, or what the file lists is too long.
        UnidentifiedImageError: the file is damaged.
    """
    require_few_parts(data, name)
    try:
        image: Image.Image = _load_reader(name)(io.BytesIO(data))
    except (SyntaxError, IndexError) as error:  # IndexError: of no images
        raise UnidentifiedImageError(str(error)) from error
    return image


@lru_cache(maxsize=1)
def _import_reader() -> Any:
    from pillow_heif import HeifImageFile

    return HeifImageFile


def _load_reader(name: str) -> Any:
    """Return Pillow's class for HEIC, which is not registered: the program around deitctl may have its own."""
    try:
        return _import_reader()
    except Exception as error:  # a broken installation: a library that is missing, another Python
        raise DataError(
            f"{name} is {HEIC}, and pillow-heif, which reads it, cannot be loaded: {error}.",
            f"Install it again: {INSTALL_HEIF} --force-reinstall",
        ) from error
