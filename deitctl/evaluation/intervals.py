"""The 95 % interval of a proportion: of how many images a model is right on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution: 2.5 % lie above it, and 2.5 % below its negative."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of the value it belongs to."""

    lower: float
    """Lower end."""
    upper: float
    """Upper end."""

    def scale(self, factor: float) -> Interval:
        """Return the interval of the value times a positive factor."""
        return Interval(factor * self.lower, factor * self.upper)

    def format(self, spec: str) -> str:
        """Return `lower to upper`, each formatted by `spec`."""
        return f"{self.lower:{spec}} to {self.upper:{spec}}"


def wilson_interval(hits: int, count: int) -> Interval:
    """Return the score interval of a proportion, 0..1 (Wilson 1927).

    With p = hits / count it is (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    It holds what it says for few images and near 0 and 1 too, where that of the normal distribution
    does not (Brown, Cai and DasGupta 2001): ten right of ten are no certainty.

    Args:
        hits: images that are right.
        count: images, 1 or more.
    """
    p, z2 = hits / count, Z * Z
    center = p + z2 / (2 * count)
    half_width = Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    scale = 1 + z2 / count
    # At the ends exact: rounding leaves 1e-16.
    lower = (center - half_width) / scale if hits else 0.0
    upper = (center + half_width) / scale if hits < count else 1.0
    return Interval(lower, upper)


def percent_interval(correct: Tensor) -> Interval:
    """Return the Wilson interval of the percentage of images [B] that are true."""
    return wilson_interval(int(correct.sum()), len(correct)).scale(100)
