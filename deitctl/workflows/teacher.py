"""A teacher is checked before it teaches: found, matched to the data's classes, scored, or first trained on the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deitctl.card import Preprocessing
from deitctl.config import DistillConfig, Recipe, TrainConfig, to_dict
from deitctl.data.classes import ClassMatch, is_imagenet, match_classes
from deitctl.data.open import BUILT_IN
from deitctl.data.sources import Source
from deitctl.device import Device
from deitctl.errors import TeacherError, WeightsNotFound
from deitctl.evaluation.evaluate import evaluate
from deitctl.events import Reporter
from deitctl.models.build import LoadedModel, load_model
from deitctl.recipes import DIGITS_CONVNET, FINETUNE
from deitctl.teacher.frozen import Teacher

TrainRun = Callable[[TrainConfig], object]
NEAR_CHANCE = 2.0  # a teacher below this many times chance knows nothing


@dataclass(frozen=True)
class Preflight:
    """What was found before the first step."""

    teacher: Teacher
    name: str
    top1: float
    top5: float
    match: ClassMatch
    trained_here: bool


def prepare_teacher(
    distill: DistillConfig, config: TrainConfig, train: Source, val: Source, seen: Preprocessing, *,
    train_run: TrainRun, device: Device, reporter: Reporter,
) -> Preflight:  # fmt: skip
    """Return a frozen teacher that has shown that it knows the data.

    A teacher of other classes is first fine-tuned on the data; on `digits`, one that cannot be downloaded is trained
    from scratch. Either is kept under runs/teachers and found again by the next run.

    Args:
        distill: which teacher.
        config: the student's run: data, seed, device.
        train: the training pictures.
        val: the validation pictures, on which the teacher is scored in its own preprocessing.
        seen: the student's preprocessing.
        train_run: trains a model into the folder its configuration names, or finishes or finds it there.
        device: where it will run.
        reporter: is told the teacher's accuracy.

    Raises:
        TeacherError: weights that cannot be had, or a teacher near chance without `force`.
    """
    loaded, trained_here = _find_teacher(distill, config, train, train_run, reporter)
    match = match_classes(loaded.card, train.class_names)
    if match is None:
        start = "" if trained_here else distill.teacher_weights
        reporter.warn(
            f"{distill.teacher} knows {loaded.card.num_classes} other classes than the data's {len(train.class_names)}: "
            "it is fine-tuned on the data first."
        )
        recipe = replace(FINETUNE, pretrained=not start)
        loaded = _train_teacher(distill.teacher, recipe, start, config, train, train_run, reporter)
        trained_here = True
        match = match_classes(loaded.card, train.class_names)
        if match is None:
            raise TeacherError(f"{distill.teacher} could not be adapted to the data's classes.")
    device.place(loaded.model)
    score = evaluate(
        loaded.model, val, loaded.card.preprocessing, rows=match.rows,
        head="cls" if loaded.card.head == "auto" else loaded.card.head,
        device=device, batch_size=32, workers=device.loader_workers(config.workers), reporter=reporter,
        label=f"check teacher {distill.teacher}",
    )  # fmt: skip
    top1 = score.top1 if score.top1_among is None else score.top1_among
    _require_knowledge(distill, top1, len(train.class_names))
    reporter.note(
        f"Teacher {distill.teacher}: top-1 {top1:.2f} % on {score.images} validation pictures, matched to {match}, "
        f"at {loaded.card.preprocessing.img_size} pixels with its own normalisation."
    )
    teacher = Teacher(loaded.model, loaded.card, match.rows, seen)
    return Preflight(teacher.to(device.torch_device), distill.teacher, top1, score.top5, match, trained_here)


def _require_knowledge(distill: DistillConfig, top1: float, classes: int) -> None:
    chance = 100 / classes
    if top1 < NEAR_CHANCE * chance and classes > NEAR_CHANCE and not distill.force:
        raise TeacherError(
            f"{distill.teacher} scores {top1:.1f} % on the validation set, near chance ({chance:.1f} %): it has nothing to teach.",
            "Check its weights and classes, or pass --force-teacher.",
        )


def _find_teacher(
    distill: DistillConfig, config: TrainConfig, train: Source, train_run: TrainRun, reporter: Reporter
) -> tuple[LoadedModel, bool]:
    try:
        return load_model(distill.teacher, weights=distill.teacher_weights, reporter=reporter), False
    except WeightsNotFound as error:
        if config.data != BUILT_IN:
            needed = "ImageNet" if is_imagenet(train.class_names) else "this data"
            raise TeacherError(
                f"{error.message} A teacher for {needed} needs them.",
                error.hint.replace("pass the file", "pass it with --teacher-weights FILE").replace(
                    "--weights FILE", "--teacher-weights FILE"
                ),
            ) from error
        reporter.warn(f"{error.message} It is trained from scratch on 'digits' first.")
    return _train_teacher(distill.teacher, DIGITS_CONVNET, "", config, train, train_run, reporter), True


def _train_teacher(
    name: str, recipe: Recipe, weights: str, config: TrainConfig, train: Source, train_run: TrainRun, reporter: Reporter
) -> LoadedModel:  # fmt: skip
    """Train a teacher on the data as any model is trained, in a folder named by what it depends on."""
    teacher = TrainConfig(
        model=name, data=config.data, recipe=recipe, weights=weights, seed=config.seed,
        workers=config.workers, device=config.device, precision=config.precision,
    )  # fmt: skip
    root = Path("runs") / "teachers" / f"{Path(name).name}-{_fingerprint(teacher, train)}"
    train_run(replace(teacher, output=str(root)))
    return load_model(str(root), reporter=reporter)


def _fingerprint(config: TrainConfig, train: Source) -> str:
    """Name a teacher by its settings and its data: class names and every picture's name and label."""
    digest = hashlib.sha256()
    relevant = {
        k: v for k, v in to_dict(config).items() if k not in ("workers", "device", "precision", "output", "seed")
    }
    digest.update(json.dumps([relevant, list(train.class_names)], sort_keys=True).encode())
    for index, label in enumerate(train.labels.tolist()):
        digest.update(f"{Path(train.name(index)).name}\x1f{label}\x1e".encode())
    return digest.hexdigest()[:10]
