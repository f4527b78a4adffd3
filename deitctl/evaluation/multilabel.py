"""Metrics of several labels an image: average precision, F1, thresholds and calibration by class.

All but `fit_thresholds` equal scikit-learn's. They are computed here for all classes at once, and one sort
serves thresholds and their cross-fitting. Whole data is taken by blocks of classes: a sort and what is
computed of it need some 90 bytes an image and class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.metrics import BINS
from deitctl.models.tasks import DEFAULT_THRESHOLD, choose_labels

Labels = NDArray[np.bool_]
"""Which classes each image has, [N,K]."""
Scores = NDArray[np.floating[Any]]
"""A score of each class of each image, [N,K]: a higher one is more likely."""
ByClass = NDArray[np.float64]
"""A value of each class, [K]; NaN where it is not defined."""

FOLDS = 5
BLOCK = 1 << 20
"""Images x classes that are computed at a time."""


def split_classes(count: int, classes: int) -> Iterator[slice]:
    """Yield the classes of N images in blocks of at most `BLOCK` cells, of one class at least."""
    width = max(1, BLOCK // max(1, count))
    for start in range(0, classes, width):
        yield slice(start, start + width)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The images of each class from the highest score to the lowest; images of equal scores stay together."""

    order: NDArray[np.int64]
    """Images in that order, [N,K]."""
    scores: Scores
    """Their scores, [N,K]."""
    labels: Labels
    """Whether each has the class, [N,K]."""


def rank(labels: Labels, scores: Scores) -> Ranking:
    """Sort the images by the score of each class.

    Args:
        labels: [N,K], with N at least 1.
        scores: [N,K], finite.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    return Ranking(
        order, np.take_along_axis(scores, order, axis=0), np.take_along_axis(labels, order, axis=0)
    )


def _find_cuts(ranked: Scores) -> Labels:
    """Return whether the next score is lower, so that a threshold can lie between the two, [N,K]."""
    is_cut = np.ones(ranked.shape, np.bool_)
    is_cut[:-1] = ranked[:-1] != ranked[1:]
    return is_cut


def average_precision(ranking: Ranking) -> ByClass:
    """Return the average precision of each class, 0..1: the mean over its images of the precision at
    their score, as `sklearn.metrics.average_precision_score`; NaN for a class without images."""
    hits = ranking.labels.cumsum(axis=0)
    num_ranked = np.arange(1, len(hits) + 1, dtype=np.float64)[:, None]
    # Equal scores are ranked together: the precision at each is that at the last of them.
    count = np.arange(len(hits))[:, None]
    cut = np.where(_find_cuts(ranking.scores), count, len(hits))
    cut = np.minimum.accumulate(cut[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits / num_ranked, cut, axis=0)
    with np.errstate(invalid="ignore"):
        values: ByClass = np.where(ranking.labels, precision, 0).sum(axis=0) / hits[-1]
    return values


def average_precision_by_class(labels: Labels, scores: Scores) -> ByClass:
    """Return `average_precision` of [N,K] labels and scores, by blocks of classes."""
    blocks = split_classes(*labels.shape)
    return np.concatenate([average_precision(rank(labels[:, k], scores[:, k])) for k in blocks])


def mean_average_precision(values: ByClass) -> float:
    """Return the mean over the classes that have images (macro mAP); NaN if none has."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def micro_average_precision(labels: Labels, scores: Scores) -> float:
    """Return the average precision of all pairs of image and class in one ranking; NaN without labels."""
    ranked, hits = np.sort(scores, axis=None), np.sort(scores[labels])
    if not len(hits):
        return float("nan")
    num_hits = len(hits) - np.searchsorted(hits, hits)
    num_ranked = len(ranked) - np.searchsorted(ranked, hits)
    return float((num_hits / num_ranked).mean())


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """What F1, precision and recall of each class are computed of, [K] each."""

    correct: NDArray[np.int64]
    """Images that have the class and are predicted to."""
    predicted: NDArray[np.int64]
    """Images that are predicted to have it."""
    labeled: NDArray[np.int64]
    """Images that have it."""

    @property
    def f1(self) -> ByClass:
        """F1 of each class, 0..1; 0 for a class that is neither labeled nor predicted."""
        values: ByClass = 2 * self.correct / np.maximum(self.predicted + self.labeled, 1)
        return values

    @property
    def precision(self) -> ByClass:
        """Precision of each class, 0..1; 0 for one that is never predicted."""
        return self.correct / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> ByClass:
        """Recall of each class, 0..1; 0 for one without images."""
        return self.correct / np.maximum(self.labeled, 1)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that have images; 0 if none has."""
        values = self.f1[self.labeled > 0]
        return float(values.mean()) if len(values) else 0.0

    @property
    def micro_f1(self) -> float:
        """F1 of all pairs of image and class together; 0 if none is labeled or predicted."""
        total = int(self.predicted.sum() + self.labeled.sum())
        return 2 * int(self.correct.sum()) / max(total, 1)


def count_classes(labels: Labels, preds: Labels) -> ClassCounts:
    """Count for each class the images that have it, are predicted to, and both; [N,K] each."""
    return ClassCounts((labels & preds).sum(axis=0), preds.sum(axis=0), labels.sum(axis=0))


def sample_f1(labels: Labels, preds: Labels) -> NDArray[np.float64]:
    """Return the F1 of each image's labels, [N] in 0..1; 1 for one without labels of which none is
    predicted, as scikit-learn's with `zero_division=1`."""
    correct = (labels & preds).sum(axis=1)
    total = labels.sum(axis=1) + preds.sum(axis=1)
    return np.where(total == 0, 1.0, 2 * correct / np.maximum(total, 1))


