"""What a run ends with; the JSON that `train` and `distill` print follows from the fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.distillation.preflight import Preflight
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.multilabel_result import Result
from deitctl.records import hidden
from deitctl.training.trend import Trend

MAX_NUMBER = 1e15
"""Of percent and seconds that are read again."""


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """The epoch whose weights were saved."""

    epoch: int
    """Counted from 1; 0 if none was better than nothing."""
    select: str
    """Metric that it was selected by: top1, balanced, f1, map or loss."""
    score: float
    """That metric of the saved weights on the validation images in fp32, percent; higher is better,
    so a loss has a minus."""
    top1: float | None
    """Top-1 of the same, percent; null of several labels an image, as the two below."""
    top1_interval: Interval | None
    """95 % interval of `top1` (Wilson 1927)."""
    top5: float | None
    """Top-5 of the same, percent; null if there are no more than five classes."""
    balanced_accuracy: float | None
    """Mean recall over the classes, percent; null of several labels an image."""
    macro_f1: float
    """Mean F1 over the classes, percent; of several labels an image cross-fitted, see `eval`."""
    map: float | None
    """mAP of several labels an image, percent; null of one label, and where no validation image has a
    label."""
    micro_f1: float | None
    """Micro F1 of the same, percent."""
    sample_f1: float | None
    """Mean F1 over the images of the same, percent."""
    weights: str
    """`model`, or `ema` where the moving average validated at least as well."""


@dataclass(frozen=True, kw_only=True)
class FinalEpoch:
    """The last epoch, validated in fp32 as the best one is."""

    epoch: int
    """Counted from 1."""
    top1: float | None
    """Top-1, percent; null of several labels an image."""
    top5: float | None
    """Top-5, percent; null if there are no more than five classes."""
    balanced_accuracy: float | None
    """Mean recall over the classes, percent; null of several labels an image."""
    macro_f1: float | None
    """Mean F1 over the classes, percent."""
    map: float | None
    """mAP of several labels an image, percent; null of one label, and where no validation image has a
    label."""
    val_loss: float
    """Cross-entropy of the validation images, of several labels binary."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run ends with."""

    run: Path
    """The run folder: model, configuration, log and checkpoint."""
    epochs: int
    """Epochs done."""
    images_seen: int
    """Images of all steps, an image once for each time it was seen."""
    num_val_images: int
    """Validation images, none of which was trained on, that the figures are of."""
    best: BestEpoch
    """The epoch whose weights were saved."""
    final: FinalEpoch
    """The last epoch."""
    trend: Trend
    """Whether the last epochs were still improving."""
    heads: dict[str, float] | None
    """Top-1 of each head rule, of several labels an image mAP, percent; null for a model with one head."""
    head_agreement: float | None
    """Percent of images on which the two heads agree (100 minus DeiT Table 4's disagreement); of
    several labels an image the micro F1 of their labels."""
    teacher_agreement: dict[str, float] | None
    """Percent of images on which each head rule agrees with the teacher, of several labels micro F1; null
    without one."""
    has_uneven_classes: bool
    """Whether a class of the validation images has at least twice the images of another."""
    thresholds: dict[str, float] | None
    """Of several labels an image: the probability from which each class is predicted, fitted to the
    validation images and kept in the model's config.json; null of one label."""
    teacher: Preflight | None
    """The teacher, of several the first, as it was checked before the first step; null without one."""
    more_teachers: list[Preflight]
    """The others."""
    unreadable: list[str]
    """Images that could not be read and were left out."""
    stopped: str | None
    """Why it ended before its last epoch: `patience`, or `callback` of the Python API; null: it did not."""
    seconds: float
    """Duration of the run, over all its sessions."""
    evaluation: Result = hidden()
    """Of the saved weights on the validation images, in fp32."""
    unreadable_reasons: dict[str, str] = hidden()
    """Reason for each image of `unreadable`."""


def is_result(record: Any) -> bool:
    """Return whether JSON values have what a comparison of runs reads of a `TrainResult`."""
    if not isinstance(record, dict):
        return False
    best, teacher = record.get("best"), record.get("teacher")
    by_head = [v for v in (record.get("heads"), record.get("teacher_agreement")) if v is not None]
    numbers = [record.get("seconds")]
    if record.get("head_agreement") is not None:
        numbers.append(record["head_agreement"])
    if teacher is not None:
        if not isinstance(teacher, dict) or not isinstance(teacher.get("name"), str):
            return False
        numbers += _list_accuracy(teacher)
    if not isinstance(best, dict) or not all(isinstance(values, dict) for values in by_head):
        return False
    numbers += [*_list_accuracy(best), *(n for values in by_head for n in values.values())]
    return isinstance(record.get("run"), str) and all(map(_is_number, numbers))


def _list_accuracy(record: dict[str, Any]) -> list[Any]:
    """Return the top-1, or the mAP of several labels an image, which have none; nothing where no
    validation image has a label, so that neither is defined."""
    if record.keys() >= {"top1", "map"} and record["top1"] is None is record["map"]:
        return []
    return [record.get("map") if record.get("top1") is None else record["top1"]]


def _is_number(value: Any) -> bool:
    # Compared, because NaN is in no range, and an integer may be too large for a float.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and 0 <= value <= MAX_NUMBER
