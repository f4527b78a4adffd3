"""Which images are worth a look, and their thumbnails."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 160
"""Longest side of a thumbnail, pixels."""
QUALITY = 78
"""Of JPEG: 3 x 24 images with two maps each then stay near a megabyte."""


def confident_mistakes(
    correct: NDArray[np.bool_], confidences: NDArray[np.floating], most: int = 24
) -> list[int]:
    """Return the positions of at most `most` wrong answers, the most confident first.

    Args:
        correct: whether each answer is right, [N].
        confidences: the probability of each answer, [N].
        most: how many at most.
    """
    order = np.argsort(-confidences, kind="stable")
    return [int(n) for n in order[~correct[order]][:most]]


def unsure_hits(
    correct: NDArray[np.bool_], confidences: NDArray[np.floating], most: int = 24
) -> list[int]:
    """Return the positions of at most `most` right answers, the least confident first; arguments as above."""
    order = np.argsort(confidences, kind="stable")
    return [int(n) for n in order[correct[order]][:most]]


def thumbnail(pixels: NDArray[np.uint8], side: int = SIDE) -> bytes:
    """Return an image as JPEG, made smaller where its longest side is above `side`.

    Args:
        pixels: what the model saw, before normalizing, [3,H,W].
        side: pixels.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), "RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()