def fit_thresholds(
    ranking: Ranking, pooled: float, keep: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the threshold of each class that maximizes its F1 (SCut, Yang 2001), [K] in 0..1.

    An image has a class if its probability is the threshold or above. The threshold lies midway
    between the lowest probability that is to be above it and the next lower one; of several that
    give the same F1 it is the highest, which predicts fewest images. One image that has the class
    is enough: on simulated scores that is no worse than the threshold of all classes together, and
    from two images on it is better.

    Args:
        ranking: of probabilities.
        pooled: threshold of a class that none of the images has, see `fit_pooled_threshold`.
        keep: which images to fit to, [N]; None: all.
    """
    # In fp32, as `choose_labels` compares: what is one number there is one score.
    ranked = ranking.scores.astype(np.float32)
    counted = np.ones(ranking.labels.shape, np.bool_) if keep is None else keep[ranking.order]
    labels = ranking.labels & counted
    hits, num_predicted = labels.cumsum(axis=0), counted.cumsum(axis=0)
    total = num_predicted + hits[-1]
    f1 = np.where(_find_cuts(ranked), 2 * hits / np.maximum(total, 1), -1.0)
    best = f1.argmax(axis=0)[None]
    above = np.take_along_axis(ranked, best, axis=0)[0]
    # The next lower probability of an image that is fitted to; 0 below the last.
    rows = np.arange(len(labels))[:, None]
    is_lower = (rows > best) & counted
    following = np.where(is_lower.any(axis=0), is_lower.argmax(axis=0), -1)
    columns = np.arange(labels.shape[1])
    below = np.where(following < 0, np.float32(0), ranked[following, columns])
    return np.where(hits[-1] > 0, _find_middle(above, below).astype(np.float64), pooled)


def _find_middle(above: NDArray[np.float32], below: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = (above + below) / np.float32(2)
    return np.where(middle > below, middle, above)  # of neighbors there is no number between


def fit_pooled_threshold(labels: Labels, probs: Scores) -> float:
    """Return the one threshold of all classes that maximizes the micro F1; 0.5 without any label.

    As `fit_thresholds` finds that of a class; only probabilities of labels need be tried.
    """
    ranked = probs.astype(np.float32).ravel()
    values, counts = np.unique(ranked[labels.ravel()], return_counts=True)
    if not len(values):
        return DEFAULT_THRESHOLD
    ranked.sort()
    hits = counts[::-1].cumsum()[::-1]
    lower = np.searchsorted(ranked, values)
    f1 = 2 * hits / (len(ranked) - lower + hits[0])
    best = len(f1) - 1 - int(f1[::-1].argmax())
    below = ranked[lower[best] - 1] if lower[best] else np.float32(0)
    return float(_find_middle(np.asarray(values[best]), np.asarray(below)))


def fit_thresholds_by_class(labels: Labels, probs: Scores) -> NDArray[np.float64]:
    """Return the threshold of each class, [K] in 0..1, see `fit_thresholds`; of a class that no image
    has the pooled one."""
    pooled = _fit_pooled_where_needed(labels, probs)
    blocks = split_classes(*labels.shape)
    return np.concatenate([fit_thresholds(rank(labels[:, k], probs[:, k]), pooled) for k in blocks])


def _fit_pooled_where_needed(labels: Labels, probs: Scores) -> float:
    lacks_some = not labels.any(axis=0).all()
    return fit_pooled_threshold(labels, probs) if lacks_some else DEFAULT_THRESHOLD


def cross_fit_predictions(labels: Labels, probs: Scores) -> Labels:
    """Return which classes each image is predicted to have, [N,K], by thresholds that were fitted to
    the four fifths of the images that it is not in, the pooled one too: as new images would be predicted.
    """
    # Drawn, so that the order of the data (often by class) does not decide what a fold holds.
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    fitted = [fold != n for n in range(min(FOLDS, len(labels)))]
    pooled = [_fit_pooled_where_needed(labels[is_fitted], probs[is_fitted]) for is_fitted in fitted]
    preds = np.zeros(labels.shape, np.bool_)
    for k in split_classes(*labels.shape):
        ranking = rank(labels[:, k], probs[:, k])
        for is_fitted, threshold in zip(fitted, pooled, strict=True):
            thresholds = fit_thresholds(ranking, threshold, is_fitted)
            preds[~is_fitted, k] = choose_labels(probs[~is_fitted, k], thresholds)
    return preds


def classwise_calibration_error(labels: Labels, probs: Scores, bins: int = BINS) -> ByClass:
    """Return the expected calibration error of each class, 0..1: the mean gap between its probability
    and how many images have it, by bins of the probability, weighted by images (Kull et al. 2019, §3).

    Args:
        labels: [N,K].
        probs: probability of each class, [N,K] in 0..1.
        bins: bins ((m-1)/M, m/M] of equal width.
    """
    blocks = split_classes(*labels.shape)
    return np.concatenate([_compare_by_bins(labels[:, k], probs[:, k], bins) for k in blocks])


def _compare_by_bins(labels: Labels, probs: Scores, bins: int) -> ByClass:
    count, classes = labels.shape
    index = (np.ceil(probs * bins).astype(np.int64) - 1).clip(0, bins - 1)
    index += bins * np.arange(classes)
    size = bins * classes
    confidence = np.bincount(index.ravel(), probs.ravel().astype(np.float64), minlength=size)
    hits = np.bincount(index.ravel(), labels.ravel().astype(np.float64), minlength=size)
    gaps = np.abs(hits - confidence).reshape(classes, bins)
    errors: ByClass = gaps.sum(axis=1) / count
    return errors
