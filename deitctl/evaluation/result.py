"""Results of evaluations: the metrics, and per image tensors that are not in the JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from deitctl.evaluation.calibration import Calibration
from deitctl.evaluation.images import describe_images
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.metrics import ClassScore, ReliabilityBin
from deitctl.evaluation.subject import EvalSubject
from deitctl.inference.classifier import ScoredClass
from deitctl.models.vit import HeadLogits
from deitctl.records import hidden

OUTSIDE_NAME = "a class that the data does not have"


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were predicted as another."""

    label: str
    """Class that the images are labeled with."""
    predicted: str
    """Class that was predicted."""
    num_images: int
    """How many images."""


@dataclass(frozen=True)
class RealLabelScore:
    """Accuracy by ReaL labels (Beyer et al. 2020)."""

    num_images: int
    """Images that have such labels."""
    top1: float
    """Percent of them whose prediction is one of their labels."""
    top5: float | None
    """Percent of them with one of their labels among the five likeliest classes; null if the model
    has no more than five."""


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One image under one model: a line of `--predictions`."""

    model: str
    """Model, as it was named."""
    protocol: str
    """Preprocessing protocol."""
    input: str
    """Path or name of the image."""
    label: str | None = None
    """Class that it is labeled with; null if it could not be read, like the following."""
    predicted: ScoredClass | None = None
    """Predicted class of the model, with its probability."""
    correct: bool | None = None
    """Whether the prediction is right."""
    loss: float | None = None
    """Cross-entropy, nats."""
    error: str | None = None
    """Why the image could not be read; null if it could."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseResult:
    """One model under one protocol on one set of images, whatever the task."""

    model: str = ""
    """Model, as it was named; published weights by timm's name."""
    name: str = ""
    """What tells this result from the others of the same evaluation."""
    data: str = ""
    """Data set, as it was named."""
    split: str = ""
    """Split that was evaluated: train, val, test or all. Of data that has none, `val` is what the
    model's run held out."""
    protocol: str = ""
    """Preprocessing protocol: native, deit, timm or hf."""
    num_images: int
    """Images that were evaluated."""
    num_train_images: int | None = None
    """Images among them that the model was trained on; null if that is not known: the model is
    of no run, or the data is not its run's."""
    unreadable: list[str]
    """Images that could not be read and are left out."""
    num_classes: int
    """Classes of the data."""
    head: str
    """Head rule of the predictions; `cls` for a model with one head, an exported file's own."""
    temperature: float
    """What the logits were divided by before the softmax, or of several labels the sigmoid."""
    images_per_second: float
    """Speed of the whole pass: reading, preprocessing and forward passes of all models in it."""

    read_errors: list[tuple[str, str]] = hidden(repr=False)
    """Name and reason of each image that could not be read."""
    indices: Tensor = hidden(repr=False)
    """Index of each readable image in the dataset, [N], ascending."""
    subject: EvalSubject | None = hidden(repr=False, default=None)
    """The model and the images; None in training, where it would keep the model alive."""

    def describe_images(self) -> str:
        """Return which images were evaluated, in words."""
        return describe_images(self.num_images, self.data, self.split, self.num_train_images)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalResult(BaseResult):
    """One model under one protocol on one set of images; accuracies in percent.

    `validate` fills metrics and tensors, which is all that training needs. `evaluate_models` adds
    model, data and protocol, intervals, calibration and per-class scores.
    """

    top1: float
    """Top-1 accuracy of the head rule `head`."""
    top1_interval: Interval
    """95 % interval of `top1` (Wilson 1927)."""
    top5: float | None
    """Top-5 accuracy of the head rule `head`; null if the model has no more than five classes."""
    top5_interval: Interval | None
    """95 % interval of `top5` (Wilson 1927)."""
    loss: float
    """Mean cross-entropy, nats, after the model's temperature."""
    loss_interval: Interval | None = None
    """95 % interval of `loss`, by bootstrap over the images (Efron 1979)."""
    ece: float
    """Expected calibration error, 0..1, after the model's temperature."""
    balanced_accuracy: float
    """Mean recall over the classes that have images, percent: each class counts alike."""
    balanced_accuracy_interval: Interval | None = None
    """95 % interval of `balanced_accuracy`, by bootstrap over the images."""
    macro_f1: float
    """Mean F1 over the classes that have images, percent."""
    macro_f1_interval: Interval | None = None
    """95 % interval of `macro_f1`, by bootstrap over the images."""
    top1_among_classes: float | None
    """Top-1 accuracy among the data's classes only; null if the model has no other classes."""
    top5_among_classes: float | None
    """Top-5 accuracy among the data's classes only; null if the model has no other classes, or the
    data no more than five."""
    real_labels: RealLabelScore | None = None
    """Accuracy by ReaL labels; null without --real-labels."""
    heads: dict[str, float] | None
    """Top-1 accuracy of each head rule; null for a model with one head."""
    head_intervals: dict[str, Interval] | None
    """95 % interval of each head rule's accuracy (Wilson 1927); null for a model with one head."""
    head_agreement: float | None
    """Percent of images with the same prediction of both heads (100 - DeiT Table 4)."""
    teacher_agreement: dict[str, float] | None
    """Percent of images with the teacher's prediction, by head rule; null without one."""
    calibration: Calibration | None = None
    """Fitted temperatures and the errors with them; null if none fits."""
    reliability: list[ReliabilityBin] = field(default_factory=list)
    """Bins of the reliability diagram that hold images."""
    confusions: list[Confusion] = field(default_factory=list)
    """The ten most frequent confusions."""
    per_class: dict[str, ClassScore] = field(default_factory=dict)
    """Images, recall, precision and F1 of each class that has images."""

    labels: Tensor = hidden(repr=False)
    """Label of each image, [N], as a class of the data."""
    targets: Tensor = hidden(repr=False)
    """Label of each image, [N], as a class of the model."""
    topk_preds: Tensor = hidden(repr=False)
    """Likeliest classes of the model, likeliest first, [N,min(5,K)]."""
    data_preds: Tensor = hidden(repr=False)
    """Predicted class as a class of the data, [N]; `num_classes` if it is none of them."""
    preds_among_classes: Tensor = hidden(repr=False)
    """Likeliest of the data's classes, [N], as a class of the data."""
    confidences: Tensor = hidden(repr=False)
    """Probability of the predicted class, [N]."""
    losses: Tensor = hidden(repr=False)
    """Cross-entropy of each image, [N]."""
    correct_by_head: dict[str, Tensor] = hidden(repr=False)
    """Whether each head rule is right, [N] each."""
    heads_differ: Tensor | None = hidden(repr=False)
    """Whether the two heads predict different classes, [N]."""
    logits: HeadLogits | None = hidden(repr=False)
    """Raw logits of each head, float32 [M,K], of the images at `logit_rows`, if they are stored."""
    logit_rows: Tensor = hidden(repr=False)
    """Which of the N images have logits, [M]: all, or a random sample to limit memory."""

    def get_score(self, select: str) -> float:
        """Return the metric that a checkpoint is selected by; higher is better, so a loss is negated.

        Args:
            select: `top1`, `balanced`, `f1` or `loss`.
        """
        return {
            "top1": self.top1,
            "balanced": self.balanced_accuracy,
            "f1": self.macro_f1,
            "loss": -self.loss,
        }[select]

    @property
    def preds(self) -> Tensor:
        """Predicted class of the model, [N]."""
        return self.topk_preds[:, 0].long()

    @property
    def correct(self) -> Tensor:
        """Whether the prediction is right, [N]."""
        return self.correct_by_head[self.head]

    def iter_images(self) -> Iterator[ImageResult]:
        """Yield the result of each image in the order of the data, then the unreadable images."""
        assert self.subject is not None
        dataset, model_config = self.subject.dataset, self.subject.model_config
        columns = (
            self.indices,
            self.labels,
            self.preds,
            self.confidences,
            self.losses,
            self.correct,
        )
        for index, label, pred, confidence, loss, correct in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            yield ImageResult(
                model=self.model,
                protocol=self.protocol,
                input=dataset.name(index),
                label=dataset.class_names[label],
                predicted=ScoredClass(pred, model_config.label(pred), confidence),
                correct=correct,
                loss=loss,
            )
        for name, reason in self.read_errors:
            yield ImageResult(model=self.model, protocol=self.protocol, input=name, error=reason)
