"""The check of a teacher before it teaches: its validation accuracy, and how often its decision is the label on
training views; recorded as `teacher.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import rng
from deitctl.config import DistillConfig
from deitctl.data.dataset import ImageDataset
from deitctl.device import Device
from deitctl.distillation.resolve import ResolvedTeacher
from deitctl.distillation.view_sample import ECHO, ViewLogits, measure_label_agreement
from deitctl.distributed import World
from deitctl.errors import ConfigError, TeacherError
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel import (
    Labels,
    Scores,
    average_precision_by_class,
    mean_average_precision,
)
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter
from deitctl.models.heads import choose_head
from deitctl.models.model_config import Preprocessing
from deitctl.models.tasks import DEFAULT_THRESHOLD
from deitctl.paths import read_json, write_json
from deitctl.records import hidden, to_object
from deitctl.settings import from_dict
from deitctl.sizes import format_size

RECORD = "teacher.json"
BATCH_SIZE = 32
"""On a CPU; on an accelerator by its memory."""
NO_CLASSES = "none"
"""Match of a teacher that lacks classes of the data, or has no classifier: its features alone are learned."""
CHANCE_IMAGES, CHANCE_DRAWS = 2_000, 10
"""Images and shuffles of them by which the mAP of chance is estimated."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Result of a teacher's check on the validation images, among the data's classes."""

    name: str
    """Published weights of the teacher by timm's name, or its folder, or its name if it has others."""
    top1: float | None
    """Top-1 accuracy, percent; null where images have several labels, or where the teacher's features alone
    are learned and it lacks the data's classes, as the two below."""
    top5: float | None
    """Top-5 accuracy, percent; null also if the data has no more than five classes."""
    mean_recall: float | None
    """Mean recall over the classes, percent."""
    map: float | None = None
    """Mean average precision over the classes, percent; null where an image has one label, and where none
    has any."""
    map_chance: float | None = None
    """Mean of it with its scores given to other images at random, percent; null likewise."""
    map_chance_std: float | None = None
    """Standard deviation of the same, percentage points; null likewise."""
    num_images: int
    """Validation images that could be read."""
    class_match: str
    """How the data's classes match the teacher's: `same`, `permuted`, `subset` or `numbers`; `none` of a
    teacher that lacks some, whose features alone are learned."""
    class_rows: tuple[int, ...] | None
    """For each class of the data, its logit of the teacher; null if the classes are the same."""
    finetuned: str
    """`no`, or how the teacher was fine-tuned on the data: `head`, `full` or `scratch`."""
    folder: str
    """Folder of the fine-tuned teacher, else empty."""
    preprocessing: Preprocessing
    """The teacher's own preprocessing, with which it was checked."""
    head: str
    """Rule that fused its heads."""
    weights_fingerprint: str
    """Hash of its parameters and buffers."""
    val_fingerprint: str
    """Hash of the validation images."""
    label_agreement: float | None = None
    """Percent of sampled training views on which its decision is the image's label, of several labels all
    of them and no other; null where it was not measured, as the two below."""
    num_views_sampled: int | None = None
    """Sampled training views, each of another image."""
    mean_entropy: float | None = None
    """Mean entropy of its probabilities on them at temperature 1, nats, of several labels the mean over the
    classes; null also where they were read from a cache of hard labels."""
    val_predictions: tuple[int, ...] = hidden()
    """Predicted class of each validation image, -1 for one that could not be read; of several labels
    none."""
    val_label_bits: tuple[str, ...] = hidden(default=())
    """Of several labels, the bits of each image's predicted classes in hexadecimal, class 0 the lowest;
    empty for one that could not be read."""

    @property
    def is_multilabel(self) -> bool:
        """Whether images have several labels."""
        return self.top1 is None and self.has_classes

    @property
    def has_classes(self) -> bool:
        """Whether it has the data's classes, and so predictions."""
        return self.class_match != NO_CLASSES

    def list_predictions(self, num_classes: int) -> Tensor:
        """Return the predicted class of each validation image, [N]; of several labels [N,K], 1 for a
        predicted class and 0 for others; -1 for an image that could not be read."""
        if not self.is_multilabel:
            return torch.tensor(self.val_predictions)
        rows = [_read_bits(bits, num_classes) for bits in self.val_label_bits]
        return torch.tensor(rows, dtype=torch.int8).reshape(len(rows), num_classes)


