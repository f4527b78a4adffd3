"""What a classifier predicts of an image: one class, or each class by itself. No torch here.

Shapes:
    B images, K classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CLASSIFICATION = "classification"
"""One class an image: probabilities are a softmax and sum to 1."""
MULTILABEL = "multilabel"
"""Any number of classes an image: each probability is a sigmoid of its own."""
TASKS = (CLASSIFICATION, MULTILABEL)
DEFAULT_THRESHOLD = 0.5
"""Of a class of a multi-label model that keeps none."""


def choose_labels(
    probs: NDArray[np.float32], thresholds: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which classes a multi-label model predicts: those whose probability reaches the threshold.

    Args:
        probs: [B,K] or [K], 0..1.
        thresholds: [K], 0..1.

    Returns:
        Of the shape of `probs`. In fp32, so that every reader of an export finds the same.
    """
    return np.asarray(probs, np.float32) >= np.asarray(thresholds, np.float32)
