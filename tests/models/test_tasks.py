"""Which classes a multi-label model predicts."""

from __future__ import annotations

import numpy as np

from deitctl.models.tasks import choose_labels


def test_a_class_is_predicted_from_its_threshold_on():
    probs = np.array([[0.5, 0.2], [0.499, 0.9]], np.float32)
    assert choose_labels(probs, (0.5, 0.3)).tolist() == [[True, False], [False, True]]


def test_a_threshold_is_rounded_as_the_probability_is():
    assert choose_labels(np.array([0.1], np.float32), (0.1,)).all()
    assert choose_labels(np.array([0.7], np.float32), (0.7,)).all()  # in fp32 below the 0.7 of fp64
