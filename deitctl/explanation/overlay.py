"""Drawings of token maps: heat maps, the difference of two tokens, panels with captions.

Letters: S pixels a side of the model's input, G patches a side, A attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deitctl.data.band_image import show_pixels

Map = NDArray[np.floating]
HEAT, DIFFERENCE = "inferno", "RdBu_r"  # matplotlib's; the latter is white at no difference
OPACITY = 0.6
MIN_SIDE, MAX_SIDE = 224, 512  # of a panel, pixels
MIN_HEAD_SIDE = 96  # of an attention head's panel, pixels
FONT_SIZE, GAP = 14, 8
LINE = FONT_SIZE + 4


class TokenPanel(NamedTuple):
    """What to draw of one token."""

    title: str
    caption: str
    importance: Map
    """[G,G], 0 or more."""
    head_maps: Map | None = None
    """[A,G,G], to draw each attention head too."""


class _Panel(NamedTuple):
    image: Image.Image
    lines: tuple[str, ...]


def draw_heatmap(pixels: NDArray[np.uint8], importance: Map, side: int = 0) -> Image.Image:
    """Draw a map over an image, from its own lowest value (dark) to its highest (bright).

    The lowest value is subtracted because what all patches share tells nothing; in rollouts of
    deit_tiny it was 16 to 43 % of the highest (eight photos).

    Args:
        pixels: the model's input, uint8 [3,S,S].
        importance: [G,G], 0 or more; interpolated bilinearly between the centers of the patches.
        side: of the drawing in pixels; 0 for the input's, enlarged if it is small.
    """
    side = side or choose_panel_side(pixels.shape[-1])
    # Each map on its own scale: two maps of the same brightness may stand for different weights.
    excess = importance - importance.min()
    return _blend(pixels, excess / (excess.max() or 1.0), HEAT, side)


def draw_difference(pixels: NDArray[np.uint8], cls: Map, dist: Map, side: int = 0) -> Image.Image:
    """Draw where the distillation token has more (red) or less (blue) weight than the class token.

    Both maps are normalized to a sum of 1. The full color is the highest weight of the two, so that
    equal maps are colorless.
    """
    side = side or choose_panel_side(pixels.shape[-1])
    highest = max(float(m.max() / (m.sum() or 1.0)) for m in (cls, dist))
    return _blend(pixels, 0.5 + 0.5 * _subtract(cls, dist) / (highest or 1.0), DIFFERENCE, side)


def compute_total_variation(cls: Map, dist: Map) -> float:
    """Return the fraction of one map's weight, 0..1, that has to move to make the other."""
    return float(np.abs(_subtract(cls, dist)).sum() / 2)


def _subtract(cls: Map, dist: Map) -> Map:
    return dist / (dist.sum() or 1.0) - cls / (cls.sum() or 1.0)


def draw_panels(
    pixels: NDArray[np.uint8], tokens: Sequence[TokenPanel], *, name: str, note: str
) -> Image.Image:
    """Draw the model's input, each token's map, their difference, and attention heads below.

    Args:
        pixels: the model's input, uint8 [3,S,S].
        tokens: the class token, the distillation token, or both in this order.
        name: of the image.
        note: a line above the panels.
    """
    side = choose_panel_side(pixels.shape[-1])
    row = [_Panel(_resize(pixels, side), ("image", name))]
    row += [_Panel(draw_heatmap(pixels, t.importance, side), (t.title, t.caption)) for t in tokens]
    if len(tokens) == 2:
        cls, dist = (t.importance for t in tokens)
        moved = 100 * compute_total_variation(cls, dist)
        lines = ("distillation minus class token", f"red more, blue less: {moved:.0f} % elsewhere")
        row.append(_Panel(draw_difference(pixels, cls, dist, side), lines))
    strips = [_join_horizontally(row)]
    width = strips[0].width
    for token in tokens:
        strips += _draw_heads(pixels, token, width)
    return _join_vertically([_draw_line(note, width), *strips])


