"""An image in the terminal: two pixels a character, the upper half block's color and the color behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from deitctl.data.eval_transform import Pixels

HALF = "▀"


def can_show(console: Console) -> bool:
    """Say whether a console is a terminal with colors enough for an image, and has not been asked for none."""
    plain = console.no_color or console.is_dumb_terminal or console.options.ascii_only
    return console.is_terminal and not plain and console.color_system in ("256", "truecolor")


def half_blocks(pixels: Pixels, width: int) -> list[Text]:
    """Return a square image, uint8 [3,S,S], as lines of `width` characters, half as many as they are long."""
    width -= width % 2
    small = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).resize((width, width))
    rows = np.asarray(small).reshape(width // 2, 2, width, 3).tolist()
    return [Text.assemble(*map(_two_pixels, top, bottom)) for top, bottom in rows]


def _two_pixels(upper: list[int], lower: list[int]) -> tuple[str, Style]:
    return HALF, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
