"""A training image: a JPEG is decoded when it is known which part of it is shown, and no larger than that needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.decode import LARGE, decode, read_header

Bytes = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
SHRINKS = (8, 4, 2)
"""How many times smaller than stored a JPEG can be decoded, faster."""
TURNED = range(5, 9)
"""Orientations in which width and height change places."""


class LazyJpeg:
    """An RGB JPEG that is not decoded yet.

    Raises:
        DataError: as `decode`; what only decoding shows is raised when pixels are asked for.
    """

    def __init__(self, data: bytes, name: str, stored: tuple[int, int], orientation: int) -> None:
        self._data, self._name, self._stored, self._orientation = data, name, stored, orientation
        self.size = stored[::-1] if orientation in TURNED else stored
        """Width and height, upright."""

    def shrink_for(self, width: int, height: int, size: int) -> int:
        """Say how many times smaller a box of `width` by `height` may be decoded and have `size` pixels each way."""
        for shrink in SHRINKS:
            even = all(
                side % shrink == 0 for side in self._stored
            )  # else turning would move it by a part of a pixel
            if min(width, height) >= shrink * size and (even or self._orientation == 1):
                return shrink
        return 1

    def shrunk(self, shrink: int) -> Image.Image:
        """Decode at a part of the sides, rounded up."""
        return decode(self._data, self._name, shrink)

    def cut(self, box: Box) -> Bytes:
        """Return the pixels of a box, uint8 [H,W,3]."""
        left, top, right, bottom = box
        if isinstance(self._whole, Image.Image):
            return np.asarray(self._whole.crop(box))
        return self._whole[top:bottom, left:right]

    @cached_property
    def _whole(self) -> Image.Image | Bytes:
        """All of it by torchvision's decoder, which has Pillow's pixels sooner, as an array; by Pillow what that refuses."""
        width, height = self._stored
        if (
            self._orientation == 1
            and width * height <= LARGE
            and (decode_jpeg := _torchvision_decoder()) is not None
        ):
            try:
                channels_last: Bytes = decode_jpeg(self._data).permute(1, 2, 0).numpy()
                if channels_last.shape == (height, width, 3):
                    return channels_last
            except RuntimeError:  # damaged: whether it can be read is for Pillow to say
                pass
        return decode(self._data, self._name)


def open_image(data: bytes, name: str) -> LazyJpeg | Image.Image:
    """Open an image for training: an RGB JPEG stays undecoded, any other is decoded.

    Raises:
        DataError: as `decode`.
    """
    header = read_header(data, name)
    return decode(data, name) if header is None else LazyJpeg(data, name, *header)


@lru_cache(maxsize=1)
def _torchvision_decoder() -> Callable[[bytes], torch.Tensor] | None:
    """Load torchvision's JPEG operator, [3,H,W] from bytes, without importing torchvision; None: it has none here."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob("image*.*")):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                operator = torch.ops.image.decode_jpeg.default
            except (OSError, AttributeError):  # built for another torch, or without JPEG
                continue
            return lambda data: operator(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3)
    return None
