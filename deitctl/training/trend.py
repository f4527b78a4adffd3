"""Whether a run was still improving at its end, by its validations, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deitctl.training.selection import read_metric

COMPARED = 0.25
"""Share of the epochs, the last ones, that are compared with those before."""
MIN_FALL = 1.0
"""Percent by which the validation loss falls where it does; less is what a cosine's end leaves of it."""
MIN_RISE = 5.0
"""Percent by which it rises where a model learns its training images by heart."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The last epochs of a run beside those before them."""

    verdict: Literal["improving", "flat", "worse", "unknown"]
    """`improving`: more epochs would help; `flat`: not likely; `worse`: an earlier epoch was better;
    `unknown`: one epoch has no trend."""
    num_epochs: int
    """Last epochs that are compared with those before; 0 for one epoch."""
    metric: str
    """Metric that is compared, top1, balanced, f1 or map: the one that the run selects by, or top-1
    (of several labels an image mAP) where it selects by the loss."""
    gain: float | None
    """Best of these by the metric minus the best before, in points; null for one epoch."""
    val_loss_change: float | None
    """Lowest validation loss of these relative to the lowest before, percent; null for one epoch."""
    standard_error: float
    """Of the gain, in points, if the images of its two values were drawn apart; for one epoch of its
    value."""


def judge_trend(
    epochs: Sequence[Mapping[str, Any]],
    num_images: int,
    metric: str = "top1",
    error: float | None = None,
) -> Trend:
    """Compare the last epochs of a run with those before; a gain within its standard error is none.

    Args:
        epochs: records with the metric (percent) and `val_loss`, in order, at least one.
        num_images: validation images.
        metric: that is compared.
        error: standard error of one of its values, in points; None: that of an accuracy.
    """
    values = [read_metric(epoch, metric) or 0.0 for epoch in epochs]
    if len(epochs) == 1:
        return Trend(
            verdict="unknown",
            num_epochs=0,
            metric=metric,
            gain=None,
            val_loss_change=None,
            standard_error=compute_standard_error(values, num_images) if error is None else error,
        )
    # Several of many epochs, because the last of a cosine changes little however short the run was.
    count = max(1, round(COMPARED * len(epochs)))
    before, last = epochs[:-count], epochs[-count:]
    best_before, best = max(values[:-count]), max(values[-count:])
    gain = best - best_before
    if error is None:
        error = compute_standard_error([best_before, best], num_images)
    else:
        error *= math.sqrt(2)
    lowest = min(_loss(e) for e in before)
    change = 100 * (min(_loss(e) for e in last) / lowest - 1) if 0 < lowest < math.inf else 0.0
    verdict: Literal["improving", "flat", "worse"] = "flat"
    if gain < -error or (change > MIN_RISE and gain <= 0):
        verdict = "worse"
    elif values[-1] < 100 and (gain > error or change < -MIN_FALL):
        verdict = "improving"
    return Trend(
        verdict=verdict,
        num_epochs=count,
        metric=metric,
        gain=gain,
        val_loss_change=change,
        standard_error=error,
    )


def compute_standard_error(accuracies: Sequence[float], num_images: int) -> float:
    """Return the standard error, in points, of an accuracy or of the difference of two: the root of
    the sum of their variances p (1 - p) / N.

    Args:
        accuracies: one or two, in percent.
        num_images: N of each.
    """
    variances = (a / 100 * (1 - a / 100) / max(1, num_images) for a in accuracies)
    return 100 * math.sqrt(sum(variances))


def _loss(epoch: Mapping[str, Any]) -> float:
    """Return an epoch's validation loss; one that was no number is null in the log."""
    loss = epoch["val_loss"]
    return math.inf if loss is None else float(loss)
