"""Maps of an image's patches, drawn over the image: a heat map a token, and panels side by side with captions.

Letters: S pixels along the input's side, G patches along it, A attention heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Map = NDArray[np.floating]
HEAT, DIFFERENCE = "inferno", "RdBu_r"
"""matplotlib's: one whose lightness grows evenly, and one that is white where nothing is the difference."""
OPACITY = 0.6
SMALLEST, LARGEST = 224, 512
"""Sides of a panel, pixels: a small input is enlarged by a whole number, so that its pixels stay pixels."""
NARROWEST = 96
"""Side of an attention head's panel, pixels."""
FONT_SIZE, GAP = 14, 8
LINE = FONT_SIZE + 4


class TokenView(NamedTuple):
    """What one token says, and where it looks."""

    title: str
    says: str
    importance: Map
    """[G,G], 0 or more."""
    heads: Map | None = None
    """[A,G,G], where each attention head is drawn too."""


class _Panel(NamedTuple):
    image: Image.Image
    lines: tuple[str, ...]


def heat(pixels: NDArray[np.uint8], importance: Map, side: int = 0) -> Image.Image:
    """Draw a map [G,G] over an image [3,S,S], from its own lowest value (dark) to its highest (bright).

    What all patches have alike says nothing; in rollouts of deit_tiny it was 16 to 43 % of the highest (eight photos).

    Args:
        pixels: the image as the model saw it.
        importance: weights of the patches, 0 or more; smoothed between the middles of the patches (bilinear).
        side: of what is drawn, pixels; the input's, enlarged where it is small, unless told.
    """
    side = side or panel_side(pixels.shape[-1])
    above = importance - importance.min()
    return _tinted(pixels, above / (above.max() or 1.0), HEAT, side)


def difference(pixels: NDArray[np.uint8], cls: Map, dist: Map, side: int = 0) -> Image.Image:
    """Draw where the distillation token looks more (red) or less (blue) than the class token, each map's sum being 1.

    The strongest color is the highest weight of the two maps, so that maps that are alike have no color.
    """
    gap, side = _gap(cls, dist), side or panel_side(pixels.shape[-1])
    most = max(float(m.max() / (m.sum() or 1.0)) for m in (cls, dist))
    return _tinted(pixels, 0.5 + 0.5 * gap / (most or 1.0), DIFFERENCE, side)


def moved(cls: Map, dist: Map) -> float:
    """Return the share of one map's weight, 0..1, that has to move to make the other (total variation)."""
    return float(np.abs(_gap(cls, dist)).sum() / 2)


def _gap(cls: Map, dist: Map) -> Map:
    return dist / (dist.sum() or 1.0) - cls / (cls.sum() or 1.0)


def panels(
    pixels: NDArray[np.uint8], tokens: Sequence[TokenView], *, name: str, note: str
) -> Image.Image:
    """Draw one image: what the model saw, then a panel a token, then how two differ, and below them their heads.

    Args:
        pixels: the image as the model saw it, uint8 [3,S,S].
        tokens: one or two of them; where there are two, the second is the distillation token.
        name: what the image is called.
        note: a line above it all.
    """
    side = panel_side(pixels.shape[-1])
    row = [_Panel(_resized(pixels, side), ("image", name))]
    row += [_Panel(heat(pixels, t.importance, side), (t.title, t.says)) for t in tokens]
    if len(tokens) == 2:
        cls, dist = (t.importance for t in tokens)
        lines = (
            "distillation minus class token",
            f"red more, blue less: {100 * moved(cls, dist):.0f} % elsewhere",
        )
        row.append(_Panel(difference(pixels, cls, dist, side), lines))
    strips = [_side_by_side(row)]
    for token in tokens:
        strips += _heads(pixels, token, strips[0].width)
    return _below_each_other([_text_line(note, strips[0].width), *strips])


def panel_side(input_side: int) -> int:
    """Return how many pixels an image's side is drawn with."""
    if input_side >= SMALLEST:
        return min(input_side, LARGEST)
    return input_side * -(-SMALLEST // input_side)


def _heads(pixels: NDArray[np.uint8], token: TokenView, width: int) -> list[Image.Image]:
    """Draw a token's attention heads below a line that says so, as many beside each other as stay readable."""
    if token.heads is None:
        return []
    count = len(token.heads)
    fits = [c for c in range(1, 9) if count % c == 0 and (width - GAP) // c - GAP >= NARROWEST]
    columns = max(fits, default=1)
    side = min((width - GAP) // columns - GAP, panel_side(pixels.shape[-1]))
    drawn = [_Panel(heat(pixels, m, side), (f"head {n + 1}",)) for n, m in enumerate(token.heads)]
    rows = [_side_by_side(drawn[start : start + columns]) for start in range(0, count, columns)]
    return [_text_line(f"{token.title}, head by head", width), *rows]


def _tinted(pixels: NDArray[np.uint8], share: Map, colors: str, side: int) -> Image.Image:
    """Blend the image, in gray, with the colors of a map [G,G] of 0..1."""
    from matplotlib import colormaps

    smooth = Image.fromarray(share.astype(np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    tint = Image.fromarray(
        colormaps[colors](np.asarray(smooth).clip(0, 1), bytes=True)[..., :3].copy()
    )
    return Image.blend(_resized(pixels, side).convert("L").convert("RGB"), tint, OPACITY)


def _resized(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    exact = side % image.width == 0
    return image.resize(
        (side, side), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS
    )


def _side_by_side(row: Sequence[_Panel]) -> Image.Image:
    """Lay panels of one size beside each other, each with its lines above it."""
    side, lines = row[0].image.width, len(row[0].lines)
    strip = Image.new("RGB", (len(row) * (side + GAP) + GAP, lines * LINE + side + GAP), "white")
    draw = ImageDraw.Draw(strip)
    for n, panel in enumerate(row):
        left = GAP + n * (side + GAP)
        for line, text in enumerate(panel.lines):
            draw.text(
                (left, line * LINE),
                cut(text, side),
                fill="black" if line == 0 else "dimgrey",
                font=_font(),
            )
        strip.paste(panel.image, (left, lines * LINE))
    return strip


def _text_line(text: str, width: int) -> Image.Image:
    line = Image.new("RGB", (width, LINE + GAP), "white")
    ImageDraw.Draw(line).text(
        (GAP, GAP // 2), cut(text, width - 2 * GAP), fill="black", font=_font()
    )
    return line


def _below_each_other(strips: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def cut(text: str, width: int) -> str:
    """Return a text, without what has no shape, cut where it would be wider than `width` pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek and Cyrillic."""
    import matplotlib

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE
    )
