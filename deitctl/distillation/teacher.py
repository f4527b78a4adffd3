"""The teacher network: resolved, fine-tuned to the data's classes if need be, and frozen.

Letters: B images, K classes of the data, S the student's input side, T the teacher's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl import rng
from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.batch_transforms import normalize, renormalize, to_model_channels
from deitctl.data.class_file import apply_class_names, read_class_names
from deitctl.data.classes import ClassMatch, is_imagenet, match_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import LENGTH, fingerprint_files
from deitctl.data.open import BUILT_IN
from deitctl.device import Device
from deitctl.distillation.callable_teacher import (
    CallableNetwork,
    CallableTeacher,
    refuse_other_classes,
    refuse_other_task,
)
from deitctl.distillation.teacher_size import stretch_crops
from deitctl.errors import ModelError, TeacherError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.home import can_write, choose_cache_path
from deitctl.lock import locked
from deitctl.models import catalog
from deitctl.models.factory import LoadedModel, load_model
from deitctl.models.fuse import fuse_conv_bn
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.sources import (
    fetch_model_files,
    list_weight_files,
    name_weights,
    needs_download,
)
from deitctl.names import find_names
from deitctl.paths import DiskError, refuse_links
from deitctl.recipes import FULL_FINETUNE_IMAGES, fit_to_data, get_finetune_recipe
from deitctl.settings import to_dict

TrainRun = Callable[[TrainConfig], Mapping[str, Any]]
"""Trains into the config's output folder, or resumes or finds the run; returns its result record."""
RESULT = "result.json"
"""A training run writes it last."""
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
)
"""What a teacher's run has from its student's: it opens the same images when it goes on."""
WITHOUT_WEIGHTS = "without weights"


class Teacher(nn.Module):
    """A frozen classifier that returns logits over the data's classes, whatever its own."""

    def __init__(
        self,
        model: nn.Module,
        model_config: ModelConfig,
        rows: tuple[int, ...],
        student_preprocessing: Preprocessing,
    ) -> None:
        """Freeze `model`.

        Args:
            model: the classifier.
            model_config: its preprocessing, classes and head rule.
            rows: for each class of the data, the model's logit.
            student_preprocessing: the preprocessing of the images that `forward` receives.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.model_config, self.student_preprocessing = model_config, student_preprocessing
        all_in_order = rows == tuple(range(model_config.num_classes))
        self.rows: Tensor | None
        self.register_buffer("rows", None if all_in_order else torch.tensor(rows), persistent=False)

    @property
    def is_multilabel(self) -> bool:
        """Whether each of its logits is a class's by itself, of several an image may have."""
        return self.model_config.is_multilabel

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, also inside a module that is trained."""
        # batch norm statistics and dropout of a teacher must not move with its student
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B,K] of the student's images [B,C,H,W], which may be mixed."""
        own = self.model_config.preprocessing
        images = renormalize(images, self.student_preprocessing, own)
        images = to_model_channels(images, own.in_chans)
        if images.shape[-2:] != own.hw:
            images = F.interpolate(
                images, size=own.hw, mode="bicubic", antialias=True, align_corners=False
            )
        return self._forward_normalized(images)

    @torch.no_grad()
    def forward_views(self, pixels: Tensor) -> Tensor:
        """Return logits [B,K] of views rendered at the teacher's own size, uint8 [B,3,T,T]."""
        return self._forward_normalized(normalize(pixels, self.model_config.preprocessing))

    def _forward_normalized(self, images: Tensor) -> Tensor:
        heads = forward_heads(self.model, images)
        rule = "avg-logits" if self.model_config.head == "auto" else self.model_config.head
        rule = rule if heads.dist is not None else "cls"
        logits = fuse_heads(heads, rule, self.model_config.task)
        return logits if self.rows is None else logits[:, self.rows]


def freeze_teacher(
    loaded: LoadedModel,
    rows: tuple[int, ...],
    student_preprocessing: Preprocessing,
    device: Device,
) -> Teacher:
    """Fuse a classifier's batch norms into its convolutions, in place, and freeze it on `device`."""
    pre = loaded.model_config.preprocessing
    # Before it is moved: convolutions of a GPU may round more than fusing changes, and the fusion
    # would be refused. The string is part of the seed, so it is not renamed with the code.
    if not isinstance(loaded.model, CallableNetwork):
        with rng.scope("fold"):
            fuse_conv_bn(loaded.model, torch.randn(1, pre.in_chans, *pre.hw))
    device.to_device(loaded.model)
    teacher = Teacher(loaded.model, loaded.model_config, rows, student_preprocessing)
    return teacher.to(device.torch_device)


@dataclass(frozen=True)
class ResolvedTeacher:
    """A classifier that has all of the data's classes, and as many labels an image."""

    name: str
    """As the configuration names it, without the tag of published weights if it has others."""
    loaded: LoadedModel
    match: ClassMatch
    finetuned: str
    """`no`, or how it was fine-tuned: `head`, `full`, or `scratch` if it had no weights."""
    folder: str
    """Folder of the fine-tuned teacher, empty for `no`."""


