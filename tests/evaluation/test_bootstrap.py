"""Intervals hold what they say, and two models are compared image by image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from deitctl.evaluation.bootstrap import bootstrap, compare


def test_the_interval_is_scipys_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=400)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    low, high = bootstrap({"loss": values})["loss"]
    assert low == pytest.approx(theirs.low, rel=0.01)
    assert high == pytest.approx(theirs.high, rel=0.01)


def test_of_hits_it_is_near_the_binomial_interval():
    hits = np.arange(1000) < 700
    low, high = bootstrap({"top1": hits})["top1"]
    exact = stats.binomtest(700, 1000).proportion_ci(0.95)
    assert (low, high) == (
        pytest.approx(exact.low, abs=0.004),
        pytest.approx(exact.high, abs=0.004),
    )


def test_it_covers_the_truth_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for trial in range(200):
        low, high = bootstrap({"x": draw.random(120) < 0.8}, seed=trial)["x"]
        covered += low <= 0.8 <= high
    assert 180 <= covered <= 199  # of 200, at 95 %: 190


@pytest.mark.parametrize(("all_right", "expected"), [(True, (0.6915, 1.0)), (False, (0.0, 0.3085))])
def test_ten_of_ten_is_no_certainty(all_right, expected):
    assert bootstrap({"x": np.full(10, all_right)})["x"] == pytest.approx(expected, abs=1e-4)


def test_columns_are_resampled_together_and_the_same_seed_gives_the_same():
    values = np.random.default_rng(2).random(50)
    found = bootstrap({"a": values, "b": 3 * values + 1}, seed=5)
    assert found["b"] == pytest.approx(tuple(3 * x + 1 for x in found["a"]))
    assert found == bootstrap({"a": values, "b": 3 * values + 1}, seed=5)
    assert found != bootstrap({"a": values, "b": 3 * values + 1}, seed=6)


def test_a_loss_of_nothing_has_no_interval_of_hits():
    assert bootstrap({"loss": np.zeros(10)})["loss"] == (0.0, 0.0)


def test_memory_is_bounded_and_pieces_give_the_same_kind_of_interval():
    hits = np.random.default_rng(0).random(3_000_000) < 0.5  # one resample at a time
    import deitctl.evaluation.bootstrap as module

    before, module.RESAMPLES = module.RESAMPLES, 12
    try:
        low, high = bootstrap({"x": hits})["x"]
    finally:
        module.RESAMPLES = before
    assert 0.498 < low < high < 0.502


def test_a_difference_by_hand():
    """Eight images: both right on three, A alone on four, B alone on one."""
    a = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    b = np.array([1, 1, 1, 0, 0, 0, 0, 1], bool)
    found = compare("A", "B", a, b)
    assert (found.only_a, found.only_b, found.num_images) == (4, 1, 8)
    assert found.difference == pytest.approx(100 * 3 / 8)
    # McNemar, exact: P(at least 4 or at most 1 of 5 coins) = 2 (1 + 5) / 32
    assert found.p_value == pytest.approx(12 / 32)
    assert found.interval[0] < found.difference < found.interval[1]
    turned = compare("B", "A", b, a)
    assert (turned.difference, turned.p_value) == (-found.difference, found.p_value)


@pytest.mark.parametrize(("a", "b", "sign"), [(1, 1, 0), (0, 0, 0), (1, 0, 1), (0, 1, -1)])
def test_alike_on_ten_images_is_no_certainty(a, b, sign):
    """None of ten images is of another kind: at 95 % up to 30.85 % of all could be (Clopper and Pearson)."""
    found = compare("A", "B", np.full(10, bool(a)), np.full(10, bool(b)))
    rare = 100 * stats.binomtest(0, 10).proportion_ci(0.95, method="exact").high
    assert found.difference == 100 * sign
    assert found.interval == pytest.approx(
        (max(-100, 100 * sign - rare), min(100, 100 * sign + rare))
    )
    assert (found.p_value == 1.0) == (sign == 0)


def test_pairing_sees_what_two_intervals_do_not():
    """Two models that fail on the same hard images, one of them on ten more of a thousand."""
    hard = np.arange(1000) % 3 == 0
    a, b = ~hard, ~hard & (np.arange(1000) % 100 != 1)
    found = compare("A", "B", a, b)
    apart = bootstrap({"a": a, "b": b})
    assert apart["b"][1] > apart["a"][0]  # the two intervals overlap
    assert found.interval[0] > 0
    assert found.p_value < 0.05
