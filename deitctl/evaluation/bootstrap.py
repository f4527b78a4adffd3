"""How far a figure could be another on other images: bootstrap intervals (Efron 1979), and a paired test of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 2**22
"""Counts in memory at a time."""
Interval = tuple[float, float]


def bootstrap(columns: Mapping[str, NDArray[Any]], seed: int = 0) -> dict[str, Interval]:
    """Return the interval that holds the mean of each column in 95 of 100 resamples of the images.

    All columns are of the same images and are resampled together. Where all are right, or all wrong, a resample knows
    nothing else, and the exact binomial bound (Clopper and Pearson 1934) takes its place.

    Args:
        columns: for each figure its value of every image, [N]; bool for hits.
        seed: the same seed, the same interval.
    """
    values = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], axis=1)
    count, draw = len(values), np.random.default_rng(seed)
    means, rows = [], max(1, AT_ONCE // count)
    for start in range(0, RESAMPLES, rows):
        drawn = min(rows, RESAMPLES - start)
        weights = np.stack(
            [np.bincount(draw.integers(count, size=count), minlength=count) for _ in range(drawn)]
        )
        means.append(weights @ values / count)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    found = {name: (float(low[n]), float(high[n])) for n, name in enumerate(columns)}
    for n, (name, column) in enumerate(columns.items()):
        if np.asarray(column).dtype == np.bool_ and values[:, n].min() == values[:, n].max():
            found[name] = _binomial(int(values[:, n].sum()), count)
    return found


def _binomial(hits: int, count: int) -> Interval:
    from scipy.stats import binomtest

    low, high = binomtest(hits, count).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two models on the same images; `difference` is A minus B in points of top-1."""

    a: str
    b: str
    num_images: int
    difference: float
    interval: Interval
    """95 %, by resampling images, so that what both find hard counts for neither."""
    only_a: int
    """Images that A alone has right."""
    only_b: int
    p_value: float
    """Of McNemar's exact test (1947): how likely so uneven a split of `only_a` and `only_b` is between equal models."""
    among_classes: bool
    """Whether answers were taken among the data's classes alone."""


def compare(
    a: str,
    b: str,
    right_a: NDArray[np.bool_],
    right_b: NDArray[np.bool_],
    *,
    among_classes: bool = False,
    seed: int = 0,
) -> Difference:
    """Compare two models by which images each has right, [N] each, in the same order."""
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    gain = right_a.astype(np.float64) - right_b
    low, high = bootstrap({"gain": gain}, seed)["gain"]
    if (
        gain.min() == gain.max()
    ):  # resamples know no other: how rare could the other kinds be, as far as is known?
        rare = _binomial(0, len(gain))[1]
        low, high = max(-1.0, gain[0] - rare), min(1.0, gain[0] + rare)
    return Difference(
        a=a,
        b=b,
        num_images=len(gain),
        difference=100 * float(gain.mean()),
        interval=(100 * low, 100 * high),
        only_a=only_a,
        only_b=only_b,
        p_value=float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        among_classes=among_classes,
    )
