"""RandAugment (Cubuk et al. 2020) as timm does it for DeiT: its strings, its operations, its pixels (but see slide.py).

timm draws from global generators; here all comes from the view's own. Source of the levels and of the sets of
operations: `timm/data/auto_augment.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from deitctl.data.rand_augment import slide
from deitctl.errors import ConfigError
from deitctl.models.model_config import IMAGENET_MEAN

FILL = (round(255 * IMAGENET_MEAN[0]), round(255 * IMAGENET_MEAN[1]), round(255 * IMAGENET_MEAN[2]))
"""Color of what a moved image leaves bare."""
STRONGEST = 10
"""Magnitude of the strongest operations, unless `mmax` says otherwise."""
MOST_LAYERS = 100
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
INCREASING = tuple(
    f"{name}Increasing"
    if name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    else name
    for name in PLAIN
)
"""`inc1`: the operations that get stronger with the magnitude."""
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
"""`tweights`: how often each is drawn, without replacement."""


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations drawn from `names`, each applied with probability `prob` at about `magnitude`."""

    names: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """Probability of each name; then no name comes twice in an image."""
    magnitude: float = STRONGEST
    layers: int = 2
    prob: float = 0.5
    noise: float = 0.0
    """Standard deviation of the magnitude; infinite: uniform from 0 to `magnitude`."""
    highest: float = STRONGEST

    def __call__(self, image: Image.Image, draw: np.random.Generator) -> Image.Image:
        """Augment an RGB image; what is drawn does not depend on the image."""
        chosen = draw.choice(
            len(self.names), self.layers, replace=self.weights is None, p=self.weights
        )
        for which in chosen:
            applied, side = draw.random() < self.prob, 1 if draw.random() < 0.5 else -1
            magnitude = self.magnitude
            if self.noise == float("inf"):
                magnitude = draw.uniform(0, magnitude)
            elif self.noise:
                magnitude = draw.normal(magnitude, self.noise)
            if applied:
                image = apply(
                    self.names[which], image, max(0.0, min(magnitude, self.highest)), side
                )
        return image


@lru_cache(maxsize=4)
def rand_augment(spec: str) -> RandAugment:
    """Read timm's string: `rand`, then any of mM, nLAYERS, pPROB, mstdS, mmaxM, inc0|1, tweights, joined by dashes.

    Raises:
        ConfigError: it is none, or has a part that is not one of these.
    """
    kind, *parts = spec.split("-")
    found: dict[str, float] = {}
    weighted = "tweights" in parts
    try:
        for part in parts:
            if part == "tweights":
                continue
            if (match := re.fullmatch(r"(mstd|mmax|inc|m|n|p)([0-9].*)", part)) is None:
                raise ValueError
            key, value = match.groups()
            found[key] = float(value) if key in ("mstd", "p") else int(value)
        layers, noise = int(found.get("n", 2)), found.get("mstd", 0.0)
        if kind != "rand" or layers > (len(WEIGHTED) if weighted else MOST_LAYERS):
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"rand_augment = {spec!r} is not understood.", "Example: rand-m9-mstd0.5-inc1."
        ) from error
    total = sum(WEIGHTED.values())
    return RandAugment(
        tuple(WEIGHTED) if weighted else INCREASING if found.get("inc") else PLAIN,
        tuple(w / total for w in WEIGHTED.values()) if weighted else None,
        found.get("m", STRONGEST),
        layers,
        found.get("p", 0.5),
        float("inf") if noise > 100 else noise,
        found.get("mmax", 0) or STRONGEST,
    )


def apply(name: str, image: Image.Image, magnitude: float, side: int) -> Image.Image:
    """Apply an operation to an RGB image; `side`, 1 or -1, is where those go that can go two ways."""
    argument = LEVELS[name](magnitude / 10, side)
    return OPERATIONS[name.removesuffix("Increasing")](image, argument)


def solarize_add(image: Image.Image, more: int) -> Image.Image:
    """Add to the values below 128."""
    return image.point(
        [min(255, value + more) if value < 128 else value for value in range(256)] * 3
    )


def shear(image: Image.Image, factor: float, *, rows: bool = False) -> Image.Image:
    """Move columns, or rows, the further the more they are from the left, or the top."""
    return slide(
        image, factor * np.arange(0.5, image.height if rows else image.width), FILL, rows=rows
    )


def translate(image: Image.Image, share: float, *, rows: bool = False) -> Image.Image:
    """Move an image up, or to the left, by a share of its side."""
    along, across = (image.width, image.height) if rows else (image.height, image.width)
    return slide(image, np.full(across, share * along), FILL, rows=rows)


ENHANCED = ("Color", "Contrast", "Brightness", "Sharpness")
OPERATIONS: dict[str, Callable[[Image.Image, Any], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, degrees: image.rotate(
        degrees, Image.Resampling.BICUBIC, fillcolor=FILL
    ),
    "Posterize": lambda image, bits: image if bits >= 8 else ImageOps.posterize(image, bits),
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": partial(shear, rows=True),
    "ShearY": shear,
    "TranslateXRel": partial(translate, rows=True),
    "TranslateYRel": translate,
}
"""What each does to an RGB image, with an argument."""
LEVELS: dict[str, Callable[[float, int], Any]] = {
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), lambda strength, side: None),
    **dict.fromkeys(ENHANCED, lambda strength, side: strength * 1.8 + 0.1),
    **{
        f"{name}Increasing": lambda strength, side: max(0.1, 1.0 + side * (strength * 0.9))
        for name in ENHANCED
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
"""That argument, of the strength (the magnitude in tenths) and the side."""
