"""Shear and translation: rows of a picture moved by parts of a pixel, to the value what Pillow's affine map gives.

Pillow interpolates in two dimensions and in double precision. A row that moves along itself needs four neighbours a
value, with the same four weights in all the row: single precision does, and where it cannot tell to which integer a
value is cut, that value is computed again as Pillow computes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Color = tuple[int, int, int]
REACH = 2
"""Pixels beyond the picture that a cubic looks at; they repeat the edge."""
DOUBT = 3e-4
"""Distance from an integer within which single precision, wrong by less than 1e-4, leaves the value in doubt."""


def shear(image: Image.Image, factor: float, fill: Color, *, vertical: bool = False) -> Image.Image:
    """Move each row of an RGB picture to the left by `factor` times its distance from the top; `vertical`: columns, up."""
    return _move(image, factor * (np.arange(image.width if vertical else image.height) + 0.5), fill, vertical)


def translate(image: Image.Image, pixels: float, fill: Color, *, vertical: bool = False) -> Image.Image:
    """Move an RGB picture to the left by a number of pixels; `vertical`: up."""
    return _move(image, np.full(image.width if vertical else image.height, pixels), fill, vertical)


def _move(image: Image.Image, offsets: Floats, fill: Color, vertical: bool) -> Image.Image:
    if not vertical:
        return move_rows(image, offsets, fill)
    turn = Image.Transpose.TRANSPOSE
    return move_rows(image.transpose(turn), offsets, fill).transpose(turn)


def move_rows(image: Image.Image, offsets: Floats, fill: Color) -> Image.Image:
    """Return the RGB picture whose pixel (x, y) is that of `image` at (x + offsets[y], y), `fill` where that is outside.

    The interpolation is Pillow's bicubic (Geometry.c): a = -1, edges repeated, cut to an integer.
    """
    width, height = image.size
    offsets = offsets.clip(-2.0 * width, 2.0 * width)
    first, nearest = np.floor(offsets).astype(np.int64) - 1, np.floor(offsets + 0.5).astype(np.int64)
    left, right = max(0, -int(nearest.max())), min(width, width - int(nearest.min()))  # outside these all is filled
    out = np.empty((height, 3 * width), np.uint8)
    out[:] = np.tile(np.array(fill, np.uint8), width)
    if left < right:
        margin = int(np.abs(first).max()) + REACH + 1
        padded = _pad(np.asarray(image), margin)
        span = 3 * (right - left)
        taps = sliding_window_view(padded, span + 9, axis=1)[np.arange(height), 3 * (margin + left + first)]
        values, doubtful = _filter(taps, offsets - first - 1)
        rows, places = np.divmod(doubtful, span)
        columns, channels = np.divmod(places, 3)
        values[rows, places] = _in_double(padded, margin, offsets[rows], rows, columns + left, channels)
        sources = np.repeat(np.arange(left, right, dtype=np.int32), 3) + nearest[:, None].astype(np.int32)
        np.copyto(out[:, 3 * left : 3 * right], values, where=(sources >= 0) & (sources < width))
    return Image.fromarray(out.reshape(height, width, 3))


def _pad(pixels: Bytes, margin: int) -> Bytes:
    """Repeat the edges of [H,W,3] over REACH pixels; what is further out is never shown. Returns [H,3(W+2*margin)]."""
    height, width, _ = pixels.shape
    padded = np.zeros((height, width + 2 * margin, 3), np.uint8)
    padded[:, margin : margin + width] = pixels
    padded[:, margin - REACH : margin] = pixels[:, :1]
    padded[:, margin + width : margin + width + REACH] = pixels[:, -1:]
    return padded.reshape(height, -1)


def _filter(taps: Bytes, shift: Floats) -> tuple[Bytes, Integers]:
    """Filter rows [H,3(W+3)] by the parts `shift` of a pixel [H]; return [H,3W], and which flat places are in doubt."""
    t = shift[:, None]
    weights = (-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3)
    factors = [torch.from_numpy(w.astype(np.float32)) for w in weights]
    span = taps.shape[1] - 9
    single = torch.from_numpy(taps).float()
    total = single[:, :span] * factors[0]
    for k in (1, 2, 3):
        total.addcmul_(single[:, 3 * k : 3 * k + span], factors[k])
    values = total.numpy()
    distance = np.rint(values)
    distance -= values
    a, b, c, d = (taps[:, 3 * k : 3 * k + span] for k in range(4))
    uneven = a != b  # where all four are equal, DOUBT / 2 more makes the value theirs
    uneven |= b != c
    uneven |= c != d
    uneven &= np.abs(distance, out=distance) < DOUBT
    values += DOUBT / 2
    return values.clip(0, 255, out=values).astype(np.uint8), np.flatnonzero(uneven)


def _in_double(
    padded: Bytes, margin: int, offsets: Floats, rows: Integers, columns: Integers, channels: Integers
) -> Floats:
    """Compute single values [N] in Pillow's own steps, so that they are cut to the same integers."""
    place = (columns + 0.5) + offsets - 0.5
    first = np.floor(place)
    t, start = place - first, 3 * (first.astype(np.int64) - 1 + margin) + channels
    a, b, c, d = (padded[rows, start + 3 * k].astype(np.float64) for k in range(4))
    exact: Floats = (b + t * ((c - a) + t * ((2 * (a - b) + c - d) + t * (b - a - c + d)))).clip(0, 255)
    return exact
