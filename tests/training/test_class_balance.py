"""Weights, priors and smoothing of uneven classes, against formulas, timm and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.loss import compute_class_weights as timms_class_weights

from deitctl.recipes import SMALL
from deitctl.training.class_balance import (
    ClassCounts,
    compute_class_weights,
    compute_log_prior,
    compute_smoothing,
    describe_class_weights,
    summarize_class_weights,
)

NAMES = ("cat", "dog", "eel")
UNEVEN = ClassCounts(torch.tensor([50.0, 10.0, 1.0]).double(), 61, False, NAMES)
SEVERAL = ClassCounts(torch.tensor([50.0, 10.0, 1.0]).double(), 55, True, NAMES)
TIMMS = {"inverse": "inv_freq", "effective": "effective_num", "neg_pos": "neg_pos"}


def recipe(method="inverse", **changes):
    return replace(SMALL, class_weights=method, **changes)


@pytest.mark.parametrize("method", TIMMS)
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_weights_of_several_labels_equal_timms(method, power):
    settings = recipe(method, class_weight_power=power, class_weight_beta=0.9)
    ours = compute_class_weights(settings, SEVERAL, loss="bce")
    _, theirs = timms_class_weights(SEVERAL.counts, 55, TIMMS[method], power=power, beta=0.9)
    torch.testing.assert_close(ours.float(), theirs)


@pytest.mark.parametrize("method", ["inverse", "effective"])
def test_weights_of_a_softmax_are_timms_with_a_mean_of_one_over_the_images(method):
    ours = compute_class_weights(recipe(method), UNEVEN, loss="ce")
    _, theirs = timms_class_weights(UNEVEN.counts, 61, TIMMS[method])
    torch.testing.assert_close((ours / ours.mean()).float(), theirs)
    assert float((ours * UNEVEN.counts).sum() / 61) == pytest.approx(1)


def test_inverse_frequency_of_a_softmax_is_scikit_learns_balanced():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [50, 10, 1])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    ours = compute_class_weights(recipe(), UNEVEN, loss="ce")
    assert ours.tolist() == pytest.approx(theirs.tolist())


def test_a_class_without_images_counts_as_one_of_one_image():
    counts = replace(UNEVEN, counts=torch.tensor([50.0, 10.0, 0.0]).double(), num_images=60)
    weights = compute_class_weights(recipe(), counts, loss="ce")
    assert weights.isfinite().all()
    assert float((weights * counts.counts).sum() / 60) == pytest.approx(1)
    assert compute_log_prior(counts).isfinite().all()


def test_weights_are_told_in_one_line_with_the_classes_at_both_ends():
    weights = describe_class_weights(recipe(), UNEVEN, loss="ce")
    assert summarize_class_weights(weights, UNEVEN) == (
        "Class weights (inverse frequency), of images: 0.407 (cat, 50 images) to 20.3 (eel, 1 image)."
    )
    assert describe_class_weights(recipe("none"), UNEVEN, loss="ce") is None


def test_log_priors_are_those_of_the_images():
    expected = torch.tensor([50 / 61, 10 / 61, 1 / 61]).double().log()
    torch.testing.assert_close(compute_log_prior(UNEVEN), expected)


def test_smoothing_by_class_falls_from_the_recipes_to_none_at_the_rarest():
    """MiSLAS' concave form: half the way from 2 to 62 images is sin(pi / 4) of it."""
    counts = replace(UNEVEN, counts=torch.tensor([62.0, 32.0, 2.0]).double())
    smoothing = compute_smoothing(replace(SMALL, smoothing=0.4, smoothing_by="class"), counts)
    assert smoothing.tolist() == pytest.approx([0.4, 0.4 * 2**-0.5, 0.0])


def test_smoothing_by_class_of_even_classes_is_that_of_all():
    even = replace(UNEVEN, counts=torch.tensor([5.0, 5.0, 5.0]).double())
    assert compute_smoothing(replace(SMALL, smoothing=0.4, smoothing_by="class"), even) == 0.4
