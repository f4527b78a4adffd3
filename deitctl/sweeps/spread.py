"""Mean and spread over the runs of a trial, and the difference of two trials run by run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from deitctl.evaluation.intervals import Interval

LEVEL = 0.95
MIN_RUNS = 3
"""Differences that an interval needs. Of two its ends are 12.7 standard errors away, as often a few points as hundreds,
and of any number that are all alike it would have no width: neither says anything."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over runs: the seeds, the folds, or the folds of each seed."""

    mean: float
    """Mean over the runs."""
    std: float | None
    """Sample standard deviation; null for one run."""
    n: int
    """Runs."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


@dataclass(frozen=True)
class PairedDifference:
    """Scores of a trial minus those of the first trial, by seed and fold."""

    mean: float
    """Mean of the differences."""
    standard_error: float | None
    """Their standard deviation divided by the root of their number; null for one."""
    interval: Interval | None
    """95 % interval of the mean by Student's t distribution; null for fewer than three differences, and
    for those that are all alike."""
    n: int
    """Seeds and folds that both have."""

    @classmethod
    def of(
        cls, scores: Mapping[Hashable, float], reference: Mapping[Hashable, float]
    ) -> PairedDifference | None:
        """Compare scores by seed, or by seed and fold; None without a common one."""
        differences = [scores[key] - reference[key] for key in scores if key in reference]
        n = len(differences)
        if not n:
            return None
        mean = statistics.fmean(differences)
        if n == 1:
            return cls(mean, None, None, n)
        error = statistics.stdev(differences) / math.sqrt(n)
        # of scores with some digits behind the point, differences that are alike leave 1e-14
        if n < MIN_RUNS or error < 1e-9:
            return cls(mean, error, None, n)
        from scipy.stats import t

        half_width = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
        return cls(mean, error, Interval(mean - half_width, mean + half_width), n)
