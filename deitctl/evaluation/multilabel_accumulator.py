"""Accumulates the outputs of an evaluation on images of several labels each.

Average precision ranks all images, so that all logits are kept: 5 bytes an image and class, 9 of a
model with two heads (400 images of 80 classes: 160 kB; a million images of 1,000 classes: 5 GB).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deitctl.evaluation.accumulator import ImageColumns
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel import (
    Labels,
    average_precision,
    classwise_calibration_error,
    count_classes,
    cross_fit_predictions,
    fit_pooled_threshold,
    fit_thresholds,
    mean_average_precision,
    micro_average_precision,
    rank,
    sample_f1,
)
from deitctl.evaluation.multilabel_result import FittedThresholds, MultilabelResult
from deitctl.models.heads import fuse_heads
from deitctl.models.tasks import MULTILABEL, choose_labels
from deitctl.models.vit import HeadLogits


class MultilabelAccumulator(ImageColumns):
    """The images of one model so far, of several labels each."""

    def __init__(self, eval_model: EvalModel, class_names: Sequence[str]) -> None:
        """Start empty.

        Args:
            eval_model: the model whose outputs are added.
            class_names: of the data.
        """
        super().__init__(eval_model)
        self.class_names = class_names

    def add(self, cls: Tensor, dist: Tensor | None, labels: Tensor, indices: Tensor) -> None:
        """Add the logits [B,K] of a batch, its labels, bool [B,K] of the data, and its indices [B]."""
        self.num_heads, self.num_logits = (1 if dist is None else 2), cls.shape[1]
        columns = {"index": indices, "label": labels, "logits/0": cls[:, self.rows]}
        if dist is not None:
            columns["logits/1"] = dist[:, self.rows]
        self.append(columns)

    def compute(self, seconds: float, name_of: Callable[[int], str] = str) -> MultilabelResult:
        """Return the metrics, and the results of all images in the order of the dataset.

        Args:
            seconds: duration of the pass.
            name_of: returns the name of an image by its index in the dataset.
        """
        column = {name: torch.cat(self.columns.pop(name)) for name in list(self.columns)}
        order = column["index"].argsort()
        column = {name: values[order] for name, values in column.items()}
        heads = HeadLogits(column["logits/0"], column.get("logits/1"))
        labels = column["label"].numpy()
        fused = {rule: fuse_heads(heads, rule, MULTILABEL) for rule in self.rules}
        scaled = fused[self.head] / self.eval_model.temperature
        probs = to_float64_probs(scaled)
        losses = F.binary_cross_entropy_with_logits(
            scaled.double(), column["label"].double(), reduction="none"
        ).mean(1)
        ranking = rank(labels, probs)
        ap = average_precision(ranking)
        pooled = fit_pooled_threshold(labels, probs)
        fitted = fit_thresholds(ranking, pooled)
        cross_fitted = cross_fit_predictions(ranking, pooled)
        own = self.eval_model.thresholds
        preds = cross_fitted if own is None else choose_labels(probs.astype(np.float32), own)
        counts = count_classes(labels, preds)
        errors = classwise_calibration_error(labels, probs)
        read_errors = [(name_of(index), reason) for index, reason in self.read_errors]
        return MultilabelResult(
            num_images=len(order),
            unreadable=[name for name, _ in read_errors],
            map=_to_percent(mean_average_precision(ap)),
            micro_ap=_to_percent(micro_average_precision(labels, probs)),
            thresholds_from="cross-fitted" if own is None else "model",
            macro_f1=100 * counts.macro_f1,
            micro_f1=100 * counts.micro_f1,
            sample_f1=100 * float(sample_f1(labels, preds).mean()),
            exact_match=100 * float((preds == labels).all(axis=1).mean()),
            loss=float(losses.mean()),
            ece=float(errors.mean()),
            labels_per_image=float(labels.sum(axis=1).mean()),
            fitted=_describe_fit(labels, fitted, cross_fitted, self.class_names),
            num_classes=labels.shape[1],
            head=self.head,
            heads=self._score_heads(fused, labels),
            head_agreement=None
            if self.num_heads == 1
            else _compute_agreement(fused["cls"], fused["dist"] >= 0),
            teacher_agreement=self._score_teacher(fused, column["index"]),
            temperature=self.eval_model.temperature,
            images_per_second=len(order) / max(seconds, 1e-9),
            read_errors=read_errors,
            indices=column["index"],
            labels=labels,
            probs=probs,
            preds=preds,
            losses=losses.numpy(),
            thresholds=fitted if own is None else np.array(own),
            average_precisions=ap,
            calibration_errors=errors,
            ranking=ranking,
            logits=heads,
        )

    def _score_heads(self, fused: Mapping[str, Tensor], labels: Labels) -> dict[str, float] | None:
        """Return the mAP of each head rule, percent; None for one head, or without labels."""
        if self.num_heads == 1 or not labels.any():
            return None
        rankings = {rule: rank(labels, to_float64_probs(x)) for rule, x in fused.items()}
        return {
            rule: 100 * mean_average_precision(average_precision(ranking))
            for rule, ranking in rankings.items()
        }

    def _score_teacher(
        self, fused: Mapping[str, Tensor], indices: Tensor
    ) -> dict[str, float] | None:
        """Return the agreement of each head rule with the teacher, percent; None without one."""
        if self.eval_model.teacher_preds is None:
            return None
        teacher = self.eval_model.teacher_preds[indices]
        taught = (teacher >= 0).all(1)
        if not taught.any():
            return None
        return {
            rule: _compute_agreement(logits[taught], teacher[taught] == 1)
            for rule, logits in fused.items()
        }


def to_float64_probs(logits: Tensor) -> NDArray[np.float64]:
    """Return sigmoid(logits) in float64, where those of large logits still differ; NaN becomes 0."""
    probs: NDArray[np.float64] = logits.double().sigmoid().nan_to_num(nan=0.0).numpy()
    return probs


def _compute_agreement(logits: Tensor, others: Tensor) -> float:
    """Return the micro F1, percent, of the classes of a probability of 0.5 or more against others'
    [N,K]; 100 where neither predicts any."""
    counts = count_classes(others.numpy(), (logits >= 0).numpy())
    if not counts.labeled.any() and not counts.predicted.any():
        return 100.0
    return 100 * counts.micro_f1


def _describe_fit(
    labels: Labels,
    thresholds: NDArray[np.float64],
    cross_fitted: Labels,
    class_names: Sequence[str],
) -> FittedThresholds:
    counts = count_classes(labels, cross_fitted)
    has_images = (counts.labeled > 0).tolist()
    return FittedThresholds(
        thresholds=dict(zip(class_names, thresholds.tolist(), strict=True)),
        macro_f1=100 * counts.macro_f1,
        micro_f1=100 * counts.micro_f1,
        sample_f1=100 * float(sample_f1(labels, cross_fitted).mean()),
        num_images=len(labels),
        classes_without_images=[
            name for name, has in zip(class_names, has_images, strict=True) if not has
        ],
    )


def _to_percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * value
