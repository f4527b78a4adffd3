"""RandAugment (Cubuk et al. 2020) as timm has it: its strings, operations, odds and pixels.

timm draws from global generators; here everything is drawn from the view's own. Levels and sets of
operations are those of `timm/data/auto_augment.py`. Shears and translations are computed here,
because Pillow's general affine map weighs 16 pixels for each output pixel and a shift along one
axis needs 4: half the time, less than one value in a thousand off by one level.

Letters: H and W pixels of an image, N points.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from deitctl.errors import ConfigError
from deitctl.models.model_config import IMAGENET_MEAN

Floats = NDArray[np.float64]
FILL = (round(255 * IMAGENET_MEAN[0]), round(255 * IMAGENET_MEAN[1]), round(255 * IMAGENET_MEAN[2]))
"""Color outside of a rotated, sheared or translated image."""
MAX_MAGNITUDE = 10
"""Magnitude of the strongest operations, unless `mmax` sets another."""
MAX_LAYERS = 100
BAND = 32
"""Rows that are filtered at a time, so that the intermediate values stay in the processor's
cache."""
BELOW_ROUNDING = np.float32(6e-5)
"""Added before values are truncated, as Pillow truncates: float32 weights that sum to 0.9999999
would otherwise darken plain areas by a level. Their error is 5e-5 at most. Most values that differ
from Pillow's are those this lifts."""

PLAIN = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's default operations; the order counts, because they are drawn by index."""
ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
INCREASING = tuple(
    f"{name}Increasing" if name in ("Posterize", "Solarize", *ENHANCERS) else name for name in PLAIN
)
"""`inc1`: operations whose effect increases with the magnitude."""
WEIGHTED = {
    "Rotate": 3,
    "ShearX": 2,
    "ShearY": 2,
    "TranslateXRel": 1,
    "TranslateYRel": 1,
    "ColorIncreasing": 0.25,
    "SharpnessIncreasing": 0.25,
    "AutoContrast": 0.25,
    "SolarizeIncreasing": 0.05,
    "SolarizeAdd": 0.05,
    "ContrastIncreasing": 0.05,
    "BrightnessIncreasing": 0.05,
    "Equalize": 0.05,
    "PosterizeIncreasing": 0.05,
    "Invert": 0.05,
}
"""`tweights`: relative probabilities, drawn without replacement."""


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations drawn from `names`.

    Each is applied with probability `prob` at about `magnitude`.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """Probability of each name, drawn without replacement; None: uniform, with replacement."""
    magnitude: float = MAX_MAGNITUDE
    layers: int = 2
    prob: float = 0.5
    noise: float = 0.0
    """Standard deviation of the magnitude; infinite: uniform from 0 to `magnitude`."""
    max_magnitude: float = MAX_MAGNITUDE

    def __call__(self, image: Image.Image, draw: np.random.Generator) -> Image.Image:
        """Augment an RGB image; the draws do not depend on the image."""
        chosen = draw.choice(
            len(self.names), self.layers, replace=self.weights is None, p=self.weights
        )
        for which in chosen:
            # Drawn whether it is applied or not, so that the next operation does not depend on it.
            applied, side = draw.random() < self.prob, 1 if draw.random() < 0.5 else -1
            magnitude = self.magnitude
            if self.noise == float("inf"):
                magnitude = draw.uniform(0, magnitude)
            elif self.noise:
                magnitude = draw.normal(magnitude, self.noise)
            if applied:
                # timm clips after the noise, so magnitude 10 is met now and then with m9.
                magnitude = max(0.0, min(magnitude, self.max_magnitude))
                image = apply(self.names[which], image, magnitude, side)
        return image