def identify_teacher(distill: DistillConfig, reporter: Reporter) -> str:
    """Return a string that changes with the content of a teacher's files, without loading it."""
    if distill.finetune_teacher == "scratch":
        return _strip_tag(distill.teacher)
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


def _strip_tag(name: str) -> str:
    return name.partition(".")[0]


def hash_json(value: Any) -> str:
    """Return a short hash of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:LENGTH]


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
    loaded = _load_published(distill, train, built_in, reporter)
    model_config = loaded.model_config if loaded else None
    finetuned, recipe = _choose_training(config, model_config, train, reporter)
    if loaded is not None and recipe is None:
        match = match_classes(loaded.model_config, train.class_names)
        assert match is not None
        return ResolvedTeacher(distill.teacher, loaded, match, "no", "")
    assert recipe is not None
    run = _configure_training(config, finetuned, recipe, fingerprint, reporter)
    root = Path(run.output_dir)
    if train_run is not None:
        _train(run, finetuned, train_run, reporter, is_main=is_main)
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


def _configure_training(
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
    model = _strip_tag(distill.teacher) if from_scratch else distill.teacher
    content = model if from_scratch else identify_teacher(distill, reporter)
    # By content and below the user's cache, so that the next student finds it, from any folder and
    # with any seed. What names the images is left out: they are in the fingerprint, as they are read.
    name = hash_json([to_dict(recipe), content, fingerprint])
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


def _train(
    run: TrainConfig, finetuned: str, train_run: TrainRun, reporter: Reporter, *, is_main: bool
) -> None:
    """Train a teacher into the cache, or find it there."""
    root, epochs = Path(run.output_dir), run.recipe.epochs
    is_finished = (root / RESULT).is_file()
    if is_finished:
        reporter.note(f"The teacher was trained on this data before ({finetuned}): {root}")
    elif finetuned == "scratch":
        reporter.note(f"Training the teacher {run.model} from scratch ({epochs} epochs): {root}")
    else:
        reporter.note(f"Fine-tuning the teacher {run.model} ({finetuned}, {epochs} epochs): {root}")
    # A finished one in a cache that cannot be written, in an image for example, needs no lock.
    if can_write(root) or not is_finished:
        _train_exclusively(run, train_run, reporter, is_main)


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


def _choose_training(
    config: TrainConfig,
    model_config: ModelConfig | None,
    train: ImageDataset,
    reporter: Reporter,
) -> tuple[str, Recipe | None]:
    """Return how a teacher is trained on the data first, and the recipe: `no` and None if it is not.

    `model_config` is the teacher's, None for one that is trained from scratch.
    """
    distill, built_in = config.distill, config.data == BUILT_IN
    assert distill is not None
    if model_config is None:
        recipe = get_finetune_recipe("scratch", built_in=built_in)
        size = distill.teacher_img_size or recipe.img_size
        return "scratch", stretch_crops(replace(recipe, img_size=size))
    match = match_classes(model_config, train.class_names)
    is_same_task = model_config.is_multilabel == train.is_multilabel
    if match is not None and is_same_task and distill.finetune_teacher in ("auto", "none"):
        return "no", None
    finetuned = _choose_finetuning(distill, model_config, train, reporter)
    recipe = replace(
        get_finetune_recipe(finetuned, built_in=built_in),
        pretrained=not list_weight_files(distill.teacher, distill.teacher_weights),
        img_size=distill.teacher_img_size or model_config.preprocessing.img_size,
    )
    recipe = stretch_crops(recipe)
    is_deit = catalog.find(model_config.architecture) is not None
    num_images = len(train.labels)
    return finetuned, fit_to_data(recipe, num_images=num_images, has_new_head=True, is_deit=is_deit)


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
    loaded = _load_published(distill, train, built_in, reporter, download=False)
    return _choose_training(config, loaded.model_config if loaded else None, train, reporter)


def _load_published(
    distill: DistillConfig,
    train: ImageDataset,
    built_in: bool,
    reporter: Reporter,
    *,
    download: bool = True,
) -> LoadedModel | None:
    """Load the teacher with its weights; None if it is to be trained from scratch."""
    if distill.finetune_teacher == "scratch":
        return None
    try:
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


def _no_weights(error: WeightsNotFound, train: ImageDataset) -> TeacherError:
    data = "ImageNet" if is_imagenet(train.class_names) else "this data"
    return TeacherError(
        f"{error.message} A teacher for {data} needs them.",
        error.hint.replace("pass --weights FILE", "pass --teacher-weights FILE"),
    )


def _choose_finetuning(
    distill: DistillConfig, model_config: ModelConfig, train: ImageDataset, reporter: Reporter
) -> str:
    """Return `head` or `full`; raise `TeacherError` if fine-tuning is forbidden."""
    num_classes = len(train.class_names)
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
    part = "full" if len(train.labels) >= FULL_FINETUNE_IMAGES * num_classes else "head"
    of = f"has {model_config.num_classes} classes, but " if lack.startswith("lacks") else ""
    reporter.warn(
        f"{distill.teacher} {of}{lack}: {'its head' if part == 'head' else 'the whole network'} is "
        "fine-tuned on the data first."
    )
    return part


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
