"""The training that a teacher gets on the student's images first: which one, and its run in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.classes import match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.sources import BUILT_IN
from deitctl.data.unlabeled import select_labeled
from deitctl.distillation.teacher_size import stretch_crops
from deitctl.distillation.teacher_weights import hash_json, identify_teacher, strip_tag
from deitctl.errors import TeacherError
from deitctl.events import Reporter
from deitctl.home import can_write, choose_cache_path
from deitctl.lock import locked
from deitctl.models import catalog, timm_models
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig
from deitctl.models.sources import list_weight_files
from deitctl.paths import DiskError, refuse_links
from deitctl.recipes import (
    FULL_FINETUNE_IMAGES,
    fit_to_data,
    get_finetune_recipe,
    give_steps,
    stamp_recipe,
)

TrainRun = Callable[[TrainConfig], Mapping[str, Any]]
"""Trains into the config's output folder, or resumes or finds the run; returns its result record."""
RESULT = "result.json"
"""A training run writes it last."""
HEAD_VERSION = 1
"""Goes up when a head that is fitted in closed form becomes another; cached teacher targets are then stale. Before 1 it
was trained."""
SOURCE_SETTINGS = (
    "data",
    "image_folder",
    "value_range",
    "task",
    "group_by",
    "split_seed",
    "fraction",
    "folds",
    "fold",
    "extra_data",
    "extra_weight",
    "data_order",
    "window",
)
"""What a teacher's run has from its student's: it opens the same images when it goes on."""


def configure_training(
    config: TrainConfig, finetuned: str, recipe: Recipe, fingerprint: str, reporter: Reporter
) -> TrainConfig:
    """Return the run that trains a teacher on the images of a student's run.

    Args:
        config: of the student.
        finetuned: `head`, `full` or `scratch`.
        recipe: of the teacher.
        fingerprint: of the training images.
        reporter: receives what is done.
    """
    distill = config.distill
    assert distill is not None
    from_scratch = finetuned == "scratch"
    model = strip_tag(distill.teacher) if from_scratch else distill.teacher
    content = model if from_scratch else identify_teacher(distill, reporter)
    # By content and below the user's cache, so that the next student finds it, from any folder and
    # with any seed. What names the images is left out: they are in the fingerprint, as they are read.
    fitted = [HEAD_VERSION] if not recipe.epochs else []
    weights = [list(config.extra_weight)] if any(w != 1 for w in config.extra_weight) else []
    name = hash_json([stamp_recipe(recipe), content, fingerprint, *fitted, *weights])
    root = choose_cache_path(f"teachers/{Path(model).name}-{finetuned}-{name}", reporter)
    refuse_links(root.parent, [root.name])  # a cache may be a stranger's
    return TrainConfig(
        model=model,
        recipe=recipe,
        weights="" if from_scratch else distill.teacher_weights,
        classes="" if from_scratch else distill.teacher_classes,
        seed=0,  # whatever the student's, for the same teacher
        workers=config.workers,
        device=config.device,
        precision=config.precision,
        output_dir=str(root),
        **{name: getattr(config, name) for name in SOURCE_SETTINGS},
    )


def train_teacher(
    run: TrainConfig, finetuned: str, train_run: TrainRun, reporter: Reporter, *, is_main: bool
) -> None:
    """Train a teacher into the cache, or find it there."""
    root, epochs = Path(run.output_dir), run.recipe.epochs
    is_finished = (root / RESULT).is_file()
    if is_finished:
        reporter.note(f"The teacher was trained on this data before ({finetuned}): {root}")
    elif not epochs:
        reporter.note(f"Fitting a classifier to the features of the teacher {run.model}: {root}")
    elif finetuned == "scratch":
        reporter.note(f"Training the teacher {run.model} from scratch ({epochs} epochs): {root}")
    else:
        reporter.note(f"Fine-tuning the teacher {run.model} ({finetuned}, {epochs} epochs): {root}")
    # A finished one in a cache that cannot be written, in an image for example, needs no lock.
    if can_write(root) or not is_finished:
        _train_exclusively(run, train_run, reporter, is_main)


