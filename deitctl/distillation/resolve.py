"""The network of a run's teacher: loaded, its classes matched with the data's, fine-tuned first if need be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deitctl.config import Recipe, TrainConfig
from deitctl.data.classes import ClassMatch, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.sources import BUILT_IN
from deitctl.distillation.callable_teacher import (
    CallableTeacher,
    refuse_other_classes,
    refuse_other_task,
)
from deitctl.distillation.finetune import (
    RESULT,
    TrainRun,
    choose_training,
    configure_training,
    has_classes,
    train_teacher,
)
from deitctl.distillation.teacher_weights import load_published_teacher
from deitctl.errors import TeacherError
from deitctl.events import Reporter
from deitctl.models.factory import LoadedModel, load_model
from deitctl.names import find_names


@dataclass(frozen=True)
class ResolvedTeacher:
    """A network: of labels a classifier that has all of the data's classes, and as many labels an image."""

    name: str
    """As the configuration names it, without the tag of published weights if it has others."""
    loaded: LoadedModel
    match: ClassMatch | None
    """None: it has not all of the data's classes, and its features alone are learned."""
    finetuned: str
    """`no`, or how it was fine-tuned: `head`, `full`, or `scratch` if it had no weights."""
    folder: str
    """Folder of the fine-tuned teacher, empty for `no`."""


def resolve_teacher(
    config: TrainConfig,
    train: ImageDataset,
    fingerprint: str,
    train_run: TrainRun | None,
    reporter: Reporter,
    *,
    own: CallableTeacher | None = None,
    is_main: bool = True,
) -> ResolvedTeacher:
    """Load a teacher and match its classes by WordNet id or name; fine-tune it first if need be.

    Args:
        config: the student's run, whose `distill` names the teacher.
        train: the training images.
        fingerprint: of the training images.
        train_run: see `TrainRun`. None: a teacher that needs fine-tuning must have had it.
        reporter: receives what is done.
        own: the caller's function, in place of the named teacher.
        is_main: whether this of several processes takes the lock while the teacher trains.

    Raises:
        TeacherError: no weights, or other classes where fine-tuning is forbidden.
    """
    distill, built_in = config.distill, config.data == BUILT_IN
    assert distill is not None
    if own is not None:
        return _resolve_own(own, train)
    loaded = load_published_teacher(distill, train, built_in, reporter)
    model_config = loaded.model_config if loaded else None
    finetuned, recipe = choose_training(config, model_config, train, reporter)
    if loaded is not None and recipe is None:
        match = None
        if has_classes(loaded.model_config, train):
            match = match_classes(loaded.model_config, train.class_names)
        return ResolvedTeacher(distill.teacher, loaded, match, "no", "")
    assert recipe is not None
    run = configure_training(config, finetuned, recipe, fingerprint, reporter)
    root = Path(run.output_dir)
    if train_run is not None:
        train_teacher(run, finetuned, train_run, reporter, is_main=is_main)
    elif not (root / RESULT).is_file():  # weights alone are there after the first epoch
        raise TeacherError(
            f"The fine-tuned teacher {root} is gone or unfinished.",
            "Run it again: it will be fine-tuned again.",
        )
    loaded = load_model(str(root), reporter=reporter)
    match = match_classes(loaded.model_config, train.class_names)
    if match is None:
        raise TeacherError(
            f"{root} lacks some of the data's classes.", "Delete that folder; it is made again."
        )
    return ResolvedTeacher(run.model, loaded, match, finetuned, str(root))


def _resolve_own(own: CallableTeacher, train: ImageDataset) -> ResolvedTeacher:
    """Match a caller's teacher, which is not fine-tuned, with the data's classes."""
    loaded = own.load()
    match = match_classes(loaded.model_config, train.class_names)
    if match is None:
        places = find_names(train.class_names, own.class_names)
        missing = [n for n, at in zip(train.class_names, places, strict=True) if at is None]
        raise refuse_other_classes(own, (missing or train.class_names)[0])
    if loaded.model_config.is_multilabel != train.is_multilabel:
        raise refuse_other_task(own, is_multilabel=train.is_multilabel)
    return ResolvedTeacher(own.name, loaded, match, "no", "")


def plan_finetuning(
    config: TrainConfig, train: ImageDataset, reporter: Reporter
) -> tuple[str, Recipe | None]:
    """Return how the run's teacher is going to be trained on the data first, and the recipe: `no` and
    None if it is not. Its weights are read if they are here, and never downloaded.

    Raises:
        ModelError: weights that do not fit.
        TeacherError: other classes where fine-tuning is forbidden, or no weights.
    """
    distill, built_in = config.distill, config.data == BUILT_IN
    assert distill is not None
    loaded = load_published_teacher(distill, train, built_in, reporter, download=False)
    return choose_training(config, loaded.model_config if loaded else None, train, reporter)
