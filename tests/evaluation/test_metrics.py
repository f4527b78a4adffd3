"""Measures of answers against hand-computed cases."""

from __future__ import annotations

import pytest
import torch

from deitctl.evaluation.metrics import agreement, expected_calibration_error, topk_correct

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


def test_perfectly_calibrated_answers_have_no_error():
    confidence = torch.full((10,), 0.7)
    correct = torch.tensor([True] * 7 + [False] * 3)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0, abs=1e-6)


def test_calibration_of_nothing_is_zero():
    assert expected_calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool)) == 0.0


def test_zero_and_one_are_in_a_bin():
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0.0


def test_agreement_counts_equal_decisions():
    other = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert agreement(SCORES, other) == pytest.approx(2 / 3)
    assert agreement(SCORES[:0], other[:0]) == 0.0
