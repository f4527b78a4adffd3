"""The weights that a teacher's name means: identified by content, and loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from deitctl.config import DistillConfig
from deitctl.data.class_file import apply_class_names, read_class_names
from deitctl.data.classes import is_imagenet
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import LENGTH, fingerprint_files
from deitctl.errors import ModelError, TeacherError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.models.backbone import lacks_classifier, load_backbone
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.sources import (
    fetch_model_files,
    list_weight_files,
    name_weights,
    needs_download,
)

WITHOUT_WEIGHTS = "without weights"


def identify_teacher(distill: DistillConfig, reporter: Reporter) -> str:
    """Return a string that changes with the content of a teacher's files, without loading it."""
    if distill.finetune_teacher == "scratch":
        return strip_tag(distill.teacher)
    files = list_weight_files(distill.teacher, distill.teacher_weights)
    files = files or fetch_model_files(distill.teacher, reporter)
    content = fingerprint_files(files) if files else WITHOUT_WEIGHTS
    if distill.teacher_classes:  # which decide what each of its logits is
        names = hash_json(read_class_names(distill.teacher_classes).names)
        content = f"classes {names} {content}"
    # Files that say by themselves what they are of: the same teacher wherever it lies.
    is_self_contained = list_weight_files(distill.teacher) and not distill.teacher_weights
    # With the tag, which decides the preprocessing: of a file of weights too.
    return content if is_self_contained else f"{name_weights(distill.teacher)} {content}"


def is_present(distill: DistillConfig) -> bool:
    """Return whether what is known of a teacher's weights now is what the run will know."""
    if list_weight_files(distill.teacher, distill.teacher_weights):
        return True
    try:
        return not needs_download(distill.teacher)
    except ModelError:  # they cannot be had at all
        return True


def strip_tag(name: str) -> str:
    """Return a name of timm's without the tag of its weights."""
    return name.partition(".")[0]


def hash_json(value: Any) -> str:
    """Return a short hash of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:LENGTH]


def load_published_teacher(
    distill: DistillConfig,
    train: ImageDataset,
    built_in: bool,
    reporter: Reporter,
    *,
    download: bool = True,
) -> LoadedModel | None:
    """Load the teacher with its weights, without a classifier if they have none; None if it is to be
    trained from scratch."""
    if distill.finetune_teacher == "scratch":
        return None
    try:
        if lacks_classifier(distill.teacher, distill.teacher_weights, reporter):
            return _load_headless(distill, reporter, download=download)
        loaded = load_model(
            distill.teacher,
            weights=distill.teacher_weights,
            img_size=distill.teacher_img_size,
            download=download,
            reporter=reporter,
        )
        where = distill.teacher_weights or distill.teacher
        model_config = apply_class_names(
            loaded.model_config,
            distill.teacher_classes,
            where,
            reporter,
            option="--teacher-classes",
        )
        return replace(loaded, model_config=model_config)
    except WeightsNotFound as error:
        if not built_in:
            raise _no_weights(error, train) from error
        reporter.warn(f"{error.message} It is trained from scratch on 'digits' first.")
        return None


def _load_headless(distill: DistillConfig, reporter: Reporter, *, download: bool) -> LoadedModel:
    if distill.teacher_classes:
        raise TeacherError(
            f"{distill.teacher_weights or distill.teacher} has no classifier, whose classes could have names.",
            "Leave --teacher-classes out.",
        )
    return load_backbone(
        distill.teacher,
        weights=distill.teacher_weights,
        img_size=distill.teacher_img_size,
        download=download,
        reporter=reporter,
    )


def _no_weights(error: WeightsNotFound, train: ImageDataset) -> TeacherError:
    data = "ImageNet" if is_imagenet(train.class_names) else "this data"
    return TeacherError(
        f"{error.message} A teacher for {data} needs them.",
        error.hint.replace("pass --weights FILE", "pass --teacher-weights FILE"),
    )