@lru_cache(maxsize=4)
def parse_rand_augment(spec: str) -> RandAugment:
    """Parse timm's string.

    `rand`, then any of mM, nLAYERS, pPROB, mstdS, mmaxM, inc0|1, tweights, joined by dashes.

    Raises:
        ConfigError: another policy, or an unknown or malformed part.
    """
    policy, *parts = spec.split("-")
    values: dict[str, float] = {}
    weighted = "tweights" in parts
    try:
        for part in parts:
            if part == "tweights":
                continue
            if (match := re.fullmatch(r"(mstd|mmax|inc|m|n|p)([0-9].*)", part)) is None:
                raise ValueError
            key, value = match.groups()
            values[key] = float(value) if key in ("mstd", "p") else int(value)
        layers, noise = int(values.get("n", 2)), values.get("mstd", 0.0)
        if policy != "rand" or layers > (len(WEIGHTED) if weighted else MAX_LAYERS):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"rand_augment = {spec!r} is not a RandAugment string.",
            "Example: rand-m9-mstd0.5-inc1.",
        ) from error
    total = sum(WEIGHTED.values())
    return RandAugment(
        names=tuple(WEIGHTED) if weighted else INCREASING if values.get("inc") else PLAIN,
        weights=tuple(w / total for w in WEIGHTED.values()) if weighted else None,
        magnitude=values.get("m", MAX_MAGNITUDE),
        layers=layers,
        prob=values.get("p", 0.5),
        noise=float("inf") if noise > 100 else noise,  # timm's convention
        max_magnitude=values.get("mmax", 0) or MAX_MAGNITUDE,
    )


def apply(name: str, image: Image.Image, magnitude: float, side: int) -> Image.Image:
    """Apply an operation to an RGB image.

    `side`, 1 or -1, is the direction of those that have two.
    """
    argument = LEVELS[name](magnitude / 10, side)
    return OPERATIONS[name.removesuffix("Increasing")](image, argument)


def enhance(image: Image.Image, factor: float, *, name: str) -> Image.Image:
    """Change color, contrast, brightness or sharpness by a factor."""
    return ENHANCERS[name](image).enhance(factor)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest `bits` of each value; none of them gives black, 8 or more the same image."""
    if bits >= 8:
        return image
    # DeiT's `inc1` asks for 0 bits at magnitude 10, and higher magnitudes for fewer: Pillow 13
    # refuses both.
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new("RGB", image.size)


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Add to the values below 128."""
    return image.point(
        [min(255, value + amount) if value < 128 else value for value in range(256)] * 3
    )


def shear(image: Image.Image, factor: float, *, rows: bool = False) -> Image.Image:
    """Move each column up, or each row to the left, by `factor` times its edge distance."""
    centers = np.arange(0.5, image.height if rows else image.width)
    return shift_lines(image, factor * centers, rows=rows)


def translate(image: Image.Image, fraction: float, *, rows: bool = False) -> Image.Image:
    """Move an image up, or to the left, by a fraction of its side."""
    along, across = (image.width, image.height) if rows else (image.height, image.width)
    return shift_lines(image, np.full(across, fraction * along), rows=rows)


def shift_lines(
    image: Image.Image,
    offsets: Floats,
    *,
    rows: bool = False,
    fill: tuple[int, int, int] = FILL,
) -> Image.Image:
    """Shift each column of an RGB image up, or each row to the left, by its own offset, bicubic.

    Sums are float32 here and float64 in Pillow, so for random offsets 7 values in 10,000 of a
    photograph differ, by one level of 255.

    Args:
        offsets: in pixels, one a column [W], or one a row [H] with `rows`.
        rows: shift rows instead of columns.
        fill: color of pixels that come from outside.
    """
    # RGBX packs a pixel into one 32-bit word, so gathering moves whole pixels.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint32)
    pixels = pixels.reshape(image.height, image.width)
    if rows:
        pixels = np.ascontiguousarray(pixels.T)
    height, width = pixels.shape
    floor = np.floor(offsets)
    # int32: half the memory traffic of int64.
    gather = np.arange(-1, height + 2, dtype=np.int32)[:, None] + floor.astype(np.int32)
    np.clip(gather, 0, height - 1, out=gather)  # the filter repeats the edge
    gather *= np.int32(width)
    gather += np.arange(width, dtype=np.int32)
    weights = compute_bicubic_weights(offsets - floor)
    # [H+3,W] words, seen as [H+3,4W] bytes
    sheared = filter_rows(pixels.ravel()[gather].view(np.uint8), weights).view(np.uint32)
    y = np.arange(height, dtype=np.int32)[:, None]
    first, end = (_find_first_row(edge, offsets) for edge in (0, height))
    np.copyto(sheared, np.frombuffer(bytes((*fill, 0)), np.uint32), where=(y < first) | (y >= end))
    return Image.frombytes(
        "RGB", image.size, np.ascontiguousarray(sheared.T) if rows else sheared, "raw", "RGBX"
    )


