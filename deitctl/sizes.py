"""Sizes of inputs: a side in pixels where they are square, else height and width."""

from __future__ import annotations

import re
from typing import Any

ImageSize = int | tuple[int, int]
"""Side in pixels of a square input; (height, width) of another, never of two equal sides."""


def make_size(height: int, width: int) -> ImageSize:
    """Return the size of an input of `height` x `width` pixels."""
    return height if height == width else (height, width)


def height_width(size: ImageSize) -> tuple[int, int]:
    """Return the height and the width of a size, in pixels."""
    return (size, size) if isinstance(size, int) else size


def format_size(size: ImageSize) -> str:
    """Return a size as it is typed: `224`, or `192x384` of 192 rows."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def parse_size(value: Any) -> ImageSize:
    """Return the size that a text, a number or a list of height and width means.

    Raises:
        ValueError: it means none.
    """
    if isinstance(value, str):
        if (match := re.fullmatch(r"\s*(\d{1,9})(?:\s*[x×]\s*(\d{1,9}))?\s*", value)) is None:
            raise ValueError(
                "expected pixels, 224 for example, or HEIGHTxWIDTH, 192x384 for example"
            )
        value = [int(side) for side in match.groups() if side is not None]
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2) or not all(_is_whole(side) for side in sides):
        raise ValueError("expected pixels, or height and width")
    height, width = int(sides[0]), int(sides[-1])
    if len(sides) == 2 and not height * width:
        raise ValueError("a height or a width of 0 pixels")
    return make_size(height, width)


def _is_whole(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value == value // 1 and value >= 0


def list_size(size: ImageSize) -> int | list[int]:
    """Return a size as JSON and TOML have it: a number, or height and width."""
    return size if isinstance(size, int) else list(size)


def short_side(size: ImageSize) -> int:
    """Return the shorter side of a size, in pixels."""
    return min(height_width(size))


def long_side(size: ImageSize) -> int:
    """Return the longer side of a size, in pixels."""
    return max(height_width(size))