def check_teacher(
    resolved: ResolvedTeacher,
    val: ImageDataset,
    *,
    weights_fingerprint: str,
    val_fingerprint: str,
    device: Device,
    workers: int,
    reporter: Reporter,
    world: World,
) -> Preflight:
    """Score a teacher, which is on `device`, on the validation images in its own preprocessing."""
    model_config, match = resolved.loaded.model_config, resolved.match
    if match is None:
        return Preflight(
            name=resolved.name,
            top1=None,
            top5=None,
            mean_recall=None,
            num_images=0,
            class_match=NO_CLASSES,
            class_rows=None,
            finetuned=resolved.finetuned,
            folder=resolved.folder,
            preprocessing=model_config.preprocessing,
            head="cls",
            weights_fingerprint=weights_fingerprint,
            val_fingerprint=val_fingerprint,
            val_predictions=(),
        )
    head = choose_head("auto", model_config.head, resolved.loaded.model)
    eval_model = EvalModel(
        model=resolved.loaded.model,
        preprocessing=model_config.preprocessing,
        rows=match.rows,
        head=head,
    )
    (result,) = validate(
        [eval_model],
        val,
        device=device,
        batch_size=BATCH_SIZE if device.is_synchronous else None,
        workers=workers,
        reporter=reporter,
        label=f"check teacher {resolved.name}",
        world=world,
    )
    return Preflight(
        name=resolved.name,
        **_score(result, len(val.labels)),
        num_images=result.num_images,
        class_match=match.kind,
        class_rows=None if match.kind == "same" else match.rows,
        finetuned=resolved.finetuned,
        folder=resolved.folder,
        preprocessing=model_config.preprocessing,
        head=head,
        weights_fingerprint=weights_fingerprint,
        val_fingerprint=val_fingerprint,
    )


def _score(result: EvalResult | MultilabelResult, num_images: int) -> dict[str, Any]:
    """Return the accuracies and predictions of a `Preflight`, among the data's classes."""
    indices = result.indices.tolist()
    if isinstance(result, MultilabelResult):
        label_bits = [""] * num_images
        for index, row in zip(indices, result.probs >= DEFAULT_THRESHOLD, strict=True):
            label_bits[index] = _write_bits(row)
        is_defined = result.map is not None
        chance, std = estimate_chance(result.labels, result.scores) if is_defined else (0.0, 0.0)
        return {
            "top1": None,
            "top5": None,
            "mean_recall": None,
            "map": result.map,
            "map_chance": 100 * chance if is_defined else None,
            "map_chance_std": 100 * std if is_defined else None,
            "val_predictions": (),
            "val_label_bits": tuple(label_bits),
        }
    predictions = [-1] * num_images
    for index, prediction in zip(indices, result.preds_among_classes.tolist(), strict=True):
        predictions[index] = prediction
    is_whole = result.top1_among_classes is None
    return {
        "top1": result.top1 if is_whole else result.top1_among_classes,
        "top5": result.top5 if is_whole else result.top5_among_classes,
        "mean_recall": compute_mean_recall(result),
        "val_predictions": tuple(predictions),
    }


def _write_bits(row: NDArray[np.bool_]) -> str:
    return np.packbits(row, bitorder="little").tobytes().hex()


def _read_bits(text: str, num_classes: int) -> list[int]:
    """Return the bits of each class; -1 for all of an image that could not be read."""
    if not text:
        return [-1] * num_classes
    data = np.frombuffer(bytes.fromhex(text), np.uint8)
    return np.unpackbits(data, bitorder="little", count=num_classes).tolist()


