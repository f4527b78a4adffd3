"""Accumulates the outputs of an evaluation on images of several labels each.

Average precision ranks all images, so that all logits are kept: 5 bytes an image and class during the
pass, 9 of a model with two heads. At its end the process needs 41 and 47 bytes, measured at 100,000 images
of 100 classes (400 images of 80 classes: 1.3 MB; a million of 1,000: 41 GB), most of it for sorts by
blocks of classes and probabilities in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deitctl.device import Device
from deitctl.evaluation.accumulator import LOGITS, ImageColumns
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel import (
    BLOCK,
    Labels,
    Scores,
    average_precision_by_class,
    classwise_calibration_error,
    count_classes,
    cross_fit_predictions,
    fit_thresholds_by_class,
    mean_average_precision,
    micro_average_precision,
    sample_f1,
    split_classes,
)
from deitctl.evaluation.multilabel_result import FittedThresholds, MultilabelResult
from deitctl.models.heads import fuse_heads
from deitctl.models.tasks import MULTILABEL, choose_labels
from deitctl.models.vit import HeadLogits


class MultilabelAccumulator(ImageColumns):
    """The images of one model so far, of several labels each."""

    def __init__(
        self, eval_model: EvalModel, class_names: Sequence[str], device: Device | None = None
    ) -> None:
        """Start empty.

        Args:
            eval_model: the model whose outputs are added.
            class_names: of the data.
            device: where the model's outputs are; None: the CPU.
        """
        super().__init__(eval_model, device)
        self.class_names = class_names

    def score(
        self, cls: Tensor, dist: Tensor | None, labels: Tensor, indices: Tensor
    ) -> dict[str, Tensor]:
        """Return what is added to the columns for some images, see `EvalAccumulator.score`; labels are bool
        [B,K] of the data."""
        self.num_heads, self.num_logits = (1 if dist is None else 2), cls.shape[1]
        columns = {"index": indices, "label": labels}
        for name, logits in zip(LOGITS, (cls, dist), strict=True):
            if logits is not None:
                columns[name] = logits.index_select(1, self.device_rows)
        return columns

    def compute(self, seconds: float, name_of: Callable[[int], str] = str) -> MultilabelResult:
        """Return the metrics, and the results of all images in the order of the dataset.

        Args:
            seconds: duration of the pass.
            name_of: returns the name of an image by its index in the dataset.
        """
        column = self._take_columns()
        heads = HeadLogits(column["logits/0"], column.get("logits/1"))
        labels, indices = column["label"].numpy(), column["index"]
        scaled = fuse_heads(heads, self.head, MULTILABEL) / self.eval_model.temperature
        losses, probs = _compute_losses(scaled, column["label"]), to_float64_probs(scaled)
        scores = score_images(heads, self.head)
        ap = average_precision_by_class(labels, scores)
        errors = classwise_calibration_error(labels, probs)
        fitted = fit_thresholds_by_class(labels, probs)
        cross_fitted, own = cross_fit_predictions(labels, probs), self.eval_model.thresholds
        preds = cross_fitted if own is None else choose_labels(probs.astype(np.float32), own)
        f1 = _compute_f1(labels, preds)
        read_errors = [(name_of(index), reason) for index, reason in self.read_errors]
        return MultilabelResult(
            num_images=len(labels),
            unreadable=[name for name, _ in read_errors],
            map=_to_percent(mean_average_precision(ap)),
            micro_ap=_to_percent(micro_average_precision(labels, scores)),
            thresholds_from="cross-fitted" if own is None else "model",
            macro_f1=f1.macro,
            micro_f1=f1.micro,
            sample_f1=f1.sample,
            exact_match=100 * float((preds == labels).all(axis=1).mean()),
            loss=float(losses.mean()),
            ece=float(errors.mean()),
            labels_per_image=float(labels.sum(axis=1).mean()),
            fitted=_describe_fit(labels, fitted, cross_fitted, self.class_names),
            num_classes=labels.shape[1],
            head=self.head,
            heads=self._score_heads(heads, labels),
            head_agreement=_compare_heads(heads),
            teacher_agreement=self._score_teacher(heads, indices),
            temperature=self.eval_model.temperature,
            images_per_second=len(labels) / max(seconds, 1e-9),
            read_errors=read_errors,
            indices=indices,
            labels=labels,
            probs=probs,
            preds=preds,
            losses=losses.numpy(),
            thresholds=fitted if own is None else np.array(own),
            average_precisions=ap,
            calibration_errors=errors,
            scores=scores,
            logits=heads,
        )

    def _take_columns(self) -> dict[str, Tensor]:
        """Return the columns of all images in the order of the dataset; the accumulator keeps none."""
        order = torch.cat(self.columns["index"]).argsort()
        # One by one: the batches of a column are freed before the next is joined.
        return {name: torch.cat(self.columns.pop(name))[order] for name in list(self.columns)}

    def _score_heads(self, heads: HeadLogits, labels: Labels) -> dict[str, float] | None:
        """Return the mAP of each head rule, percent; None for one head, or without labels."""
        if self.num_heads == 1 or not labels.any():
            return None
        values = {rule: np.empty(labels.shape[1]) for rule in self.rules}
        for k in split_classes(*labels.shape):
            block = HeadLogits(heads.cls[:, k], None if heads.dist is None else heads.dist[:, k])
            for rule, ap in values.items():
                ap[k] = average_precision_by_class(labels[:, k], score_images(block, rule))
        return {rule: 100 * mean_average_precision(ap) for rule, ap in values.items()}

    def _score_teacher(self, heads: HeadLogits, indices: Tensor) -> dict[str, float] | None:
        """Return the agreement of each head rule with the teacher, percent; None without one."""
        if self.eval_model.teacher_preds is None:
            return None
        teacher = self.eval_model.teacher_preds[indices]
        taught = (teacher >= 0).all(1)
        if not taught.any():
            return None
        return {
            rule: _compute_agreement(
                fuse_heads(heads, rule, MULTILABEL)[taught], teacher[taught] == 1
            )
            for rule in self.rules
        }


def score_images(heads: HeadLogits, rule: str) -> Scores:
    """Return what images are ranked by, [N,K]: fused logits, as probabilities of large ones are equal.

    The mean of two probabilities is taken in float64, where it hardly ever rounds to another's. NaN is
    the lowest.
    """
    if rule == "avg-probs" and heads.dist is not None:
        heads = HeadLogits(heads.cls.double(), heads.dist.double())
    logits = fuse_heads(heads, rule, MULTILABEL)
    scores: Scores = logits.nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf).numpy()
    return scores


def to_float64_probs(logits: Tensor) -> NDArray[np.float64]:
    """Return sigmoid(logits) in float64; NaN becomes 0."""
    values = logits.to(torch.float64, copy=True)
    probs: NDArray[np.float64] = values.sigmoid_().nan_to_num_(nan=0.0).numpy()
    return probs


def _compute_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each image, mean over classes, float64 [N]."""
    rows = max(1, BLOCK // logits.shape[1])
    pairs = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    return torch.cat(
        [
            F.binary_cross_entropy_with_logits(z.double(), y.double(), reduction="none").mean(1)
            for z, y in pairs
        ]
    )


class _F1(NamedTuple):
    """F1 scores, percent."""

    macro: float
    micro: float
    sample: float


def _compute_f1(labels: Labels, preds: Labels) -> _F1:
    counts, by_image = count_classes(labels, preds), sample_f1(labels, preds)
    return _F1(100 * counts.macro_f1, 100 * counts.micro_f1, 100 * float(by_image.mean()))


def _compare_heads(heads: HeadLogits) -> float | None:
    """Return the agreement of two heads, percent; None for one."""
    return None if heads.dist is None else _compute_agreement(heads.cls, heads.dist >= 0)


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
    without, f1 = np.flatnonzero(~labels.any(axis=0)).tolist(), _compute_f1(labels, cross_fitted)
    return FittedThresholds(
        thresholds=dict(zip(class_names, thresholds.tolist(), strict=True)),
        macro_f1=f1.macro,
        micro_f1=f1.micro,
        sample_f1=f1.sample,
        num_images=len(labels),
        classes_without_images=[class_names[n] for n in without],
    )


def _to_percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * value