def choose_panel_side(input_side: int) -> int:
    """Return the side of a panel in pixels; small inputs are enlarged by an integer factor."""
    if input_side >= MIN_SIDE:
        return min(input_side, MAX_SIDE)
    return input_side * -(-MIN_SIDE // input_side)


def _draw_heads(pixels: NDArray[np.uint8], token: TokenPanel, width: int) -> list[Image.Image]:
    """Draw a token's attention heads below a title, in equal rows of as many as stay readable."""
    if token.head_maps is None:
        return []
    num_heads = len(token.head_maps)
    columns = max(
        (
            c
            for c in range(1, 9)
            if num_heads % c == 0 and (width - GAP) // c - GAP >= MIN_HEAD_SIDE
        ),
        default=1,
    )
    side = min((width - GAP) // columns - GAP, choose_panel_side(pixels.shape[-1]))
    panels = [
        _Panel(draw_heatmap(pixels, head_map, side), (f"head {n}",))
        for n, head_map in enumerate(token.head_maps, start=1)
    ]
    rows = [panels[start : start + columns] for start in range(0, num_heads, columns)]
    title = _draw_line(f"{token.title}, attention heads", width)
    return [title, *(_join_horizontally(row) for row in rows)]


def _blend(pixels: NDArray[np.uint8], values: Map, colormap: str, side: int) -> Image.Image:
    """Blend the gray image with the colors of a map [G,G] in 0..1."""
    from matplotlib import colormaps

    # Bilinear: nothing finer than a patch was measured, and bicubic would overshoot into false
    # peaks.
    smooth = Image.fromarray(values.astype(np.float32)).resize(
        _measure(pixels, side), Image.Resampling.BILINEAR
    )
    rgba = colormaps[colormap](np.asarray(smooth).clip(0, 1), bytes=True)
    colors = Image.fromarray(rgba[..., :3].copy())
    # Gray below: the color then stands for the weight alone.
    return Image.blend(_resize(pixels, side).convert("L").convert("RGB"), colors, OPACITY)


def _resize(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(show_pixels(pixels.transpose(1, 2, 0))))
    is_multiple = side % image.width == 0
    # Digits of 8 pixels stay recognizable as pixels.
    resample = Image.Resampling.NEAREST if is_multiple else Image.Resampling.LANCZOS
    return image.resize(_measure(pixels, side), resample)


def _measure(pixels: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return width and height of a drawing that is `side` pixels wide."""
    return side, round(side * pixels.shape[1] / pixels.shape[2])


def _join_horizontally(row: Sequence[_Panel]) -> Image.Image:
    """Join panels of one size, each below its lines."""
    (side, height), num_lines = row[0].image.size, len(row[0].lines)
    size = (len(row) * (side + GAP) + GAP, num_lines * LINE + height + GAP)
    strip = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(strip)
    for n, panel in enumerate(row):
        left = GAP + n * (side + GAP)
        for line, text in enumerate(panel.lines):
            color = "black" if line == 0 else "dimgrey"
            draw.text((left, line * LINE), truncate(text, side), fill=color, font=_load_font())
        strip.paste(panel.image, (left, num_lines * LINE))
    return strip


def _draw_line(text: str, width: int) -> Image.Image:
    line = Image.new("RGB", (width, LINE + GAP), "white")
    text = truncate(text, width - 2 * GAP)
    ImageDraw.Draw(line).text((GAP, GAP // 2), text, fill="black", font=_load_font())
    return line


def _join_vertically(strips: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def truncate(text: str, width: int) -> str:
    """Cut a text to `width` pixels with an ellipsis; unprintable characters become `?`."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if _load_font().getlength(text) <= width:
        return text
    while text and _load_font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=1)
def _load_font() -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which comes with matplotlib and has Latin, Greek and Cyrillic."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", FONT_SIZE)
