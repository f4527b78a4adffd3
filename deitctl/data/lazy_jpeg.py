"""JPEGs that are decoded once the crop is known.

Only as large as the crop needs, by the fastest decoder installed.

The decoders give the same pixels: all use libjpeg-turbo with its accurate DCT and fancy upsampling.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.decode import LARGE, decode, read_header
from deitctl.models.model_config import ValueRange
from deitctl.sizes import ImageSize, height_width

JPEG_START = b"\xff\xd8\xff"
Bytes = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
SHRINKS = (8, 4, 2)
"""Scales at which libjpeg decodes faster: 1/8, 1/4, 1/2."""
OVERSAMPLING = 2
"""Decoded pixels a side that a reduced crop keeps for every pixel of the view.

libjpeg's reduction cuts frequencies off more sharply than the resize filter, which therefore has to
do the last halving. The views of photos then differ from those decoded in full by half of one of
255 levels or less in the mean, at 1 by 1.1 to 1.5 (docs/results/speed.md)."""
TRANSPOSED = range(5, 9)
"""EXIF orientations that exchange width and height."""


class LazyJpeg:
    """An RGB JPEG that is decoded when its pixels are needed.

    Its methods raise `DataError` as `decode` does, for damage that the header does not show.
    """

    def __init__(self, data: bytes, name: str, stored: tuple[int, int], orientation: int) -> None:
        self._data, self._name, self._stored, self._orientation = data, name, stored, orientation
        self.size = stored[::-1] if orientation in TRANSPOSED else stored
        """Upright (width, height)."""

    def choose_shrink(self, width: int, height: int, size: ImageSize) -> int:
        """Return the largest shrink factor at which a box keeps `OVERSAMPLING` times the view's pixels.

        `width` and `height` are those of the box, `size` is that of the view.
        """
        rows, columns = (OVERSAMPLING * side for side in height_width(size))
        for shrink in SHRINKS:
            # Sides that are no multiple are rounded up, and rotating would then shift the box by a
            # fraction of a pixel.
            is_exact = all(side % shrink == 0 for side in self._stored)
            keeps_enough = width >= shrink * columns and height >= shrink * rows
            if keeps_enough and (is_exact or self._orientation == 1):
                return shrink
        return 1

    def decode_scaled(self, shrink: int) -> Image.Image:
        """Decode at 1/shrink of the sides, rounded up."""
        return decode(self._data, self._name, shrink)

    def crop(self, box: Box) -> Bytes:
        """Return the pixels of a box, uint8 [H,W,3]."""
        left, top, right, bottom = box
        if isinstance(self._pixels, Image.Image):
            return np.asarray(self._pixels.crop(box))
        return self._pixels[top:bottom, left:right]

    @cached_property
    def _pixels(self) -> Image.Image | Bytes:
        """The full image: [H,W,3] from a torch decoder, else by Pillow.

        Pillow applies orientations and limits memory.
        """
        width, height = self._stored
        decoder = load_jpeg_decoder()
        if decoder.decode is not None and self._orientation == 1 and width * height <= LARGE:
            try:
                # The decoder writes HWC and returns a CHW view of it: permuting back copies
                # nothing.
                channels_last: Bytes = decoder.decode(self._data).permute(1, 2, 0).numpy()
                if channels_last.shape == (height, width, 3):
                    return channels_last
            except RuntimeError:  # damaged: Pillow decides whether it is readable
                pass
        return decode(self._data, self._name)


def open_image(
    data: bytes, name: str, value_range: ValueRange | None = None
) -> LazyJpeg | Image.Image:
    """Open an image for training: an RGB JPEG stays undecoded, anything else is decoded.

    `value_range` is that of images of more than 8 bits, see `decode`.

    Raises:
        DataError: as `decode`.
    """
    header = read_header(data, name) if data.startswith(JPEG_START) else None
    if header is None:
        return decode(data, name, value_range=value_range)
    return LazyJpeg(data, name, *header)


class JpegDecoder(NamedTuple):
    """What decodes JPEGs in full."""

    name: str
    """`torchcodec`, `torchvision` or `pillow`."""
    decode: Callable[[bytes], torch.Tensor] | None
    """From a file's bytes to uint8 [3,H,W]; raises RuntimeError. None: Pillow."""


@lru_cache(maxsize=1)
def load_jpeg_decoder() -> JpegDecoder:
    """Load the first decoder that is installed and fits this torch.

    In this order: torchcodec, torchvision's operator, Pillow.
    """
    # torchvision's operator is deprecated, torchcodec its successor. Both give Pillow's pixels:
    # 1,000 of 1,000 images were equal with torchvision's, also CMYK, gray and progressive ones.
    return _load_torchcodec() or _load_torchvision() or JpegDecoder("pillow", None)


def _load_torchcodec() -> JpegDecoder | None:
    try:
        from torchcodec import decoders

        decode_jpeg: Any = decoders.decode_jpeg  # type: ignore[attr-defined]  # not in its __all__
    except Exception:  # missing, too old, or built for another torch or CUDA: many error types
        return None
    # From a tensor: for `bytes`, torchcodec changes the global warning filters at each call.
    return JpegDecoder("torchcodec", lambda data: decode_jpeg(_to_tensor(data)))


def _load_torchvision() -> JpegDecoder | None:
    # Deprecated since torchvision 0.29. Loaded from its library, because importing torchvision
    # takes a second.
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in sorted(Path(folder).glob("image*.*")):
            try:
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                operator = torch.ops.image.decode_jpeg.default
            except (OSError, AttributeError):  # built for another torch, or without JPEG
                continue
            return JpegDecoder("torchvision", partial(_decode_by_operator, operator))
    return None


def _decode_by_operator(operator: Callable[..., torch.Tensor], data: bytes) -> torch.Tensor:
    return operator(_to_tensor(data), 3)  # 3: RGB


def _to_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)  # copied: bytes are not writable
