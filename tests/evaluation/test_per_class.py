"""Each class by hand: what is found, what is named, what it is taken for."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.evaluation.per_class import confusions, score_classes

LABELS = np.array([0, 0, 0, 1, 1, 3])
ANSWERS = np.array([0, 0, 1, 1, 4, 0])  # 4: none of the four classes


def test_recall_precision_and_f1_by_hand():
    zero, one, three = score_classes(LABELS, ANSWERS, 4)  # class 2 has no images
    assert (zero.label, zero.num_images) == (0, 3)
    assert (zero.recall, zero.precision, zero.f1) == pytest.approx((200 / 3, 200 / 3, 200 / 3))
    assert (one.label, one.num_images, one.recall, one.precision) == (1, 2, 50.0, 50.0)
    assert (three.label, three.num_images, three.recall, three.precision, three.f1) == (
        3,
        1,
        0.0,
        0.0,
        0.0,
    )


def test_what_is_taken_for_what_most_often_first():
    labels, answers = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 0, 0, 1, 3])
    assert confusions(labels, answers) == [(0, 1, 2), (1, 0, 1), (2, 1, 1), (2, 3, 1)]
    assert confusions(labels, answers, most=1) == [(0, 1, 2)]
    assert confusions(labels, labels) == []
