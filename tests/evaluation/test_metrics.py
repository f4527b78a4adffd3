"""Metrics against hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, recall_score

from deitctl.evaluation.metrics import (
    count_confusions,
    expected_calibration_error,
    score_classes,
    score_evenly,
    topk_correct,
)

SCORES = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])


def test_topk_by_hand():
    labels = torch.tensor([1, 2, 0])
    assert topk_correct(SCORES, labels, 1).tolist() == [True, False, False]
    assert topk_correct(SCORES, labels, 2).tolist() == [True, True, False]


def test_topk_beyond_the_classes_is_always_right():
    assert topk_correct(SCORES, torch.tensor([0, 1, 2]), 5).all()


def test_calibration_error_by_hand():
    """Two bins: (0, .5] holds .4 (right), (.5, 1] holds .6 (right), .8 (wrong), 1.0 (right).

    Gaps: |1 - .4| = .6 over one image, |2/3 - .8| = .1333 over three: (.6 + .4) / 4 = .25.
    """
    confidence = torch.tensor([0.4, 0.6, 0.8, 1.0])
    correct = torch.tensor([True, True, False, True])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.25)


def test_a_confidence_on_a_boundary_belongs_to_the_lower_bin():
    """0.5 is in (0, .5]: right there, its gap of .5 stands alone beside the other bin's gap of .4."""
    error = expected_calibration_error(
        torch.tensor([0.5, 0.6]), torch.tensor([True, False]), bins=2
    )
    assert error == pytest.approx((0.5 + 0.6) / 2)


def test_perfectly_calibrated_predictions_have_no_error():
    confidence = torch.full((10,), 0.7)
    correct = torch.tensor([True] * 7 + [False] * 3)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0, abs=1e-6)


def test_calibration_of_nothing_is_zero():
    assert expected_calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool)) == 0.0


def test_zero_and_one_are_in_a_bin():
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0.0


LABELS = np.array([0, 0, 0, 1, 1, 3])
PREDS = np.array([0, 0, 1, 1, 4, 0])  # 4: none of the four classes


def test_recall_precision_and_f1_by_hand():
    scores = score_classes(LABELS, PREDS, ["zero", "one", "two", "three"], ["0", "1", "2", "3"])
    assert list(scores) == ["zero", "one", "three"]  # two has no images
    zero, one, three = scores.values()
    assert (zero.label, zero.num_images) == (0, 3)
    assert (zero.recall, zero.precision, zero.f1) == pytest.approx((200 / 3, 200 / 3, 200 / 3))
    assert (one.label, one.num_images, one.recall, one.precision) == (1, 2, 50.0, 50.0)
    assert (three.label, three.num_images) == (3, 1)
    assert (three.recall, three.precision, three.f1) == (0.0, 0.0, 0.0)


def test_the_most_frequent_confusion_comes_first():
    labels, preds = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 0, 1, 3])
    assert count_confusions(labels, preds) == [(0, 1, 2), (1, 0, 1), (2, 1, 1), (2, 3, 1)]
    assert count_confusions(labels, preds, limit=1) == [(0, 1, 2)]
    assert count_confusions(labels, labels) == []


def test_balanced_accuracy_and_macro_f1_are_scikit_learns():
    """Of uneven classes; class 3 has no image, class 4 is a prediction that the data does not have."""
    draw = np.random.default_rng(0)
    labels = draw.choice(3, 200, p=[0.8, 0.15, 0.05])
    preds = np.where(draw.random(200) < 0.6, labels, draw.choice(5, 200))
    weights = draw.integers(0, 4, 200).astype(float)
    for counts in (None, weights):
        balanced, macro = score_evenly(labels, preds, 4, counts)
        expected = recall_score(
            labels, preds, average="macro", labels=range(3), sample_weight=counts
        )
        assert balanced == pytest.approx(expected, abs=1e-12)
        expected = f1_score(labels, preds, average="macro", labels=range(3), sample_weight=counts)
        assert macro == pytest.approx(expected, abs=1e-12)
