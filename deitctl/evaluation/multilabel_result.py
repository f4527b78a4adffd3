"""The result of evaluating a model on images of several labels each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deitctl.evaluation.calibration import SigmoidCalibration
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.multilabel import Labels, Scores
from deitctl.evaluation.result import BaseResult, Confusion, EvalResult
from deitctl.models.tasks import choose_labels
from deitctl.models.vit import HeadLogits
from deitctl.records import hidden

MIN_SAME = 0.9
"""Of the classes: other numerics, of bf16 for example, fit some otherwise."""


@dataclass(frozen=True)
class LabelScore:
    """One class of data with several labels an image."""

    num_images: int
    """Images that have the class."""
    prevalence: float
    """Percent of all images that have it."""
    average_precision: float | None
    """Average precision, percent; null if no image has the class."""
    threshold: float
    """Probability from which the class is predicted, 0..1: the model's, or else the fitted one."""
    recall: float
    """Percent of its images that are predicted to have it."""
    precision: float
    """Percent of the images predicted to have it that do; 0 if there are none."""
    f1: float
    """Harmonic mean of recall and precision, percent."""
    ece: float
    """Expected calibration error of its probability, 0..1."""
    title: str
    """Its name for people, which the key is not where classes are WordNet ids."""
    label: int = hidden()
    """Index of the class in the data."""


@dataclass(frozen=True, kw_only=True)
class FittedThresholds:
    """The threshold of each class that maximizes its F1 on these images, and how well such ones do."""

    thresholds: dict[str, float]
    """By class of the data: the probability from which it is predicted, 0..1, fitted to all images."""
    macro_f1: float
    """Macro F1, cross-fitted: each fifth of the images with thresholds of the others. Percent."""
    micro_f1: float
    """Micro F1, cross-fitted likewise, percent."""
    sample_f1: float
    """Mean F1 over images, cross-fitted likewise, percent."""
    num_images: int
    """Images that the thresholds were fitted to."""
    classes_without_images: list[str]
    """Classes that no image has: they take the one threshold that maximizes the micro F1 of all."""