def _find_first_row(edge: int, offsets: Floats) -> NDArray[np.int32]:
    """Return the first row whose shifted center lies at or behind `edge`.

    Rounded in the order of Pillow's sums.
    """
    row = np.ceil(edge - 0.5 - offsets)
    row = np.where((row - 0.5) + offsets >= edge, row - 1, row)
    row = np.where((row + 0.5) + offsets < edge, row + 1, row)
    return row.astype(np.int32)


def filter_rows(taps: NDArray[np.uint8], weights: Floats) -> NDArray[np.uint8]:
    """Sum four consecutive rows of `taps` [H+3,4W] with each pixel's weights [4,W]; [H,4W]."""
    factors = np.repeat(weights.astype(np.float32), 4, axis=1)  # for R, G, B and padding
    height, width = len(taps) - 3, taps.shape[1]
    summed = np.empty((height, width), np.uint8)
    values = np.empty((BAND + 3, width), np.float32)
    total, product = np.empty((BAND, width), np.float32), np.empty((BAND, width), np.float32)
    for top in range(0, height, BAND):
        count = min(BAND, height - top)
        values[: count + 3] = taps[top : top + count + 3]
        sums, products = total[:count], product[:count]
        np.multiply(values[:count], factors[0], out=sums)
        for tap in (1, 2, 3):
            sums += np.multiply(values[tap : tap + count], factors[tap], out=products)
        sums += BELOW_ROUNDING
        np.clip(sums, 0, 255, out=sums)
        summed[top : top + count] = sums
    return summed


def compute_bicubic_weights(d: Floats) -> Floats:
    """Return the weights [4,N] of four neighbors (Keys 1981, a = -1).

    For points at distance `d` behind the second neighbor.

    The polynomials of `BICUBIC` in Pillow's Geometry.c, multiplied out.
    """
    return np.stack([-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2])


OPERATIONS: dict[str, Callable[[Image.Image, Any], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, degrees: image.rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=FILL
    ),
    "Posterize": posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": solarize_add,
    **{name: partial(enhance, name=name) for name in ENHANCERS},
    "ShearX": partial(shear, rows=True),
    "ShearY": shear,
    "TranslateXRel": partial(translate, rows=True),
    "TranslateYRel": translate,
}
"""Each operation on an RGB image and its argument."""
LEVELS: dict[str, Callable[[float, int], Any]] = {
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda strength, side: None),
    **dict.fromkeys(ENHANCERS, lambda strength, side: strength * 1.8 + 0.1),
    **{
        f"{name}Increasing": lambda strength, side: max(0.1, 1.0 + side * (strength * 0.9))
        for name in ENHANCERS
    },
    "Rotate": lambda strength, side: side * (strength * 30.0),
    "Posterize": lambda strength, side: int(strength * 4),
    "PosterizeIncreasing": lambda strength, side: 4 - int(strength * 4),
    "Solarize": lambda strength, side: min(256, int(strength * 256)),
    "SolarizeIncreasing": lambda strength, side: 256 - min(256, int(strength * 256)),
    "SolarizeAdd": lambda strength, side: min(128, int(strength * 110)),
    **dict.fromkeys(("ShearX", "ShearY"), lambda strength, side: side * (strength * 0.3)),
    **dict.fromkeys(
        ("TranslateXRel", "TranslateYRel"), lambda strength, side: side * (strength * 0.45)
    ),
}
"""The operation's argument, given the strength (a tenth of the magnitude) and the side."""
