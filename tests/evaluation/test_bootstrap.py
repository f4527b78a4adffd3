"""Intervals hold what they say, and two models are compared image by image."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from deitctl.evaluation.bootstrap import bootstrap_intervals, compare_pair
from deitctl.evaluation.intervals import Interval


def test_the_interval_is_scipys_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=400)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    interval = bootstrap_intervals({"loss": values})["loss"]
    assert interval.lower == pytest.approx(theirs.low, rel=0.01)
    assert interval.upper == pytest.approx(theirs.high, rel=0.01)


def test_of_hits_it_is_near_the_binomial_interval():
    hits = np.arange(1000) < 700
    interval = bootstrap_intervals({"top1": hits})["top1"]
    exact = stats.binomtest(700, 1000).proportion_ci(0.95)
    assert (interval.lower, interval.upper) == (
        pytest.approx(exact.low, abs=0.004),
        pytest.approx(exact.high, abs=0.004),
    )


def test_it_covers_the_truth_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for trial in range(200):
        interval = bootstrap_intervals({"x": draw.random(120) < 0.8}, seed=trial)["x"]
        covered += interval.lower <= 0.8 <= interval.upper
    assert 180 <= covered <= 199  # of 200, at 95 %: 190


def test_columns_are_resampled_together_and_the_same_seed_gives_the_same():
    values = np.random.default_rng(2).random(50)
    intervals = bootstrap_intervals({"a": values, "b": 3 * values + 1}, seed=5)
    assert astuple(intervals["b"]) == pytest.approx([3 * x + 1 for x in astuple(intervals["a"])])
    assert intervals == bootstrap_intervals({"a": values, "b": 3 * values + 1}, seed=5)
    assert intervals != bootstrap_intervals({"a": values, "b": 3 * values + 1}, seed=6)


def test_a_loss_of_nothing_has_no_interval_of_hits():
    assert bootstrap_intervals({"loss": np.zeros(10)})["loss"] == Interval(0.0, 0.0)


def test_memory_is_bounded_and_pieces_give_the_same_kind_of_interval(monkeypatch):
    hits = np.random.default_rng(0).random(200_000) < 0.5  # one resample at a time
    import deitctl.evaluation.bootstrap as module

    monkeypatch.setattr(module, "RESAMPLES", 12)
    monkeypatch.setattr(module, "MAX_COUNTS", 2**18)
    interval = bootstrap_intervals({"x": hits})["x"]
    assert 0.495 < interval.lower < interval.upper < 0.505


def test_a_difference_by_hand():
    """Eight images: both right on three, A alone on four, B alone on one."""
    a = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    b = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    comparison = compare_pair("A", "B", a, b)
    assert (comparison.only_a_correct, comparison.only_b_correct, comparison.num_images) == (
        4,
        1,
        8,
    )
    assert comparison.top1_difference == pytest.approx(100 * 3 / 8)
    # McNemar, exact: P(at least 4 or at most 1 of 5 coins) = 2 (1 + 5) / 32
    assert comparison.p_value == pytest.approx(12 / 32)
    assert comparison.interval.lower < comparison.top1_difference < comparison.interval.upper
    turned = compare_pair("B", "A", b, a)
    assert (turned.top1_difference, turned.p_value) == (
        -comparison.top1_difference,
        comparison.p_value,
    )


@pytest.mark.parametrize(("a", "b", "sign"), [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, -1)])
def test_equal_outcomes_on_ten_images_are_no_certainty(a, b, sign):
    """None of ten images is of another kind: at 95 % up to 30.85 % of all could be (Clopper and Pearson)."""
    comparison = compare_pair("A", "B", np.full(10, bool(a)), np.full(10, bool(b)))
    rare = 100 * stats.binomtest(0, 10).proportion_ci(0.95, method="exact").high
    assert comparison.top1_difference == 100 * sign
    assert astuple(comparison.interval) == pytest.approx(
        (max(-100, 100 * sign - rare), min(100, 100 * sign + rare))
    )
    assert (comparison.p_value == 1.0) == (sign == 0)


def test_a_paired_comparison_finds_a_difference_that_two_intervals_hide():
    """Two models that fail on the same hard images, one of them on ten more of a thousand."""
    hard = np.arange(1000) % 3 == 0
    a, b = ~hard, ~hard & (np.arange(1000) % 100 != 1)
    comparison = compare_pair("A", "B", a, b)
    apart = bootstrap_intervals({"a": a, "b": b})
    assert apart["b"].upper > apart["a"].lower  # the two intervals overlap
    assert comparison.interval.lower > 0
    assert comparison.p_value < 0.05
