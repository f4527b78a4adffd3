"""What a report shows: evaluation results, example images, attention maps, a run's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.bootstrap import PairedComparison
from deitctl.evaluation.metrics import count_confusions
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.subject import EvalSubject

Facts = Sequence[tuple[str, str]]
"""Names and values to list, in that order."""
HEAD_TITLES = {
    "cls": "class head",
    "dist": "distillation head",
    "avg-logits": "both, logits averaged",
    "avg-probs": "both, probabilities averaged",
}
GALLERY_TITLES = {
    "mistakes": "Most confident mistakes",
    "unsure": "Least confident correct predictions",
    "disagreements": "Head disagreements",
}
OUTSIDE = -1
"""Stands for any predicted class that the data does not have."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image of a gallery."""

    index: int
    """Its row in the result's tensors."""
    guesses: Sequence[tuple[str, float]]
    """Titles and probabilities of the likeliest classes, likeliest first."""
    thumbnail: bytes
    """JPEG, PNG or WebP of the image as the model sees it."""
    maps: Mapping[str, bytes]
    """Attention maps by token ("class token"), of the thumbnail's shape, to lay over it; none for
    other models."""
    heads: Mapping[str, tuple[str, float]]
    """Prediction and probability of each of two heads; none for a model with one head."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The log of a training run."""

    run: str
    """Name of the run."""
    steps: Sequence[Mapping[str, Any]]
    """Step records of `Run.records`: `step`, `lr`, and the parts of the loss under any names."""
    epochs: Sequence[Mapping[str, Any]]
    """Epoch records of `Run.records`: `epoch`, `step`, `val_loss`, `top1`, `heads`."""
    teacher_top1: float | None = None
    """Top-1 accuracy of the teacher, percent."""

    @property
    def losses(self) -> list[str]:
        """The names of the parts of the loss."""
        # By exclusion: a loss part that a new objective logs is drawn without a change here.
        others = ("kind", "step", "epoch", "lr", "grad_norm")
        return [name for name in (self.steps[0] if self.steps else {}) if name not in others]

    @property
    def steps_per_epoch(self) -> float:
        """The steps of an epoch."""
        # A record of an epoch has the number of its last step.
        return self.epochs[0]["step"] / self.epochs[0]["epoch"] if self.epochs else 1.0

    @property
    def metric_title(self) -> str:
        """What is drawn of the validations: top-1, or mAP of several labels an image."""
        is_top1 = not self.epochs or self.epochs[-1].get("top1") is not None
        return "top-1" if is_top1 else "mAP"

    def list_metric(self) -> list[float | None]:
        """Return that metric after each epoch, percent."""
        return [
            e.get("top1") if self.metric_title == "top-1" else e.get("map") for e in self.epochs
        ]

    def list_top1(self, rule: str) -> list[float | None]:
        """Return the top-1, or mAP, of a head rule after each epoch, percent."""
        return [(epoch["heads"] or {}).get(rule) for epoch in self.epochs]

    @property
    def heads(self) -> list[str]:
        """The head rules that were scored after every epoch; none for a model with one head."""
        scored = (self.epochs[0].get("heads") or {}) if self.epochs else {}
        return [rule for rule in HEAD_TITLES if rule in scored]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """One result of the report."""

    result: EvalResult
    facts: Facts
    """Model, head rule, preprocessing."""
    galleries: Mapping[str, Sequence[Example]]
    """Examples by the keys of `GALLERY_TITLES`."""

    @property
    def subject(self) -> EvalSubject:
        """The model and the images."""
        assert self.result.subject is not None
        return self.result.subject

    @property
    def preds(self) -> NDArray[np.int64]:
        """Predicted classes of the data, [N], `OUTSIDE` for other classes."""
        preds = self.result.data_preds.numpy()
        return np.where(preds == self.result.num_classes, OUTSIDE, preds)

    def get_outside_title(self, row: int) -> str:
        """Return the title of a prediction that is `OUTSIDE`."""
        return self.subject.get_title(int(self.result.preds[row]))


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a report shows."""

    title: str
    created: str
    """Date and time."""
    version: str
    """Of deitctl."""
    command: str
    """The command line that makes the report again."""
    facts: Facts
    """Data, device, speed."""
    sections: Sequence[ModelSection]
    """One or more results on the same images."""
    comparisons: Sequence[PairedComparison] = ()
    curves: Curves | None = None
    """The log of the run that trained the model."""


def count_pairs(
    section: ModelSection,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of label and prediction that occur.

    Labels [P], predictions [P] (`OUTSIDE` last), images [P].
    """
    columns = section.result.num_classes + 1
    pairs, images = np.unique(
        # One integer a pair, because a dense matrix of K classes has K * K cells: a million for
        # ImageNet.
        section.result.labels.numpy() * columns + section.result.data_preds.numpy(),
        return_counts=True,
    )
    labels, preds = np.divmod(pairs, columns)
    return labels, np.where(preds == columns - 1, OUTSIDE, preds), images


def list_confusions(section: ModelSection, limit: int) -> list[tuple[int, int, str, int]]:
    """Return the most frequent confusions.

    Of each its label, prediction, the prediction's title if it is `OUTSIDE`, images.
    """
    result, classes = section.result, section.result.num_classes
    # Unlike in the result's own list, other classes are distinct: they follow the data's, numbered
    # as the model's.
    preds = result.data_preds.numpy()
    preds = np.where(preds == classes, classes + result.preds.numpy(), preds)
    return [
        (label, pred, "", count)
        if pred < classes
        else (label, OUTSIDE, section.subject.get_title(pred - classes), count)
        for label, pred, count in count_confusions(result.labels.numpy(), preds, limit)
    ]


def count_classes(section: ModelSection) -> tuple[NDArray[np.int64], ...]:
    """Return each class's images, correct predictions, and images predicted as it, [K] each.

    Recall is correct / images, precision correct / predicted, F1 twice correct / (images +
    predicted).
    """
    result = section.result
    labels = result.labels.numpy()
    return tuple(
        np.bincount(values, minlength=result.num_classes)[: result.num_classes]
        for values in (labels, labels[result.correct.numpy()], result.data_preds.numpy())
    )
