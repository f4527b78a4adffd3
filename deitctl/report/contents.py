"""What a report shows: plain data, filled in by whoever has evaluated, drawn by `html` and `figures`.

Accuracies, agreement and their intervals are in percent; confidences, scores and calibration errors in 0..1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Facts = tuple[tuple[str, str], ...]
"""Names and values to be listed, in that order."""
Interval = tuple[float, float]
"""The 95 % interval of a figure, in the figure's unit."""
HEAD_NAMES = {
    "cls": "class head",
    "dist": "distillation head",
    "avg-logits": "both, logits averaged",
    "avg-probs": "both, probabilities averaged",
}
"""The head rules, for people."""
OUTSIDE = -1
"""The place of an answer that is no class of the data."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images that were evaluated; one object may serve several `Evaluated`.

    Args:
        name: what was evaluated on, for people.
        classes: names of its K classes, for people.
        names: of the N images that could be read, in the order of every other array.
        labels: the class of each, [N] in 0..K-1.
        unreadable: name and reason of each image left out.
    """

    name: str
    classes: Sequence[str]
    names: Sequence[str]
    labels: NDArray[np.int64]
    unreadable: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in (lower, upper], their mean confidence and their accuracy, all in 0..1.

    In a bin of no images the last two mean nothing.
    """

    lower: float
    upper: float
    num_images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The same answers, their logits divided by one temperature (Guo et al. 2017, §4.2).

    Args:
        temperature: the divisor.
        ece: the expected calibration error that is left, 0..1.
        reliability: the bins afterwards, as many as before.
        note: on what the temperature was fitted, for people.
    """

    temperature: float
    ece: float
    reliability: Sequence[Bin]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image to be looked at.

    Args:
        index: its place among the N images of the data.
        guesses: the likeliest classes and their scores, best first; a class of the data by its name in `Data.classes`.
        thumbnail: JPEG, PNG or WebP, as `examples.thumbnail` makes it.
        maps: attention maps by what attends ("class token", "distillation token"): images of the thumbnail's shape that
            are laid over it, opaque or not.
        heads: what each head says and how surely, by the head's name, where there are two.
    """

    index: int
    guesses: Sequence[tuple[str, float]]
    thumbnail: bytes
    maps: Mapping[str, bytes] | None = None
    heads: Mapping[str, tuple[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One model, in one preprocessing, on one set of images.

    Args:
        name: tells it from the others, for people: "deit_tiny", "deit_tiny, protocol hf".
        data: the images.
        facts: what there is to know of it alone: model, preprocessing, head rule, precision.
        predicted: the answers in the data's classes, [N], `OUTSIDE` for any other class.
        outside: by image, the name of the class of each answer that is `OUTSIDE`.
        confidences: the probability of each answer, [N] in 0..1.
        top1: percent.
        top5: percent.
        loss: the mean cross-entropy, nats.
        ece: the expected calibration error, 0..1.
        reliability: the bins of the reliability diagram, over all of 0..1 in order.
        calibrated: what a temperature makes of it, if one is known.
        top1_among: percent right among the data's classes alone, None where the model knows no other.
        heads: percent right by each head rule, None for a model with one head.
        agreement: percent of images on which the two heads agree.
        intervals: bootstrap intervals by the field's name (`top1`, `ece`, ...) and by the head rule's.
        mistakes: the most confident mistakes, worst first.
        unsure: the least sure hits, least sure first.
        disagreements: images on which the two heads disagree.
    """

    name: str
    data: Data
    facts: Facts = ()
    predicted: NDArray[np.int64]
    outside: Mapping[int, str]
    confidences: NDArray[np.floating[Any]]
    top1: float
    top5: float
    loss: float
    ece: float
    reliability: Sequence[Bin]
    calibrated: Calibrated | None = None
    top1_among: float | None = None
    heads: Mapping[str, float] | None = None
    agreement: float | None = None
    intervals: Mapping[str, Interval]
    mistakes: Sequence[Example] = ()
    unsure: Sequence[Example] = ()
    disagreements: Sequence[Example] = ()

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Say for each image whether it was answered right, [N]."""
        return np.equal(self.predicted, self.data.labels)

    @property
    def examples(self) -> dict[str, Sequence[Example]]:
        """Return the galleries by their names."""
        return {
            "mistakes": self.mistakes,
            "unsure": self.unsure,
            "disagreements": self.disagreements,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two evaluations of the same images, image by image.

    Args:
        a: the name of one `Evaluated`.
        b: the name of the other.
        difference: top-1 of `a` minus that of `b`, points.
        interval: its interval, from resampling images.
        only_a: images that `a` alone has right.
        only_b: images that `b` alone has right.
        p_value: of McNemar's exact test: how often chance alone would part them as far.
        among_classes: whether answers were taken among the data's classes alone.
    """

    a: str
    b: str
    difference: float
    interval: Interval
    only_a: int
    only_b: int
    p_value: float
    among_classes: bool = False


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The log of a run: `Run.records("step")` and `Run.records("epoch")` of `training/run_dir.py`.

    Args:
        run: the run's name.
        steps: the step records: `step`, `epoch`, `lr`, and the parts of the loss under any names.
        epochs: the epoch records: `epoch`, `step`, `val_loss`, `top1`, `heads`.
        teacher_top1: the teacher's accuracy, percent.
    """

    run: str
    steps: Sequence[Mapping[str, Any]]
    epochs: Sequence[Mapping[str, Any]]
    teacher_top1: float | None = None

    @property
    def losses(self) -> list[str]:
        """Return the names of the parts of the loss."""
        others = ("kind", "step", "epoch", "lr", "grad_norm")
        return [name for name in (self.steps[0] if self.steps else {}) if name not in others]

    @property
    def heads(self) -> list[str]:
        """Return the head rules that were scored after every epoch; none for a model with one head."""
        scored = (self.epochs[0].get("heads") or {}) if self.epochs else {}
        return [rule for rule in HEAD_NAMES if rule in scored]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a report says.

    Args:
        title: its heading.
        created: date and time, as they are to be read.
        version: of deitctl.
        command: what makes it again, as a shell takes it.
        facts: what there is to know of all that was evaluated: data, device, seconds.
        evaluated: one, or several side by side; their names differ.
        comparisons: pairs of them.
        curves: of the run that made the model, if it is a run.
    """

    title: str
    created: str
    version: str
    command: str
    facts: Facts = ()
    evaluated: Sequence[Evaluated]
    comparisons: Sequence[Comparison] = ()
    curves: Curves | None = None


