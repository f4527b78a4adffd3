"""Finding a teacher: by name, file or folder; matched to the data's classes, or fitted to them first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deitctl import rng
from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.classes import ClassMatch, is_imagenet, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import LENGTH, fingerprint_files
from deitctl.data.open import BUILT_IN
from deitctl.device import Device
from deitctl.distillation.teacher import Teacher
from deitctl.errors import TeacherError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.lock import locked
from deitctl.models.factory import LoadedModel, fetch_model_files, list_weight_files, load_model
from deitctl.models.fuse import fuse_conv_bn
from deitctl.models.model_config import Preprocessing
from deitctl.paths import DiskError, cache_root
from deitctl.recipes import ADAPT_FULL_FROM, DIGITS_CONVNET, adaptation
from deitctl.settings import to_dict

TrainRun = Callable[[TrainConfig], object]
WITHOUT_WEIGHTS = "without weights"


@dataclass(frozen=True)
class ResolvedTeacher:
    """A classifier that knows the data's classes."""

    loaded: LoadedModel
    match: ClassMatch
    adapted: str
    """`no`, or how it was fitted to the data: `head`, `full`, or `scratch` where it had no weights."""
    folder: str
    """Where the fitted one is kept."""


def teacher_identity(distill: DistillConfig, reporter: Reporter) -> str:
    """Name a teacher by the content of its files, without loading it; one whose weights cannot be had by its name."""
    files = list_weight_files(distill.teacher, distill.teacher_weights)
    files = files or fetch_model_files(distill.teacher, reporter)
    content = fingerprint_files(files) if files else WITHOUT_WEIGHTS
    by_content = list_weight_files(distill.teacher) and not distill.teacher_weights
    return content if by_content else f"{distill.teacher} {content}"


def resolve_teacher(
    distill: DistillConfig,
    config: TrainConfig,
    train: ImageDataset,
    data: str,
    train_run: TrainRun,
    reporter: Reporter,
    *,
    main: bool = True,
) -> ResolvedTeacher:
    """Load a teacher and match its classes to the data's, by WordNet id or name; fit it to the data if need be.

    Args:
        distill: which teacher, and whether it may be adapted.
        config: the student's run: data, seed, device.
        train: the training images.
        data: their fingerprint.
        train_run: trains a model into the folder its configuration names, or finishes or finds it there.
        reporter: is told what is done.
        main: whether this is the one of several processes that keeps others away while it trains.

    Raises:
        TeacherError: weights that cannot be had, or other classes where adaptation is forbidden.
    """
    built_in = config.data == BUILT_IN
    try:
        loaded = load_model(
            distill.teacher,
            weights=distill.teacher_weights,
            img_size=distill.teacher_img_size,
            reporter=reporter,
        )
    except WeightsNotFound as error:
        if not built_in:
            raise _no_weights(error, train) from error
        reporter.warn(f"{error.message} It is trained from scratch on 'digits' first.")
        recipe = replace(
            DIGITS_CONVNET, img_size=distill.teacher_img_size or DIGITS_CONVNET.img_size
        )
        return _fit("scratch", distill, recipe, config, train, data, train_run, reporter, main)
    match = match_classes(loaded.model_config, train.class_names)
    if match is not None and distill.finetune_teacher in ("auto", "none"):
        return ResolvedTeacher(loaded, match, "no", "")
    if distill.finetune_teacher == "none":
        raise TeacherError(
            f"{distill.teacher} does not know all of the data's {len(train.class_names)} classes.",
            "Let it be fitted to them (--adapt auto), or name another teacher.",
        )
    how = distill.finetune_teacher
    if how == "auto":
        how = "full" if len(train.labels) >= ADAPT_FULL_FROM * len(train.class_names) else "head"
        reporter.warn(
            f"{distill.teacher} knows {loaded.model_config.num_classes} classes, but not all of the data's "
            f"{len(train.class_names)}: {'its head' if how == 'head' else 'all of it'} is fitted to the data first."
        )
    recipe = replace(
        adaptation(how, built_in=built_in),
        pretrained=not list_weight_files(distill.teacher, distill.teacher_weights),
        img_size=distill.teacher_img_size or loaded.model_config.preprocessing.img_size,
    )
    return _fit(how, distill, recipe, config, train, data, train_run, reporter, main)


def _no_weights(error: WeightsNotFound, train: ImageDataset) -> TeacherError:
    needed = "ImageNet" if is_imagenet(train.class_names) else "this data"
    hint = error.hint.replace("pass the file", "pass it with --teacher-weights FILE")
    return TeacherError(
        f"{error.message} A teacher for {needed} needs them.",
        hint.replace("then pass --weights FILE", "then pass --teacher-weights FILE"),
    )


def _fit(
    how: str,
    distill: DistillConfig,
    recipe: Recipe,
    config: TrainConfig,
    train: ImageDataset,
    data: str,
    train_run: TrainRun,
    reporter: Reporter,
    main: bool,
) -> ResolvedTeacher:
    """Train a teacher on the data as any model is trained, in a folder named by what it depends on."""
    weights = distill.teacher_weights if how != "scratch" else ""
    teacher = (
        TrainConfig(  # of seed 0, whatever the student's: the next student finds the same teacher
            model=distill.teacher,
            data=config.data,
            recipe=recipe,
            weights=weights,
            workers=config.workers,
            device=config.device,
            precision=config.precision,
        )
    )
    depends = [to_dict(recipe), teacher_identity(distill, reporter), data]
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:LENGTH]
    root = cache_root() / "teachers" / f"{Path(distill.teacher).name}-{how}-{name}"
    reporter.note(
        f"Fitting the teacher {distill.teacher} to the data ({how}, {recipe.epochs} epochs): {root}"
    )
    lock = root.with_name(f"{root.name}.lock")
    alone = locked(
        lock,
        what=str(root),
        when_busy=lambda: reporter.note(
            f"Another process is training this teacher; waiting for it ({lock})."
        ),
    )
    try:
        with alone if main else nullcontext():
            train_run(replace(teacher, output_dir=str(root)))
    except OSError as error:
        raise DiskError.from_os_error(lock, error) from error
    loaded = load_model(str(root), reporter=reporter)
    match = match_classes(loaded.model_config, train.class_names)
    if match is None:
        raise TeacherError(
            f"{root} does not know the data's classes.",
            "Delete that folder; it will be made again.",
        )
    return ResolvedTeacher(loaded, match, how, str(root))


def freeze_teacher(
    loaded: LoadedModel, rows: tuple[int, ...], seen: Preprocessing, device: Device
) -> Teacher:
    """Bring a classifier to `device` to answer images preprocessed as `seen`, its batch norms folded; see `Teacher`."""
    size = loaded.model_config.preprocessing.img_size
    with rng.scope(
        "fold"
    ):  # before it is moved: convolutions of a GPU may round more than folding does
        fuse_conv_bn(loaded.model, torch.randn(1, 3, size, size))
    device.to_device(loaded.model)
    return Teacher(loaded.model, loaded.model_config, rows, seen).to(device.torch_device)
