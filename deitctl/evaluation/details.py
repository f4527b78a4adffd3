"""What `eval` adds to the metrics of a pass: intervals, calibration, classes, confusions, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from deitctl.evaluation.bootstrap import (
    PairedComparison,
    bootstrap_evenly,
    bootstrap_intervals,
    compare_pair,
)
from deitctl.evaluation.calibration import calibrate, calibrate_labels
from deitctl.evaluation.metrics import compute_reliability, count_confusions, score_classes
from deitctl.evaluation.multilabel import Labels, count_classes
from deitctl.evaluation.multilabel_bootstrap import bootstrap_multilabel
from deitctl.evaluation.multilabel_result import LabelScore, MultilabelResult
from deitctl.evaluation.real_labels import map_to_imagenet, score_real_labels
from deitctl.evaluation.result import OUTSIDE_NAME, Confusion, EvalResult
from deitctl.evaluation.subject import EvalSubject

MAX_CONFUSIONS = 10


def add_details(
    result: EvalResult, subject: EvalSubject, real: list[list[int]] | None, *, is_main: bool
) -> EvalResult:
    """Add to the metrics of a pass what `EvalResult` has besides; only the main process calibrates."""
    class_names = subject.dataset.class_names
    labels, preds = result.labels.numpy(), result.data_preds.numpy()
    per_class = score_classes(labels, preds, class_names, subject.class_titles)
    balanced_interval, f1_interval = bootstrap_evenly(labels, preds, len(class_names))
    calibration = None
    if is_main and result.logits is not None:
        targets = result.targets[result.logit_rows]
        calibration = calibrate(result.logits, targets, result.head)
    real_labels = None
    if real is not None:
        to_imagenet = map_to_imagenet(subject.model_config)
        real_labels = score_real_labels(result, subject.dataset, to_imagenet, real)
    return replace(
        result,
        model=subject.ref,
        protocol=subject.protocol,
        subject=subject,
        balanced_accuracy_interval=balanced_interval,
        macro_f1_interval=f1_interval,
        # The calibration error has none: resampling increases it, so its interval would miss it.
        loss_interval=bootstrap_intervals({"loss": result.losses.numpy()})["loss"],
        calibration=calibration,
        real_labels=real_labels,
        reliability=compute_reliability(result.confidences, result.correct),
        per_class=per_class,
        confusions=[
            Confusion(
                class_names[label],
                class_names[pred] if pred < len(class_names) else OUTSIDE_NAME,
                num_images,
            )
            for label, pred, num_images in count_confusions(labels, preds, MAX_CONFUSIONS)
        ],
    )


def add_label_details(
    result: MultilabelResult, subject: EvalSubject, *, is_main: bool
) -> MultilabelResult:
    """Add to the metrics of a pass what `MultilabelResult` has besides; only the main process calibrates."""
    intervals = bootstrap_multilabel(result)
    return replace(
        result,
        model=subject.ref,
        protocol=subject.protocol,
        subject=subject,
        map_interval=None if result.map is None else intervals["map"],
        macro_f1_interval=intervals["macro_f1"],
        micro_f1_interval=intervals["micro_f1"],
        sample_f1_interval=intervals["sample_f1"],
        loss_interval=intervals["loss"],
        calibration=calibrate_labels(result.logits, result.labels, result.head)
        if is_main
        else None,
        per_class=_score_labels(result, subject),
        confusions=[
            Confusion(subject.dataset.class_names[label], subject.dataset.class_names[pred], images)
            for label, pred, images in count_co_confusions(
                result.labels, result.preds, MAX_CONFUSIONS
            )
        ],
    )


def _score_labels(result: MultilabelResult, subject: EvalSubject) -> dict[str, LabelScore]:
    counts, num_images = count_classes(result.labels, result.preds), len(result.labels)
    columns = zip(
        counts.labeled.tolist(),
        result.average_precisions.tolist(),
        result.thresholds.tolist(),
        (100 * counts.recall).tolist(),
        (100 * counts.precision).tolist(),
        (100 * counts.f1).tolist(),
        result.calibration_errors.tolist(),
        strict=True,
    )
    return {
        subject.dataset.class_names[label]: LabelScore(
            num_images=labeled,
            prevalence=100 * labeled / num_images,
            average_precision=100 * ap if labeled else None,
            threshold=threshold,
            recall=recall,
            precision=precision,
            f1=f1,
            ece=ece,
            title=subject.class_titles[label],
            label=label,
        )
        for label, (labeled, ap, threshold, recall, precision, f1, ece) in enumerate(columns)
    }


def count_co_confusions(
    labels: Labels, preds: Labels, limit: int | None = None
) -> list[tuple[int, int, int]]:
    """Return (class that images have and that is not predicted, class that they have not and that is,
    number of images), most frequent first; [N,K] each."""
    missed, wrong = (csr_array(x.astype(np.int64)) for x in (labels & ~preds, preds & ~labels))
    pairs = (missed.T @ wrong).tocoo()
    order = np.lexsort((pairs.col, pairs.row, -pairs.data))[:limit]
    return [(int(pairs.row[n]), int(pairs.col[n]), int(pairs.data[n])) for n in order]


def compare_with_first(results: Sequence[EvalResult]) -> list[PairedComparison]:
    """Compare the first with each of the others.

    Models with different classes are compared among the data's classes only.
    """
    classes = {
        frozenset(r.subject.model_config.class_names or ()) or r.subject.model_config.num_classes
        for r in results
        if r.subject
    }
    among_classes = len(classes) > 1
    correct = [
        (r.preds_among_classes == r.labels if among_classes else r.correct).numpy() for r in results
    ]
    return [
        compare_pair(
            results[0].name, other.name, correct[0], other_correct, among_classes=among_classes
        )
        for other, other_correct in zip(results[1:], correct[1:], strict=True)
    ]
