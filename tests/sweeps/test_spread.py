"""Means, spreads and paired differences, by hand and by scipy."""

from __future__ import annotations

import pytest
from scipy.stats import ttest_rel

from deitctl.sweeps.spread import PairedDifference, Spread


def test_spread_by_hand() -> None:
    assert Spread.of([1.0, 3.0]) == Spread(2.0, 2.0**0.5, 2)
    assert Spread.of([5.0]) == Spread(5.0, None, 1)
    assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.41"
    assert str(Spread.of([5.0])) == "5.00"


def test_a_paired_difference_is_that_of_scipys_paired_t_test() -> None:
    scores, reference = [71.0, 74.5, 72.0, 80.0], [70.0, 73.0, 73.0, 75.0]
    paired = PairedDifference.of(dict(enumerate(scores)), dict(enumerate(reference)))
    test = ttest_rel(scores, reference)
    interval = test.confidence_interval(0.95)
    assert paired is not None
    assert paired.interval is not None
    assert paired.mean / paired.standard_error == pytest.approx(test.statistic, abs=1e-12)
    assert (paired.interval.lower, paired.interval.upper) == pytest.approx(
        (interval.low, interval.high), abs=1e-12
    )


def test_two_differences_or_equal_ones_have_no_interval() -> None:
    zero = {0: 0.0, 1: 0.0, 2: 0.0}
    two = PairedDifference.of({0: 1.0, 1: 3.0}, zero)
    assert two == PairedDifference(2.0, 1.0, None, 2)
    alike = PairedDifference.of({0: 5.56, 1: 75.56, 2: 55.56}, {0: 0.0, 1: 70.0, 2: 50.0})
    assert alike is not None
    assert (alike.interval, alike.n) == (None, 3)


def test_only_seeds_that_both_have_are_paired() -> None:
    paired = PairedDifference.of({0: 5.0, 2: 9.0}, {0: 4.0, 1: 100.0})
    assert paired == PairedDifference(1.0, None, None, 1)
    assert PairedDifference.of({0: 5.0}, {1: 4.0}) is None
