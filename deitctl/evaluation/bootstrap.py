"""Bootstrap intervals of means (Efron 1979), and paired comparisons of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.metrics import Classes, score_evenly

LEVEL = 0.95
RESAMPLES = 2000
MAX_COUNTS = 2**22  # resampled counts in memory at a time: 32 MiB


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Model A against model B on the same images."""

    a: str
    """Name of A's result."""
    b: str
    """Name of B's result."""
    num_images: int
    """Images that both were evaluated on."""
    top1_difference: float
    """Top-1 of A minus top-1 of B, in points."""
    interval: Interval
    """95 % interval of the difference, by resampling images for both models together."""
    only_a_correct: int
    """Images that only A predicts correctly."""
    only_b_correct: int
    """Images that only B predicts correctly."""
    p_value: float
    """Two-sided p-value of McNemar's exact test (1947)."""
    among_classes: bool
    """Whether predictions were taken among the data's classes, as the models' classes differ."""


def bootstrap_intervals(columns: Mapping[str, NDArray[Any]], seed: int = 0) -> dict[str, Interval]:
    """Return the 95 % bootstrap interval of each column's mean; columns are resampled together.

    Args:
        columns: values of each image, [N] each.
        seed: of the resampling.
    """
    values = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], axis=1)
    means = [weights @ values / len(values) for weights in draw_resamples(len(values), seed)]
    return name_intervals(list(columns), np.concatenate(means))


def draw_resamples(
    count: int, seed: int = 0, resamples: int = RESAMPLES
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn by some of the resamples, [R,N], until there are all.

    Args:
        count: N images.
        seed: of the resampling.
        resamples: how many in all.
    """
    rng, rows = np.random.default_rng(seed), max(1, MAX_COUNTS // count)
    for start in range(0, resamples, rows):
        yield np.stack(
            [
                np.bincount(rng.integers(count, size=count), minlength=count)
                for _ in range(min(rows, resamples - start))
            ]
        )


def name_intervals(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, Interval]:
    """Return the 95 % interval of each of some statistics from their values in the resamples, [R,S]."""
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(values, [tail, 1 - tail], axis=0)
    return {name: Interval(float(lower[n]), float(upper[n])) for n, name in enumerate(names)}


def bootstrap_evenly(
    labels: Classes, preds: Classes, num_classes: int, seed: int = 0
) -> tuple[Interval, Interval]:
    """Return the 95 % bootstrap intervals of balanced accuracy and macro F1, in points.

    Args: see `score_evenly`; `seed` is that of the resampling.
    """
    scores = [
        score_evenly(labels, preds, num_classes, row.astype(np.float64))
        for weights in draw_resamples(len(labels), seed)
        for row in weights
    ]
    intervals = name_intervals(["balanced", "f1"], np.array(scores))
    return intervals["balanced"].scale(100), intervals["f1"].scale(100)


def compare_pair(
    a: str,
    b: str,
    correct_a: NDArray[np.bool_],
    correct_b: NDArray[np.bool_],
    *,
    among_classes: bool = False,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models by which images each predicts correctly, [N] each, in the same order."""
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    gain = correct_a.astype(np.float64) - correct_b
    interval = bootstrap_intervals({"gain": gain}, seed)["gain"]
    if gain.min() == gain.max():
        # Every resample has the same mean, which does not mean certainty: outcomes that did not
        # occur may have a probability up to the exact binomial bound (Clopper and Pearson 1934).
        exact = binomtest(0, len(gain)).proportion_ci(LEVEL, method="exact")
        max_missing = float(exact.high)
        interval = Interval(max(-1.0, gain[0] - max_missing), min(1.0, gain[0] + max_missing))
    return PairedComparison(
        a=a,
        b=b,
        num_images=len(gain),
        top1_difference=100 * float(gain.mean()),
        interval=interval.scale(100),
        only_a_correct=only_a,
        only_b_correct=only_b,
        p_value=float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        among_classes=among_classes,
    )
