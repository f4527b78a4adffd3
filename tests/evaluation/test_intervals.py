"""The interval of an accuracy is Wilson's, by hand and by scipy."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from scipy import stats

from deitctl.evaluation.intervals import Interval, percent_interval, wilson_interval


def test_eight_of_ten_by_hand():
    """n = 10, p = 0.8, z^2 = 3.8415: (0.8 + 0.19207 -+ 1.95996 sqrt(0.016 + 0.0096036)) / 1.38415."""
    assert astuple(wilson_interval(8, 10)) == pytest.approx((0.490162, 0.943318), abs=1e-6)


@pytest.mark.parametrize(("hits", "expected"), [(10, (0.722467, 1.0)), (0, (0.0, 0.277533))])
def test_ten_of_ten_and_none_of_ten_are_no_certainty(hits, expected):
    """At p = 1 the lower end is n / (n + z^2) = 10 / 13.8415, at p = 0 the upper z^2 / (n + z^2)."""
    assert astuple(wilson_interval(hits, 10)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (32, 70), (69, 70), (40_599, 50_000)])
def test_it_is_scipys(hits, count):
    theirs = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert astuple(wilson_interval(hits, count)) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


@pytest.mark.parametrize(("probability", "least"), [(0.8, 0.93), (0.97, 0.93)])
def test_it_covers_the_truth_as_often_as_it_says_with_seventy_images(probability, least):
    """Summed over all outcomes of 70 images, not drawn."""
    covered = 0.0
    for hits in range(71):
        interval = wilson_interval(hits, 70)
        if interval.lower <= probability <= interval.upper:
            covered += stats.binom.pmf(hits, 70, probability)
    assert least < covered < 0.98


def test_of_images_it_is_in_percent():
    assert percent_interval(torch.tensor([True] * 8 + [False] * 2)) == wilson_interval(8, 10).scale(
        100
    )
    assert Interval(1.0, 2.5).format(".1f") == "1.0 to 2.5"
