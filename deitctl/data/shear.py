"""Columns of an image moved up and down by parts of a pixel, or rows sideways: what shearing and translating are.

Pillow's affine map weighs 16 pixels for each one; where lines only slide, 12 of their weights are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BAND = 32
"""Lines that are weighed at a time, so that what is in between stays in the processor's cache."""
BELOW_ROUNDING = np.float32(6e-5)
"""Values are cut off, as Pillow's are: weights that sum to 0.9999999 must not make a plain area darker by a level, which is 5e-5
at most. What it lifts besides, values just below a level, is most of what is beside Pillow's."""
Floats = NDArray[np.float64]


def slide(
    image: Image.Image, offsets: Floats, fill: tuple[int, int, int], *, rows: bool = False
) -> Image.Image:
    """Show at y of column x of an RGB image what lies at y + offsets[x], by Pillow's bicubic, and `fill` where nothing does.

    `offsets` are pixels, one for each column, or for each row where those are to slide. Sums are fp32 here and fp64
    in Pillow, so of random offsets one value in ten thousand is beside Pillow's, by a level of 255.
    """
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32).reshape(
        image.height, image.width
    )
    if rows:
        pixels = np.ascontiguousarray(pixels.T)
    height, width = pixels.shape
    whole = np.floor(offsets)
    where = np.arange(-1, height + 2, dtype=np.int32)[:, None] + whole.astype(np.int32)
    np.clip(where, 0, height - 1, out=where)  # the border goes on
    where *= np.int32(width)
    where += np.arange(width, dtype=np.int32)
    shown = weighed(pixels.ravel()[where].view(np.uint8), bicubic_weights(offsets - whole)).view(
        np.uint32
    )
    y = np.arange(height, dtype=np.int32)[:, None]
    first, end = (_centres_from(edge, offsets) for edge in (0, height))
    np.copyto(shown, np.frombuffer(bytes((*fill, 0)), np.uint32), where=(y < first) | (y >= end))
    return Image.frombytes(
        "RGB", image.size, np.ascontiguousarray(shown.T) if rows else shown, "raw", "RGBX"
    )


def _centres_from(edge: int, offsets: Floats) -> NDArray[np.int32]:
    """Return the first line whose center, moved, lies at `edge` or behind, rounded in the order of Pillow's sums."""
    found = np.ceil(edge - 0.5 - offsets)
    found = np.where((found - 0.5) + offsets >= edge, found - 1, found)
    found = np.where((found + 0.5) + offsets < edge, found + 1, found)
    return found.astype(np.int32)


def weighed(taps: NDArray[np.uint8], weights: Floats) -> NDArray[np.uint8]:
    """Sum four lines after each other of [H+3,4W], by the weights [4,W] of each pixel; [H,4W]."""
    factors = np.repeat(
        weights.astype(np.float32), 4, axis=1
    )  # red, green, blue and a byte that means nothing
    height, width = len(taps) - 3, taps.shape[1]
    shown = np.empty((height, width), np.uint8)
    values = np.empty((BAND + 3, width), np.float32)
    total, part = np.empty((BAND, width), np.float32), np.empty((BAND, width), np.float32)
    for top in range(0, height, BAND):
        count = min(BAND, height - top)
        values[: count + 3] = taps[top : top + count + 3]
        sums, parts = total[:count], part[:count]
        np.multiply(values[:count], factors[0], out=sums)
        for tap in (1, 2, 3):
            sums += np.multiply(values[tap : tap + count], factors[tap], out=parts)
        sums += BELOW_ROUNDING
        np.clip(sums, 0, 255, out=sums)
        shown[top : top + count] = sums
    return shown


def bicubic_weights(d: Floats) -> Floats:
    """Return the weights [4,N] of four neighbors for points that lie `d` behind the second (Keys 1981, a = -1).

    `BICUBIC` of Pillow's Geometry.c, multiplied out.
    """
    return np.stack([-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2])