def choose_training(
    config: TrainConfig,
    model_config: ModelConfig | None,
    train: ImageDataset,
    reporter: Reporter,
) -> tuple[str, Recipe | None]:
    """Return how a teacher is trained on the data first, and the recipe: `no` and None if it is not; without
    epochs for a head that is fitted in closed form.

    A teacher of which features alone are learned needs no classes. `model_config` is the teacher's, None
    for one that is trained from scratch.
    """
    distill, built_in = config.distill, config.data == BUILT_IN
    assert distill is not None
    if model_config is None:
        recipe = get_finetune_recipe("scratch", built_in=built_in)
        size = distill.teacher_img_size or recipe.img_size
        recipe = give_steps(recipe, len(select_labeled(train).labels))
        return "scratch", stretch_crops(replace(recipe, img_size=size))
    is_usable = not distill.label_mode or has_classes(model_config, train)
    if is_usable and distill.finetune_teacher in ("auto", "none"):
        return "no", None
    finetuned = _choose_finetuning(distill, model_config, train, reporter)
    recipe = replace(
        get_finetune_recipe(finetuned, built_in=built_in),
        pretrained=not list_weight_files(distill.teacher, distill.teacher_weights),
        img_size=distill.teacher_img_size or model_config.preprocessing.img_size,
    )
    recipe = stretch_crops(recipe)
    if finetuned == "head" and _has_linear_head(model_config):
        return finetuned, replace(recipe, epochs=0)
    is_deit = catalog.find(model_config.architecture) is not None
    num_images = len(select_labeled(train).labels)
    return finetuned, fit_to_data(recipe, num_images=num_images, has_new_head=True, is_deit=is_deit)


def _has_linear_head(model_config: ModelConfig) -> bool:
    """Return whether a network's classifier is a linear layer, or several, which can be fitted in closed form."""
    if catalog.find(model_config.architecture) is not None:
        return True
    args = {k: v for k, v in model_config.model_args.items() if k != "img_size"}
    with torch.device("meta"):  # nothing is allocated
        model = timm_models.create_model(
            model_config.architecture,
            num_classes=2,
            img_size=model_config.preprocessing.img_size,
            model_args=args,
        )
    layers = describe_layers(model)["classifier"]
    return all(isinstance(model.get_submodule(name), nn.Linear) for name in layers)


def has_classes(model_config: ModelConfig, train: ImageDataset) -> bool:
    """Return whether a teacher labels the data as it is: it has all classes, and the same task."""
    match = match_classes(model_config, train.class_names) if model_config.num_classes else None
    return match is not None and model_config.is_multilabel == train.is_multilabel


def _choose_finetuning(
    distill: DistillConfig, model_config: ModelConfig, train: ImageDataset, reporter: Reporter
) -> str:
    """Return `head` or `full`; raise `TeacherError` if fine-tuning is forbidden."""
    num_classes = len(train.class_names)
    if not model_config.num_classes:
        return _choose_new_head(distill, reporter)
    lack = f"lacks some of the data's {num_classes} classes"
    if match_classes(model_config, train.class_names) is not None:
        counts = ("one label an image", "several labels")
        was, now = counts[model_config.is_multilabel], counts[train.is_multilabel]
        lack = f"was trained for {was}, and the data has {now}"
    if distill.finetune_teacher == "none":
        raise TeacherError(
            f"{distill.teacher} {lack}.",
            "Allow fine-tuning (--finetune-teacher auto), or name another teacher.",
        )
    if distill.finetune_teacher != "auto":
        return distill.finetune_teacher
    num_images = len(select_labeled(train).labels)
    part = "full" if num_images >= FULL_FINETUNE_IMAGES * num_classes else "head"
    of = f"has {model_config.num_classes} classes, but " if lack.startswith("lacks") else ""
    reporter.warn(
        f"{distill.teacher} {of}{lack}: {'its head' if part == 'head' else 'the whole network'} is "
        "fine-tuned on the data first."
    )
    return part


def _choose_new_head(distill: DistillConfig, reporter: Reporter) -> str:
    """Return `head` or `full` for a teacher without a classifier; raise `TeacherError` if it must not get one."""
    if distill.finetune_teacher == "none":
        raise TeacherError(
            f"{distill.teacher} has no classifier, so it gives no labels.",
            "Learn its features (--mode features), or let a classifier be fitted to them "
            "(--finetune-teacher head).",
        )
    if distill.finetune_teacher != "auto":
        return distill.finetune_teacher
    # However many images there are: such networks are made for a head on their features, and fine-tuning
    # all of one costs more than the student.
    reporter.note(
        f"{distill.teacher} has no classifier: one is fitted to its features first "
        "(--finetune-teacher head)."
    )
    return "head"


def _train_exclusively(
    run: TrainConfig, train_run: TrainRun, reporter: Reporter, is_main: bool
) -> None:
    """Train a run while its folder is locked, by the main one of several processes."""
    root = Path(run.output_dir)
    path = root.with_name(f"{root.name}.lock")
    lock = locked(
        path,
        what=str(root),
        when_busy=lambda: reporter.note(
            f"Another process is training this teacher; waiting for it ({path})."
        ),
        reporter=reporter,
    )
    try:
        with lock if is_main else nullcontext():
            train_run(run)
    except OSError as error:
        raise DiskError.from_os_error(path, error) from error