def confusion(
    evaluated: Evaluated,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count the pairs of label and answer that occur: labels [P], answers [P] (`OUTSIDE` last), images [P]."""
    classes = len(evaluated.data.classes)
    column = np.where(evaluated.predicted == OUTSIDE, classes, evaluated.predicted)
    pairs, images = np.unique(evaluated.data.labels * (classes + 1) + column, return_counts=True)
    labels, answers = np.divmod(pairs, classes + 1)
    return labels, np.where(answers == classes, OUTSIDE, answers), images


def most_confused(evaluated: Evaluated, most: int) -> list[tuple[int, int, str, int]]:
    """Return what is most often taken for what: label, answer, the answer's name if it is `OUTSIDE`, images."""
    wrong = np.flatnonzero(~evaluated.correct).tolist()
    labels, answers = evaluated.data.labels, evaluated.predicted
    pairs = Counter((int(labels[n]), int(answers[n]), evaluated.outside.get(n, "")) for n in wrong)
    return [
        (*pair, count)
        for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
    ]


def per_class(
    evaluated: Evaluated,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count for each class its images, those answered right, and the answers that name it, each [K].

    Recall is right / images, precision right / answers, F1 twice right / (images + answers).
    """
    classes, labels = len(evaluated.data.classes), evaluated.data.labels
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[evaluated.correct], minlength=classes)
    answers = np.bincount(evaluated.predicted[evaluated.predicted != OUTSIDE], minlength=classes)
    return images, right, answers