def estimate_chance(labels: Labels, scores: Scores) -> tuple[float, float]:
    """Return mean and standard deviation of the mean average precision, 0..1, of the same scores given
    to other images at random.

    The mean is a little above the classes' share of the images, the more so the fewer have a class.

    Args:
        labels: which classes each image has, [N,K].
        scores: of each class, [N,K].
    """
    draw = rng.generator("preflight-chance")
    chosen = draw.permutation(len(labels))[:CHANCE_IMAGES]
    labels, scores = labels[chosen], scores[chosen]
    values = []
    for _ in range(CHANCE_DRAWS):
        shuffled = scores[draw.permutation(len(scores))]
        values.append(mean_average_precision(average_precision_by_class(labels, shuffled)))
    return float(np.nan_to_num(np.mean(values))), float(np.nan_to_num(np.std(values, ddof=1)))


def compute_mean_recall(result: EvalResult) -> float:
    """Return the mean over the classes of their recall among the data's classes, percent."""
    correct = (result.preds_among_classes == result.labels).double()
    recalls = [correct[result.labels == c].mean() for c in set(result.labels.tolist())]
    return 100 * float(torch.stack(recalls).mean())


def require_above_chance(distill: DistillConfig, preflight: Preflight, val: ImageDataset) -> None:
    """Raise `TeacherError` for a teacher at or near chance, unless `allow_weak_teacher` is set.

    It is judged by mean recall, whose chance is 1 / K however uneven the classes are: always
    predicting the largest class gains nothing. Of several labels it is mean average precision, whose
    chance is that of its own scores on other images. It must exceed chance by as much again or by a
    tenth, and by two standard errors. Where no validation image has a label, nothing can be judged.
    """
    if not preflight.has_classes or (preflight.is_multilabel and preflight.map is None):
        return
    if preflight.is_multilabel:
        score, chance = (preflight.map or 0) / 100, (preflight.map_chance or 0) / 100
        standard_error = (preflight.map_chance_std or 0) / 100
        measure = f"a mAP of {100 * score:.1f} % on the validation set"
    else:
        score, chance = (preflight.mean_recall or 0) / 100, 1 / len(set(val.labels.tolist()))
        standard_error = math.sqrt(chance * (1 - chance) / max(1, preflight.num_images))
        measure = f"a top-1 of {preflight.top1:.1f} % on the validation set (mean recall {100 * score:.1f} %)"
    required = min(chance + max(min(chance, 0.1), 2 * standard_error), 1.0)
    if (score < required or not score) and not distill.allow_weak_teacher:
        raise TeacherError(
            f"{distill.teacher} has {measure}, at or near chance ({100 * chance:.1f} %).",
            "Check its weights and classes, or pass --allow-weak-teacher.",
        )


def summarize_preflight(preflight: Preflight, detail: str) -> str:
    """Return one sentence for the log; `detail` says how the classes match."""
    finetuning = {"no": "", "scratch": "trained from scratch, "}.get(
        preflight.finetuned, f"fine-tuned ({preflight.finetuned}), "
    )
    size = format_size(preflight.preprocessing.img_size)
    if not preflight.has_classes:
        return (
            f"Teacher {preflight.name}: its features alone are learned, at {size} pixels with its own "
            "preprocessing."
        )
    if preflight.map is not None:
        score = f"mAP {preflight.map:.2f} % (chance {preflight.map_chance:.1f} %)"
    elif preflight.is_multilabel:
        score = "no mAP, as no image has a label,"
    else:
        top5 = "" if preflight.top5 is None else f", top-5 {preflight.top5:.2f} %"
        score = f"top-1 {preflight.top1:.2f} %{top5}"
    return (
        f"Teacher {preflight.name}: {score} on {preflight.num_images} validation images, "
        f"{finetuning}{detail}, at {size} pixels with its own preprocessing."
        f"{_describe_agreement(preflight)}"
    )


