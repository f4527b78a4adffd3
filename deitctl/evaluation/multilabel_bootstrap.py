"""Bootstrap intervals of mAP and F1 of several labels an image, and paired comparisons of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.bootstrap import RESAMPLES, draw_resamples, name_intervals
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.multilabel import Labels, Scores, rank, sample_f1
from deitctl.evaluation.multilabel_result import MultilabelResult

MIN_RESAMPLES = 100
MAX_CELLS = 5 * 10**8
"""Images x classes x resamples: of more, fewer resamples are drawn."""
METRICS = ("map", "macro_f1", "micro_f1", "sample_f1", "loss")


@dataclass(frozen=True, kw_only=True)
class MultilabelComparison:
    """Model A against model B on the same images of several labels each."""

    a: str
    """Name of A's result."""
    b: str
    """Name of B's result."""
    num_images: int
    """Images that both were evaluated on."""
    map_difference: float | None
    """mAP of A minus mAP of B, in points; null if no class has images."""
    interval: Interval | None
    """95 % interval of the difference, by resampling images for both models together."""
    p_value: float | None
    """Two-sided p-value of the same: twice the share of resamples in which the difference has the other
    sign or none, at least one of all."""
    only_a_correct: int
    """Images of which only A predicts exactly the labels."""
    only_b_correct: int
    """Images of which only B does."""


def choose_num_resamples(num_images: int, num_classes: int) -> int:
    """Return how many resamples are drawn: 2,000, or as many as `MAX_CELLS` allows, at least 100."""
    return min(RESAMPLES, max(MIN_RESAMPLES, MAX_CELLS // max(1, num_images * num_classes)))


def resample_map(labels: Labels, scores: Scores, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mAP of each resample, [R] in 0..1, over the classes that have images in it.

    It is the mean of scikit-learn's `average_precision_score` with `sample_weight`.

    Args:
        labels: [N,K].
        scores: [N,K].
        weights: how often each resample has each image, [R,N].
    """
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    for k in np.flatnonzero(labels.any(axis=0)):
        ranking = rank(labels[:, [k]], scores[:, [k]])
        drawn = weights[:, ranking.order[:, 0]]
        hits = np.flatnonzero(ranking.labels[:, 0])
        # Equal scores are ranked together: the precision at each is that at the last of them.
        is_cut = np.append(ranking.scores[1:, 0] != ranking.scores[:-1, 0], True)
        cuts = np.flatnonzero(is_cut)
        ends = cuts[np.searchsorted(cuts, hits)]
        num_ranked = drawn.cumsum(axis=1)[:, ends]
        hit_weights = drawn[:, hits]
        num_hits = hit_weights.cumsum(axis=1)
        at_end = num_hits[:, np.searchsorted(hits, ends, side="right") - 1]
        precision = at_end / np.maximum(num_ranked, 1)
        labeled = num_hits[:, -1]
        total += (hit_weights * precision).sum(axis=1) / np.maximum(labeled, 1)
        defined += labeled > 0
    values: NDArray[np.float64] = total / np.maximum(defined, 1)
    return values


def bootstrap_multilabel(result: MultilabelResult, seed: int = 0) -> dict[str, Interval]:
    """Return the 95 % bootstrap interval of each of `METRICS`, in the unit of the result.

    Args:
        result: of one model.
        seed: of the resampling.
    """
    labels, preds = result.labels, result.preds
    both = (labels & preds).astype(np.float32)
    either = labels.astype(np.float32) + preds
    by_image = np.stack([sample_f1(labels, preds), result.losses], axis=1)
    rows = []
    resamples = choose_num_resamples(*labels.shape)
    for weights in draw_resamples(len(labels), seed, resamples):
        drawn = weights.astype(np.float32)
        correct, total = drawn @ both, drawn @ either
        labeled = drawn @ labels.astype(np.float32) > 0
        f1 = np.where(labeled, 2 * correct / np.maximum(total, 1), 0).sum(axis=1)
        macro = f1 / np.maximum(labeled.sum(axis=1), 1)
        micro = 2 * correct.sum(axis=1) / np.maximum(total.sum(axis=1), 1)
        means = weights @ by_image / len(labels)
        mean_ap = resample_map(labels, result.scores, weights)
        rows.append(np.column_stack([mean_ap, macro, micro, means]))
    intervals = name_intervals(METRICS, np.concatenate(rows))
    return {
        name: interval if name == "loss" else interval.scale(100)
        for name, interval in intervals.items()
    }


def compare_multilabel(
    a: MultilabelResult, b: MultilabelResult, seed: int = 0
) -> MultilabelComparison:
    """Compare two models on the same images by the difference of their mAP, resampled together."""
    exact_a, exact_b = a.correct, b.correct
    interval = p_value = difference = None
    if a.map is not None and b.map is not None:
        resamples = choose_num_resamples(*a.labels.shape)
        differences = np.concatenate(
            [
                resample_map(a.labels, a.scores, weights)
                - resample_map(b.labels, b.scores, weights)
                for weights in draw_resamples(len(a.labels), seed, resamples)
            ]
        )
        difference = a.map - b.map
        interval = name_intervals(["map"], differences[:, None])["map"].scale(100)
        tail = min((differences <= 0).mean(), (differences >= 0).mean())
        p_value = float(min(1.0, max(2 * tail, 1 / len(differences))))
    return MultilabelComparison(
        a=a.name,
        b=b.name,
        num_images=len(a.labels),
        map_difference=difference,
        interval=interval,
        p_value=p_value,
        only_a_correct=int((exact_a & ~exact_b).sum()),
        only_b_correct=int((exact_b & ~exact_a).sum()),
    )


def compare_all(results: Sequence[MultilabelResult]) -> list[MultilabelComparison]:
    """Compare the first result with each of the others."""
    return [compare_multilabel(results[0], other) for other in results[1:]]
