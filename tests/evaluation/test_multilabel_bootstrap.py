"""Resampled mAP is scikit-learn's of weighted images; intervals and comparisons follow from it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from deitctl.evaluation.bootstrap import draw_resamples
from deitctl.evaluation.multilabel import average_precision, mean_average_precision, rank
from deitctl.evaluation.multilabel_bootstrap import (
    bootstrap_multilabel,
    choose_num_resamples,
    compare_multilabel,
    resample_map,
)


def draw(seed=0, count=60, noise=1.0, decimals=1):
    draw = np.random.default_rng(seed)
    labels = np.random.default_rng(9).random((count, 4)) < [0.5, 0.3, 0.1, 0]
    return labels, np.round(labels + draw.normal(size=(count, 4)) * noise, decimals)


def as_result(name, labels, scores, preds=None):
    """Return what a comparison reads of a result."""
    preds = scores > 0.5 if preds is None else preds
    return SimpleNamespace(
        name=name,
        labels=labels,
        preds=preds,
        scores=scores,
        losses=np.ones(len(labels)),
        correct=(preds == labels).all(1),
        map=100 * mean_average_precision(average_precision(rank(labels, scores))),
    )


def test_each_resample_has_scikit_learns_weighted_map():
    labels, scores = draw()
    weights = next(draw_resamples(len(labels)))[:20]
    values = resample_map(labels, scores, weights)
    for row, value in zip(weights, values, strict=True):
        used = [k for k in range(4) if row[labels[:, k]].any()]
        expected = [
            average_precision_score(labels[:, k], scores[:, k], sample_weight=row) for k in used
        ]
        assert value == pytest.approx(np.mean(expected), abs=1e-12)


def test_intervals_hold_their_values():
    labels, scores = draw()
    result = as_result("a", labels, scores)
    intervals = bootstrap_multilabel(result)
    assert intervals["map"].lower < result.map < intervals["map"].upper
    assert (intervals["loss"].lower, intervals["loss"].upper) == (1.0, 1.0)
    assert 0 <= intervals["macro_f1"].lower < intervals["macro_f1"].upper <= 100


def test_a_clearly_better_model_is_found_on_the_same_images():
    good, bad = (as_result(str(noise), *draw(1, noise=noise)) for noise in (0.2, 3.0))
    comparison = compare_multilabel(good, bad)
    assert comparison.map_difference == pytest.approx(good.map - bad.map)
    assert 0 < comparison.interval.lower < comparison.map_difference < comparison.interval.upper
    assert comparison.p_value == 1 / 2000
    assert comparison.only_a_correct > comparison.only_b_correct


def test_a_model_does_not_differ_from_itself():
    result = as_result("a", *draw())
    comparison = compare_multilabel(result, result)
    assert (comparison.map_difference, comparison.p_value) == (0.0, 1.0)


def test_more_images_and_classes_are_resampled_less_often():
    assert choose_num_resamples(1_000, 80) == 2_000
    assert choose_num_resamples(5_000, 80) == 1_250
    assert choose_num_resamples(40_000, 600) == 100
