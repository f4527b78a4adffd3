"""Shear and translation: the rows of a picture moved by parts of a pixel, as Pillow's affine map moves them.

Pillow interpolates in two dimensions, pixel by pixel, in double precision. A row that moves along itself needs four
neighbours a value, with the same four weights in all the row; single precision is enough for all but one value in some
thousands, which is one level beside Pillow's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Color = tuple[int, int, int]
CUBIC = np.array([[0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]])
"""Weights of the four neighbours as polynomials of the shift, by rising powers: Pillow's bicubic, a = -1 (Geometry.c)."""
REACH = 2
"""Pixels beyond the picture that a cubic looks at; they repeat the edge."""
BLOCK = 64
"""Rows that are filtered at a time, so that their single-precision values stay in the cache."""
ROUNDING = 1e-4
"""More than single precision is wrong by: added before values are cut to integers, so that even areas stay even."""


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
    """Return the RGB picture whose pixel (x, y) is that of `image` at (x + offsets[y], y), `fill` where that is outside."""
    width, height = image.size
    offsets = offsets.clip(-width - 1.0, width + 1.0)  # all outside, and no further
    first = np.floor(offsets).astype(np.int64)
    weights = ((offsets - first)[:, None] ** np.arange(4) @ CUBIC.T).astype(np.float32)
    moved = Image.fromarray(_filter(_neighbours(np.asarray(image), first), weights).reshape(height, width, 3))
    source = np.arange(width) + np.floor(offsets + 0.5).astype(np.int64)[:, None]
    moved.paste(fill, (0, 0, width, height), Image.fromarray((source < 0) | (source >= width)))
    return moved


def _neighbours(pixels: Bytes, first: NDArray[np.int64]) -> Bytes:
    """Return each row [W,3] from one pixel before `first` [H] to two behind the row's end, [H,3(W+3)], edges repeated."""
    height, width, _ = pixels.shape
    margin = int(np.abs(first).max()) + REACH + 1
    padded = np.zeros((height, width + 2 * margin, 3), np.uint8)
    padded[:, margin : margin + width] = pixels
    padded[:, margin - REACH : margin] = pixels[:, :1]
    padded[:, margin + width : margin + width + REACH] = pixels[:, -1:]
    from_each = as_strided(
        padded, (height, 2 * margin - 2, 3 * (width + 3)), (padded.strides[0], 3, 1), writeable=False
    )
    taken: Bytes = from_each[np.arange(height), margin + first - 1]
    return taken


def _filter(values: Bytes, weights: Floats) -> Bytes:
    """Sum four neighbours, three values apart, [H,3(W+3)], with the weights of their row [H,4]; returns [H,3W]."""
    count, taps, factors = values.shape[1] - 9, torch.from_numpy(values), torch.from_numpy(weights)
    shown = torch.empty((len(values), count), dtype=torch.uint8)
    for rows, weight, out in zip(*(torch.split(t, BLOCK) for t in (taps, factors, shown)), strict=True):
        single = rows.float()
        total = single[:, :count] * weight[:, :1]
        for k in (1, 2, 3):
            total.addcmul_(single[:, 3 * k : 3 * k + count], weight[:, k : k + 1])
        out.copy_(total.add_(ROUNDING).clamp_(0, 255))
    return shown.numpy()
