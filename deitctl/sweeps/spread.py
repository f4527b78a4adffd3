"""Mean and spread over seeds, and the difference of two trials seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deitctl.evaluation.intervals import Interval

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    mean: float
    """Mean over the seeds."""
    std: float | None
    """Sample standard deviation; null for one seed."""
    n: int
    """Seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


@dataclass(frozen=True)
class PairedDifference:
    """Scores of a trial minus those of the first trial, seed by seed."""

    mean: float
    """Mean of the differences."""
    standard_error: float | None
    """Their standard deviation divided by the root of their number; null for one seed."""
    interval: Interval | None
    """95 % interval of the mean by Student's t distribution; null for one seed."""
    n: int
    """Seeds that both have."""

    @classmethod
    def of(
        cls, scores: Mapping[int, float], reference: Mapping[int, float]
    ) -> PairedDifference | None:
        """Compare scores by seed; None without a common seed."""
        differences = [scores[seed] - reference[seed] for seed in scores if seed in reference]
        n = len(differences)
        if not n:
            return None
        mean = statistics.fmean(differences)
        if n == 1:
            return cls(mean, None, None, n)
        from scipy.stats import t

        error = statistics.stdev(differences) / math.sqrt(n)
        half_width = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
        return cls(mean, error, Interval(mean - half_width, mean + half_width), n)