def _describe_agreement(preflight: Preflight) -> str:
    """Return a sentence after others; empty where nothing was measured."""
    if preflight.label_agreement is None:
        return ""
    entropy = (
        "" if preflight.mean_entropy is None else f" (entropy {preflight.mean_entropy:.2f} nats)"
    )
    return (
        f" Its decision is the label on {preflight.label_agreement:.1f} % of "
        f"{preflight.num_views_sampled} training views{entropy}."
    )


def record_views(
    preflight: Preflight, views: ViewLogits, has_probabilities: bool, train: ImageDataset
) -> Preflight:
    """Return a record with what a teacher says about sampled views of the training images."""
    agreement = measure_label_agreement(views.decisions, train, views.keys)
    if agreement is None:  # no image could be read
        return preflight
    return replace(
        preflight,
        label_agreement=agreement,
        num_views_sampled=len(views.keys),
        # the last digits depend on how many processes there are
        mean_entropy=round(views.mean_entropy, 4) if has_probabilities else None,
    )


def warn_about_echo(
    distill: DistillConfig, name: str, agreement: float | None, reporter: Reporter
) -> None:
    """Warn of a teacher whose hard labels are taught, and repeat the true labels on training views.

    Args:
        distill: for its mode.
        name: of the teacher, or what stands for several.
        agreement: see `Preflight.label_agreement`.
        reporter: gets the warning.
    """
    if distill.label_mode != "hard" or agreement is None or agreement <= ECHO:
        return
    reporter.warn(
        f"Its hard labels repeat the true labels: the decision of {name} is the label on "
        f"{agreement:.1f} % of training views, so a student learns little from it that the labels do not say. "
        "--mode soft, stronger crops, or a teacher that was not trained on these images says more."
    )


def write_preflight(path: Path, preflight: Preflight) -> None:
    """Write a record for `read_preflight`, with what the JSON of a run leaves out."""
    predictions = {n: getattr(preflight, n) for n in ("val_predictions", "val_label_bits")}
    write_json(path, {**to_object(preflight), **predictions})


def read_preflight(path: Path, num_classes: int, num_val_images: int) -> Preflight | None:
    """Read a record; None if there is none, or if it is not one of such data."""
    try:
        values = {k: v for k, v in read_json(path).items() if k != "schema_version"}
        preflight = from_dict(Preflight, values, str(path))
    except (OSError, ValueError, AttributeError, ConfigError):
        return None
    rows, is_multilabel = preflight.class_rows, preflight.is_multilabel
    scores = (
        *(preflight.top1, preflight.top5, preflight.mean_recall, preflight.map),
        preflight.label_agreement,
    )
    predictions = preflight.val_label_bits if is_multilabel else preflight.val_predictions
    is_valid = (
        all(0 <= v <= 100 for v in scores if v is not None)
        and (is_multilabel or not preflight.has_classes) == (preflight.mean_recall is None)
        and (is_multilabel or preflight.map is None)
        and (preflight.map is None) == (preflight.map_chance is None)
        and (rows is None or len(rows) == num_classes)
        and len(predictions) == (num_val_images if preflight.has_classes else 0)
        and (preflight.label_agreement is None) == (preflight.num_views_sampled is None)
        and (preflight.num_views_sampled or 1) > 0
        and (preflight.mean_entropy is None or preflight.mean_entropy >= 0)
        and all(-1 <= prediction < num_classes for prediction in preflight.val_predictions)
        and all(_are_bits(bits, num_classes) for bits in preflight.val_label_bits)
    )
    return preflight if is_valid else None


def _are_bits(text: str, num_classes: int) -> bool:
    """Return whether a text is one of `Preflight.val_label_bits`."""
    return set(text) <= set("0123456789abcdef") and len(text) in (0, 2 * -(-num_classes // 8))
