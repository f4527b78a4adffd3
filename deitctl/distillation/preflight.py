"""The check of a teacher before it teaches: its validation accuracy, recorded as `teacher.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from deitctl.config import DistillConfig
from deitctl.data.dataset import ImageDataset
from deitctl.device import Device
from deitctl.distillation.teacher import ResolvedTeacher
from deitctl.distributed import World
from deitctl.errors import ConfigError, TeacherError
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.validate import validate
from deitctl.events import Reporter
from deitctl.models.heads import choose_head
from deitctl.models.model_config import Preprocessing
from deitctl.paths import read_json, write_json
from deitctl.records import hidden, to_object
from deitctl.settings import from_dict

RECORD = "teacher.json"
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Result of a teacher's check on the validation images, among the data's classes."""

    name: str
    """Published weights of the teacher by timm's name, or its folder, or its name if it has others."""
    top1: float
    """Top-1 accuracy, percent."""
    top5: float | None
    """Top-5 accuracy, percent; null if the data has no more than five classes."""
    mean_recall: float
    """Mean recall over the classes, percent."""
    num_images: int
    """Validation images that could be read."""
    class_match: str
    """How the data's classes match the teacher's: `same`, `permuted`, `subset` or `numbers`."""
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
    val_predictions: tuple[int, ...] = hidden()
    """Predicted class of each validation image, -1 for one that could not be read."""


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
        batch_size=BATCH_SIZE,
        workers=workers,
        reporter=reporter,
        label=f"check teacher {resolved.name}",
        world=world,
    )
    predictions = torch.full((len(val.labels),), -1)
    predictions[result.indices] = result.preds_among_classes
    return Preflight(
        name=resolved.name,
        top1=result.top1 if result.top1_among_classes is None else result.top1_among_classes,
        top5=result.top5 if result.top1_among_classes is None else result.top5_among_classes,
        mean_recall=compute_mean_recall(result),
        num_images=result.num_images,
        class_match=match.kind,
        class_rows=None if match.kind == "same" else match.rows,
        finetuned=resolved.finetuned,
        folder=resolved.folder,
        preprocessing=model_config.preprocessing,
        head=head,
        weights_fingerprint=weights_fingerprint,
        val_fingerprint=val_fingerprint,
        val_predictions=tuple(predictions.tolist()),
    )


def compute_mean_recall(result: EvalResult) -> float:
    """Return the mean over the classes of their recall among the data's classes, percent."""
    correct = (result.preds_among_classes == result.labels).double()
    recalls = [correct[result.labels == c].mean() for c in set(result.labels.tolist())]
    return 100 * float(torch.stack(recalls).mean())


def require_above_chance(distill: DistillConfig, preflight: Preflight, val: ImageDataset) -> None:
    """Raise `TeacherError` for a teacher at or near chance, unless `allow_weak_teacher` is set.

    It is judged by mean recall, whose chance is 1 / K however uneven the classes are: always
    predicting the largest class gains nothing. It must exceed chance by as much again or by a
    tenth, and by two standard errors.
    """
    chance = 1 / len(set(val.labels.tolist()))
    standard_error = math.sqrt(chance * (1 - chance) / max(1, preflight.num_images))
    required = min(chance + max(min(chance, 0.1), 2 * standard_error), 1.0)
    if preflight.mean_recall / 100 < required and not distill.allow_weak_teacher:
        raise TeacherError(
            f"{distill.teacher} has a top-1 of {preflight.top1:.1f} % on the validation set (mean recall "
            f"{preflight.mean_recall:.1f} %), at or near chance ({100 * chance:.1f} %).",
            "Check its weights and classes, or pass --allow-weak-teacher.",
        )


def summarize_preflight(preflight: Preflight, detail: str) -> str:
    """Return one sentence for the log; `detail` says how the classes match."""
    finetuning = {"no": "", "scratch": "trained from scratch, "}.get(
        preflight.finetuned, f"fine-tuned ({preflight.finetuned}), "
    )
    top5 = "" if preflight.top5 is None else f", top-5 {preflight.top5:.2f} %"
    return (
        f"Teacher {preflight.name}: top-1 {preflight.top1:.2f} %{top5} on "
        f"{preflight.num_images} validation images, {finetuning}{detail}, at {preflight.preprocessing.img_size} "
        "pixels with its own preprocessing."
    )


def write_preflight(path: Path, preflight: Preflight) -> None:
    """Write a record for `read_preflight`, with what the JSON of a run leaves out."""
    write_json(path, {**to_object(preflight), "val_predictions": preflight.val_predictions})


def read_preflight(path: Path, num_classes: int, num_val_images: int) -> Preflight | None:
    """Read a record; None if there is none, or if it is not one of such data."""
    try:
        values = {k: v for k, v in read_json(path).items() if k != "schema_version"}
        preflight = from_dict(Preflight, values, str(path))
    except (OSError, ValueError, AttributeError, ConfigError):
        return None
    rows, predictions = preflight.class_rows, preflight.val_predictions
    is_valid = (
        all(0 <= v <= 100 for v in (preflight.top1, preflight.top5 or 0, preflight.mean_recall))
        and (rows is None or len(rows) == num_classes)
        and len(predictions) == num_val_images
        and all(-1 <= prediction < num_classes for prediction in predictions)
    )
    return preflight if is_valid else None
