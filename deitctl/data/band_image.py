"""Images of bands that are neither gray nor RGB: satellites', microscopes', depth beside color."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.config import MAX_CHANS


def has_bands(in_chans: int) -> bool:
    """Whether a model of so many channels takes bands: it is not gray or RGB, and 0 is a model's own."""
    return in_chans not in (0, 1, 3)


def describe_channels(in_chans: int) -> str:
    """Return what a model takes, in words: `RGB`, `gray`, `5-band`."""
    return {1: "gray", 3: "RGB"}.get(in_chans, f"{in_chans}-band")


def count_channels(text: str) -> int:
    """Return how many channels an export's metadata state: `L`, `RGB`, or `4 bands`.

    Raises:
        ValueError: as many as no image has.
    """
    count, _, unit = text.partition(" ")
    channels = int(count) if unit == "bands" else 1 if text == "L" else 3
    if not 1 <= channels <= MAX_CHANS:
        raise ValueError(f"{channels} channels")
    return channels


class BandImage(Image.Image):
    """An image of several bands of 8 bits, of which Pillow has a gray image each.

    What views are made by acts on every band alike, so a band has the pixels that it would have as an
    image of its own.
    """

    def __init__(self, bands: Sequence[Image.Image]) -> None:
        """Join gray images (mode L) of one size."""
        super().__init__()
        self.bands = tuple(bands)
        self._size, self._mode = self.bands[0].size, f"{len(self.bands)} bands"

    @classmethod
    def from_array(cls, pixels: NDArray[np.uint8]) -> BandImage:
        """Return the image of pixels uint8 [H,W,N]."""
        # A copy each, because Pillow shares the memory of what is contiguous.
        return cls(
            [Image.fromarray(np.array(band, order="C")) for band in np.moveaxis(pixels, 2, 0)]
        )

    @property
    def __array_interface__(self) -> dict[str, Any]:
        shape = (self.height, self.width, len(self.bands))
        # Bytes, which the array keeps: a pointer would be to pixels that are gone.
        return {"shape": shape, "typestr": "|u1", "version": 3, "data": self.tobytes()}

    def crop(self, *args: Any, **options: Any) -> BandImage:
        return BandImage([band.crop(*args, **options) for band in self.bands])

    def resize(self, *args: Any, **options: Any) -> BandImage:
        return BandImage([band.resize(*args, **options) for band in self.bands])

    def transpose(self, *args: Any, **options: Any) -> BandImage:
        return BandImage([band.transpose(*args, **options) for band in self.bands])

    def transform(self, *args: Any, **options: Any) -> BandImage:
        return BandImage([band.transform(*args, **options) for band in self.bands])

    def getextrema(self) -> tuple[tuple[int, int], ...]:
        return tuple(band.getextrema() for band in self.bands)  # type: ignore[misc]

    def tobytes(self, *args: Any) -> bytes:
        return np.stack([np.asarray(band) for band in self.bands], axis=2).tobytes()

    def convert(self, mode: str | None = None, *args: Any, **options: Any) -> Image.Image:
        """Return what can be shown: the first three bands as RGB, or the first one."""
        return show_bands(self).convert(mode, *args, **options)


def from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return the image of pixels uint8 [H,W,3], or [H,W,N] of bands."""
    return Image.fromarray(pixels) if pixels.shape[2] == 3 else BandImage.from_array(pixels)


def show_bands(image: BandImage) -> Image.Image:
    """Return the first three bands as RGB, or the first one as gray values in RGB."""
    if len(image.bands) < 3:
        return image.bands[0].convert("RGB")
    return Image.merge("RGB", image.bands[:3])


def show_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels [H,W,C] as RGB, [H,W,3]: the first three channels, or the first one three times."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
