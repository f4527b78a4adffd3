"""Metrics of several labels an image against scikit-learn's and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from deitctl.evaluation.multilabel import (
    average_precision,
    classwise_calibration_error,
    count_classes,
    cross_fit_predictions,
    fit_pooled_threshold,
    fit_thresholds,
    fit_thresholds_by_class,
    mean_average_precision,
    micro_average_precision,
    rank,
    sample_f1,
)
from deitctl.models.tasks import DEFAULT_THRESHOLD, choose_labels


def draw(seed, count=200, classes=7, *, ties=False):
    """Draw labels, of which the last class has none, and probabilities that know something."""
    draw = np.random.default_rng(seed)
    labels = draw.random((count, classes)) < np.linspace(0.6, 0, classes)
    probs = 1 / (1 + np.exp(-draw.normal(size=(count, classes)) - labels))
    return labels, (np.round(probs, 1) if ties else probs).astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns(ties):
    labels, probs = draw(0, ties=ties)
    ap = average_precision(rank(labels, probs))
    expected = [average_precision_score(labels[:, k], probs[:, k]) for k in range(6)]
    np.testing.assert_allclose(ap[:6], expected, rtol=0, atol=1e-12)
    assert np.isnan(ap[6])
    assert mean_average_precision(ap) == pytest.approx(np.mean(expected), abs=1e-12)
    micro = average_precision_score(labels, probs, average="micro")
    assert micro_average_precision(labels, probs) == pytest.approx(micro, abs=1e-12)


def test_without_any_label_there_is_no_average_precision():
    ap = average_precision(rank(np.zeros((3, 2), bool), np.ones((3, 2))))
    assert np.isnan(mean_average_precision(ap))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_f1_precision_and_recall_are_scikit_learns(threshold):
    labels, probs = draw(1)
    preds = probs >= threshold
    counts = count_classes(labels, preds)
    options = {"average": None, "zero_division": 0}
    for ours, theirs in (
        (counts.f1, f1_score(labels, preds, **options)),
        (counts.precision, precision_score(labels, preds, **options)),
        (counts.recall, recall_score(labels, preds, **options)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    macro = f1_score(labels, preds, labels=range(6), average="macro", zero_division=0)
    assert counts.macro_f1 == pytest.approx(macro, abs=1e-12)
    micro = f1_score(labels, preds, average="micro")
    assert counts.micro_f1 == pytest.approx(micro, abs=1e-12)
    samples = f1_score(labels, preds, average="samples", zero_division=1)
    assert sample_f1(labels, preds).mean() == pytest.approx(samples, abs=1e-12)


def test_predicting_nothing_of_an_image_without_labels_is_right():
    labels, preds = (
        np.array([[0, 0], [0, 0], [1, 0]], bool),
        np.array([[0, 0], [1, 0], [0, 0]], bool),
    )
    assert sample_f1(labels, preds).tolist() == [1, 0, 0]


@pytest.mark.parametrize("ties", [False, True])
def test_no_other_threshold_has_a_higher_f1(ties):
    labels, probs = draw(2, ties=ties)
    thresholds = fit_thresholds(rank(labels, probs), 0.3)
    fitted = count_classes(labels, choose_labels(probs, thresholds)).f1
    for k in range(6):
        others = [f1_score(labels[:, k], probs[:, k] >= t) for t in np.unique(probs[:, k])[::5]]
        assert fitted[k] >= max(others) - 1e-12
    assert thresholds[6] == 0.3  # no image has the class


def test_a_threshold_lies_midway_and_the_highest_of_equals_is_taken():
    labels = np.array([[1], [0], [1], [0]], bool)
    # Predicting one image: 2 * 1 / (1 + 2); three: 2 * 2 / (3 + 2) is higher.
    assert fit_thresholds(
        rank(labels, np.array([[0.9], [0.8], [0.6], [0.2]])), 0.5
    ) == pytest.approx(0.4)
    # One of two: 2 / 3. Both of four: 4 / 6, the same, so the one above.
    labels = np.array([[1], [0], [0], [1]], bool)
    probs = np.array([[0.9], [0.8], [0.6], [0.2]])
    assert fit_thresholds(rank(labels, probs), 0.5) == pytest.approx(0.85)


def test_a_threshold_below_all_images_is_half_the_lowest():
    labels, probs = np.ones((2, 1), bool), np.array([[0.9], [0.4]])
    assert fit_thresholds(rank(labels, probs), 0.5) == pytest.approx(0.2)


def test_between_neighboring_numbers_the_threshold_is_the_upper_one():
    probs = np.array([[0.5], [np.nextafter(np.float32(0.5), np.float32(0))]], np.float32)
    thresholds = fit_thresholds(rank(np.array([[True], [False]]), probs), 0.5)
    assert choose_labels(probs, thresholds).ravel().tolist() == [True, False]


@pytest.mark.parametrize("ties", [False, True])
def test_the_pooled_threshold_maximizes_the_micro_f1(ties):
    labels, probs = draw(3, ties=ties)
    threshold = fit_pooled_threshold(labels, probs)
    best = max(f1_score(labels, probs >= t, average="micro") for t in np.unique(probs)[::5])
    assert count_classes(labels, probs >= threshold).micro_f1 >= best
    as_one_class = rank(labels.reshape(-1, 1), probs.reshape(-1, 1))
    assert threshold == fit_thresholds(as_one_class, DEFAULT_THRESHOLD)[0]
    assert fit_pooled_threshold(np.zeros_like(labels), probs) == DEFAULT_THRESHOLD


def test_cross_fitted_predictions_do_not_know_their_own_labels():
    """Another label of an image changes the predictions of the other folds, never its own."""
    labels, probs = draw(4, count=40, classes=3)
    preds = cross_fit_predictions(labels, probs)
    changed = labels.copy()
    changed[7] = ~changed[7]
    assert (cross_fit_predictions(changed, probs)[7] == preds[7]).all()
    held_out = np.random.default_rng(0).permutation(40) % 5 == 2
    thresholds = fit_thresholds_by_class(labels[~held_out], probs[~held_out])
    assert thresholds[2] == fit_pooled_threshold(
        labels[~held_out], probs[~held_out]
    )  # has no images
    assert (preds[held_out] == choose_labels(probs[held_out], thresholds)).all()


def test_calibration_error_of_each_class_is_that_of_scikit_learns_curve():
    labels, probs = draw(5)
    errors = classwise_calibration_error(labels, probs)
    for k in range(7):
        hit_rate, confidence = calibration_curve(labels[:, k], probs[:, k], n_bins=15)
        edges = np.linspace(0, 1, 16)
        images = np.histogram(probs[:, k], edges)[0]
        expected = (images[images > 0] * np.abs(hit_rate - confidence)).sum() / 200
        assert errors[k] == pytest.approx(expected, abs=1e-12)