@dataclass(frozen=True, kw_only=True)
class MultilabelImageResult:
    """One image under one model: a line of `--predictions` where images have several labels."""

    model: str
    """Model, as it was named."""
    protocol: str
    """Preprocessing protocol."""
    input: str
    """Path or name of the image."""
    labels: list[str] | None = None
    """Classes that it is labeled with; null if it could not be read, like the following."""
    predicted: list[str] | None = None
    """Classes whose probability reaches their threshold."""
    correct: bool | None = None
    """Whether these are the same."""
    probabilities: dict[str, float] | None = None
    """Probability of each class of the data, 0..1."""
    loss: float | None = None
    """Mean binary cross-entropy over the classes, nats."""
    error: str | None = None
    """Why the image could not be read; null if it could."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MultilabelResult(BaseResult):
    """One model under one protocol on images of several labels each; scores in percent.

    `validate` fills metrics and arrays, which is all that training needs. `evaluate_models` adds
    model, data and protocol, intervals, calibration and per-class scores.
    """

    map: float | None
    """Mean average precision over the classes that have images (macro mAP) of the head rule `head`;
    null if no class has any."""
    map_interval: Interval | None = None
    """95 % interval of `map`, by bootstrap over the images (Efron 1979)."""
    micro_ap: float | None
    """Average precision of all pairs of image and class in one ranking; null without labels."""
    thresholds_from: str
    """Where the thresholds of the F1 scores are from: `model`, or `cross-fitted`, for a model that has
    none: each fifth of the images is predicted by thresholds that are fitted to the others."""
    macro_f1: float
    """Mean F1 over the classes that have images."""
    macro_f1_interval: Interval | None = None
    """95 % interval of `macro_f1`, by bootstrap over the images, as the two below."""
    micro_f1: float
    """F1 of all pairs of image and class together."""
    micro_f1_interval: Interval | None = None
    """95 % interval of `micro_f1`."""
    sample_f1: float
    """Mean over the images of the F1 of their labels; 100 for one without, of which none is predicted."""
    sample_f1_interval: Interval | None = None
    """95 % interval of `sample_f1`."""
    exact_match: float
    """Percent of images whose labels are all predicted, and no other."""
    loss: float
    """Mean binary cross-entropy over images and classes, nats, after the model's temperature."""
    loss_interval: Interval | None = None
    """95 % interval of `loss`, by bootstrap over the images."""
    ece: float
    """Mean over the classes of the expected calibration error of their probability, 0..1, after the
    model's temperature."""
    labels_per_image: float
    """Mean number of labels of an image."""
    fitted: FittedThresholds
    """Thresholds that are fitted to these images."""
    calibration: SigmoidCalibration | None = None
    """Fitted temperatures and the errors with them; null if none fits."""
    heads: dict[str, float] | None
    """mAP of each head rule; null for a model with one head, and where no class has images."""
    head_agreement: float | None
    """Micro F1 of the classes that one head gives a probability of 0.5 or more against those of the
    other; null for a model with one head."""
    teacher_agreement: dict[str, float] | None
    """Micro F1 of the same classes of each head rule against the teacher's; null without one."""
    confusions: list[Confusion] = field(default_factory=list)
    """The ten most frequent pairs of a class that an image has and that is not predicted, and one
    that it has not and that is."""
    per_class: dict[str, LabelScore] = field(default_factory=dict)
    """Scores of each class of the data."""

    labels: Labels = hidden(repr=False)
    """Which classes of the data each image has, [N,K]."""
    probs: NDArray[np.float64] = hidden(repr=False)
    """Probability of each class, [N,K], in float64."""
    preds: Labels = hidden(repr=False)
    """Which classes each image is predicted to have, [N,K]."""
    losses: NDArray[np.float64] = hidden(repr=False)
    """Binary cross-entropy of each image, mean over classes, [N]."""
    thresholds: NDArray[np.float64] = hidden(repr=False)
    """Of each class, [K]: the model's, or those fitted to all images."""
    average_precisions: NDArray[np.float64] = hidden(repr=False)
    """Of each class, [K] in 0..1; NaN for one without images."""
    calibration_errors: NDArray[np.float64] = hidden(repr=False)
    """Of each class, [K] in 0..1."""
    scores: Scores = hidden(repr=False)
    """Fused logits of the head rule, [N,K], by which images are ranked: probabilities of large ones are
    equal."""
    logits: HeadLogits = hidden(repr=False)
    """Raw logits of each head, float32 [N,K]."""

    def get_score(self, select: str) -> float:
        """Return the metric that a checkpoint is selected by; higher is better, so a loss is negated.

        Args:
            select: `map` (0 where no class has images), `f1` or `loss`.
        """
        return {"map": self.map or 0.0, "f1": self.macro_f1, "loss": -self.loss}[select]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether all labels of an image are predicted, and no other, [N]."""
        exact: NDArray[np.bool_] = (self.preds == self.labels).all(axis=1)
        return exact

    @property
    def has_seen_images(self) -> bool:
        """Whether the model's thresholds were fitted to these images, so that F1 at them is too high: those
        of nine classes in ten predict of them just what thresholds do that are fitted to them."""
        if self.thresholds_from != "model" or not self.labels.any():
            return False
        fitted = choose_labels(self.probs.astype(np.float32), list(self.fitted.thresholds.values()))
        is_same = (fitted == self.preds).all(axis=0)[self.labels.any(axis=0)]
        return float(is_same.mean()) >= MIN_SAME

    def iter_images(self) -> Iterator[MultilabelImageResult]:
        """Yield the result of each image in the order of the data, then the unreadable images."""
        assert self.subject is not None
        dataset = self.subject.dataset
        names = np.array(dataset.class_names, dtype=object)
        correct = self.correct.tolist()
        for row, index in enumerate(self.indices.tolist()):
            yield MultilabelImageResult(
                model=self.model,
                protocol=self.protocol,
                input=dataset.name(index),
                labels=names[self.labels[row]].tolist(),
                predicted=names[self.preds[row]].tolist(),
                correct=correct[row],
                probabilities=dict(zip(names, self.probs[row].tolist(), strict=True)),
                loss=float(self.losses[row]),
            )
        for name, reason in self.read_errors:
            yield MultilabelImageResult(
                model=self.model, protocol=self.protocol, input=name, error=reason
            )


Result = EvalResult | MultilabelResult
"""Of either kind of labels."""
