"""Plan of a training (`--dry-run`): its steps, sizes, rates and memory, without a step being taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset, find_folder
from deitctl.data.draws import count_draws
from deitctl.data.epoch_steps import fit_batch_size, steps_per_epoch
from deitctl.data.folds import FoldedData
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.unlabeled import count_unlabeled
from deitctl.device import choose_run_device
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.distillation.distillation_teacher import NO_CACHE, DistillationTeacher
from deitctl.distillation.ensemble import name_teachers
from deitctl.distillation.features import FeatureCodec
from deitctl.events import Reporter, SilentReporter
from deitctl.home import choose_cache_path
from deitctl.models import timm_models
from deitctl.models.features import outline_num_features
from deitctl.models.introspect import compute_early_size
from deitctl.sizes import ImageSize
from deitctl.training.build import (
    build_feature_term,
    build_student,
    build_training,
    note_changes,
    note_sampling,
    warn_about_sizes,
)
from deitctl.training.class_balance import ClassCounts, ClassWeights, describe_class_weights
from deitctl.training.configure import check
from deitctl.training.data_order import OrderPlan, note_order, settle_order
from deitctl.training.disk_space import DiskNeed, count_run_bytes, plan_disks
from deitctl.training.estimate import estimate_seconds
from deitctl.training.freezing import count_trained
from deitctl.training.launch import require_output
from deitctl.training.objective import choose_loss, report_loss
from deitctl.training.optim import add_trained
from deitctl.training.own_images import warn_of_trained_images
from deitctl.training.schedule import compute_peak_lr
from deitctl.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """The teacher's part of a training."""

    name: str
    """Published weights of the teacher by timm's name, or its folder, or its name where it has a file."""
    mode: str
    """`hard`, `soft`, `features`, `features+hard` or `features+soft`."""
    tau: float | None
    """Temperature of soft distillation; null for hard, which has none."""
    finetuned: str
    """How it is trained on the data first: `no`, `head`, `full`, or `scratch` without its weights."""
    finetune_epochs: int
    """Epochs of that training; 0 for none."""
    finetune_images: int
    """Images of all its epochs; 0 for none."""
    effective_weight: float
    """Factor of the loss of the teacher's labels, the temperature's square and the reduction included; 0
    where its features alone are learned."""
    feature_loss: str | None
    """Loss of the teacher's features, null where they are not learned, as the two below."""
    feature_weight: float | None
    """Factor of that loss."""
    num_features: int | None
    """Numbers of an image's features."""
    input: str
    """`mixed` or `unmixed` images."""
    num_views: int
    """Augmented views per image that the teacher labels; 0: mixed images, which are all different."""
    num_computed: int
    """Images in the teacher's forward passes, as far as the cache is empty."""
    num_computed_without_cache: int
    """The same without a cache."""
    cache_mib: float | None
    """Size of the cached targets; null for mixed images, which are not cached."""


@dataclass(frozen=True)
class FoldPlan:
    """The run of one fold."""

    fold: int
    """Counted from 1."""
    num_train_images: int
    """Images that it is trained on."""
    num_val_images: int
    """Images that it holds out."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What a training would do."""

    model: str
    """Architecture, by timm's name where timm has it."""
    num_params: int
    """Parameters of the model."""
    num_trained_params: int
    """Those of them that are trained from the first epoch on."""
    thaw_epoch: int | None
    """Epoch, from 1, from which on the others are trained too; null: never, or there are no others."""
    img_size_px: ImageSize
    """Side of the input."""
    early_img_size_px: ImageSize | None
    """Side of the input in the early epochs of progressive resizing; null without any."""
    early_epochs: int
    """Epochs at that size."""
    data: str
    """Data, as it was named."""
    num_classes: int
    """Classes of the data."""
    class_names: tuple[str, ...]
    """Their names, in the order of the model's outputs."""
    train_folder: str | None
    """Folder or tar that the training images lie in, below any folders around them; null for others."""
    val_folder: str | None
    """The same of the validation images."""
    num_train_images: int
    """Training images."""
    num_unlabeled_images: int
    """Those of them that have no labels, of which the teacher alone speaks."""
    num_extra_images: int | None
    """Those of them that are of other sources, `extra_data`; null without any."""
    num_epoch_images: int | None
    """Images that an epoch shows, where weights of sources make them others; null: each training image once."""
    num_val_images: int
    """Validation images."""
    order: OrderPlan | None
    """Their order and how it mixes classes, where images are read by blocks; null: a random order over all."""
    recipe: str
    """Name of the recipe."""
    initial_weights: str
    """`random`, published weights by timm's name, or the file or model that the training starts from."""
    is_local: bool | None
    """Whether these weights are on this machine; null where none are loaded."""
    weights_entry: str | None
    """The dictionary that is taken from a file that holds several, `model_ema` for example; else null."""
    weight_changes: list[str]
    """How they are changed to fit the data and the model, as sentences: rows of the head that are
    kept or new, resized position embeddings, a token that is copied."""
    epochs: int
    """Passes over the training images."""
    steps_per_epoch: int
    """Optimizer steps in an epoch."""
    num_steps: int
    """Optimizer steps in all."""
    batch_size: int
    """Images of the largest step: an epoch is divided into equal ones, but for a pair of images."""
    peak_lr: float
    """Highest learning rate, scaled with the batch."""
    optimizer: str
    """The optimizer, by timm's name, and the schedule of its learning rate."""
    train_state_mib: float
    """Memory of weights, gradients, the optimizer's state and the moving average in fp32, at their most: in each
    process, with `--strategy fsdp` in all of them together."""
    device: str
    """torch's name of the device."""
    precision: str
    """Of the matrix products: `fp32`, `tf32`, `bf16` or `fp16`."""
    num_workers: int
    """Loader processes."""
    loss: str
    """Loss of the true labels: `ce` (cross-entropy), `bce` (binary cross-entropy) or `asl` (asymmetric)."""
    class_weights: ClassWeights | None
    """How much each class counts in it; null where all count alike."""
    teacher: TeacherPlan | None
    """The teacher's part, of several the first's; null without one."""
    more_teachers: list[TeacherPlan]
    """The parts of the others."""
    expected_seconds: float | None
    """Expected duration, from the speed of a few images; null if it was not measured, as with a
    teacher."""
    disks: list[DiskNeed]
    """Space that the run needs, by file system."""
    folds: list[FoldPlan] | None
    """Images of the run of each fold, of which the first is planned here; null for one run."""
    config: TrainConfig
    """Every setting, as `run.toml` would hold it."""


def plan_training(
    config: TrainConfig,
    *,
    datasets: tuple[ImageDataset, ImageDataset] | None = None,
    folded: FoldedData | None = None,
    own_teacher: CallableTeacher | None = None,
    reporter: Reporter | None = None,
) -> TrainPlan:
    """Return the numbers that a configuration comes to.

    Args:
        config: the run.
        datasets: training and validation images, if they are open already.
        folded: the images of all folds, if there is to be a run of each.
        own_teacher: the caller's function, in place of the named teacher.
        reporter: receives the warnings that the run would give about its sizes.
    """
    check(config)
    silent = SilentReporter()
    train, val = datasets or open_for_training(Source.of(config), reporter=silent)
    config = settle_order(config, train)
    # What the run calls too, in its order, so that what it would refuse is refused here.
    device = choose_run_device(config)
    warn_of_trained_images(config, val, reporter or silent)
    student = build_student(config, train, reporter or silent, download=False)
    note_changes(config, student, reporter or silent)
    require_output(config)
    recipe, distill = config.recipe, config.distill
    num_images, img_size = len(train.labels), student.model_config.preprocessing.img_size
    early_size: ImageSize = 0
    if recipe.early_epochs:
        early_size = compute_early_size(student.model, student.model_config, recipe)
    warn_about_sizes(
        recipe, count_draws(train), student.model, img_size, early_size, reporter or silent
    )
    note_sampling(recipe, train, reporter or silent)
    order = note_order(config, train, reporter or silent)
    counts = ClassCounts.of(train)
    loss = choose_loss(recipe, is_multilabel=train.is_multilabel)
    report_loss(config, counts, reporter or silent)
    num_params = sum(p.numel() for p in student.model.parameters())
    num_drawn = count_draws(train)
    batch_size = fit_batch_size(num_drawn, recipe.batch_size)
    steps = steps_per_epoch(num_drawn, recipe.batch_size)
    teacher, more_teachers = None, list[TeacherPlan]()
    if distill is not None:
        run_teacher = name_teachers(
            config,
            train,
            val,
            student.model_config.preprocessing,
            device=device,
            train_run=_refuse_training,
            reporter=reporter or silent,
            own=own_teacher,
        )
        teacher, *more_teachers = [
            _plan_teacher(distill, alone, recipe, finetuning, silent)
            for alone, finetuning in zip(run_teacher.teachers, run_teacher.plan(), strict=True)
        ]
    without_teacher = replace(config, distill=None)
    setup = build_training(without_teacher, student, train, val, device=device, reporter=silent)
    teachers = [teacher, *more_teachers] if teacher is not None else []
    if numbers := [t.num_features for t in teachers if t.num_features]:
        term = build_feature_term(config, student, numbers, device)
        add_trained(setup.state.optimizer, term.projector, recipe.optim)
        setup = replace(setup, state=replace(setup.state, projector=term.projector))
    disks = _plan_disks(config, count_run_bytes(setup.state, recipe), teachers, reporter)
    expected = estimate_seconds(setup) if distill is None else None
    return TrainPlan(
        model=student.model_config.architecture,
        num_params=num_params,
        num_trained_params=sum(
            p.numel() for p in setup.state.model.parameters() if p.requires_grad
        ),
        thaw_epoch=recipe.thaw_epoch or None,
        img_size_px=img_size,
        early_img_size_px=early_size or None,
        early_epochs=recipe.early_epochs,
        data=config.data,
        num_classes=len(train.class_names),
        class_names=train.class_names,
        train_folder=find_folder(train),
        val_folder=find_folder(val),
        num_train_images=num_images,
        num_unlabeled_images=counts.num_unlabeled,
        num_extra_images=None if train.is_extra is None else int(train.is_extra.sum()),
        num_epoch_images=None if train.draw_weights is None else num_drawn,
        num_val_images=len(val.labels),
        order=order,
        recipe=recipe.name,
        initial_weights=student.weights or "random",
        is_local=_are_weights_local(student.weights),
        weights_entry=student.entry or None,
        weight_changes=list(student.changes),
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        num_steps=steps * recipe.epochs,
        batch_size=batch_size,
        peak_lr=compute_peak_lr(recipe.optim, batch_size),
        optimizer=f"{recipe.optim.opt}, {recipe.optim.sched}",
        train_state_mib=round(_count_memory(setup.state, recipe) / 2**20, 1),
        device=str(device.torch_device),
        precision=device.precision,
        num_workers=setup.workers,
        loss=loss,
        class_weights=describe_class_weights(recipe, counts, loss=loss),
        teacher=teacher,
        more_teachers=more_teachers,
        expected_seconds=None if expected is None else round(expected, 1),
        disks=disks,
        folds=None if folded is None else _plan_folds(folded),
        config=config,
    )


def _plan_folds(folded: FoldedData) -> list[FoldPlan]:
    splits = {fold: folded.split(fold) for fold in range(1, folded.num_folds + 1)}
    return [
        FoldPlan(fold, len(train.labels), len(val.labels)) for fold, (train, val) in splits.items()
    ]


def _count_memory(state: TrainState, recipe: Recipe) -> int:
    """Return the bytes of what training keeps between steps, and of the gradients."""
    weights = sum(4 * p.numel() for p in state.model.parameters())
    projector = [] if state.projector is None else state.projector.parameters()
    projections = sum(4 * p.numel() for p in projector)
    trained, moments = count_trained(state, recipe)
    return weights * (2 if recipe.ema_decay else 1) + projections + trained + moments


def _are_weights_local(weights: str) -> bool | None:
    """Return whether the weights that a student starts from are here; None for random ones."""
    if not weights:
        return None
    return Path(weights).is_file() or timm_models.is_cached(weights)


def _refuse_training(config: TrainConfig) -> Mapping[str, Any]:
    raise AssertionError("a dry run trains no teacher")


def _plan_disks(
    config: TrainConfig, run_bytes: int, teachers: Sequence[TeacherPlan], reporter: Reporter | None
) -> list[DiskNeed]:
    """Return what the run needs of its disks, and warn of what is not there."""
    distill, cache, cache_bytes = config.distill, None, 0
    cache_mib = sum(teacher.cache_mib or 0 for teacher in teachers)
    if distill is not None and cache_mib and distill.teacher_cache != NO_CACHE:
        cache = Path(distill.teacher_cache or choose_cache_path("teacher_targets", reporter))
        cache_bytes = round(cache_mib * 2**20)
    disks = plan_disks(Path(config.output_dir or "runs"), run_bytes, cache, cache_bytes)
    for disk in disks:
        if not disk.is_enough and reporter is not None:
            reporter.warn(disk.message)
    return disks


def _plan_teacher(
    run: DistillConfig,
    named: DistillationTeacher,
    recipe: Recipe,
    finetuning: tuple[str, Recipe | None],
    reporter: Reporter,
) -> TeacherPlan:
    """Return the part of one teacher.

    Args:
        run: of all teachers.
        named: this one, which is not loaded.
        recipe: of the student.
        finetuning: how the teacher is trained first, and the recipe.
        reporter: shows downloads of a config.
    """
    distill, train = named.distill, named.train
    num_classes, num_images = len(train.class_names), len(train.labels)
    num_seen = count_draws(train) * recipe.epochs
    num_views = distill.views or recipe.epochs * recipe.augment.repeated_aug
    finetuned, finetune_recipe = finetuning
    finetune_epochs = finetune_recipe.epochs if finetune_recipe else 0
    is_soft = run.label_mode == "soft"
    weight = run.alpha * (run.tau**2 if is_soft else 1) if distill.label_mode else 0.0
    if is_soft and distill.reduction == "mean":
        weight /= num_classes
    cached = distill.teacher_input == "unmixed"
    num_features = None
    width = 0 if named.label_codec is None else named.label_codec.width
    if distill.uses_features:
        num_features = outline_num_features(distill.teacher, distill.features.pool, reporter)
        width += FeatureCodec(num_features).width
    reuses = cached and distill.teacher_cache != "off"
    return TeacherPlan(
        name=distill.teacher,
        # averaged labels are stored as soft ones, whatever is made of them
        mode=distill.mode.replace("soft", run.label_mode),
        tau=run.tau if is_soft and distill.label_mode else None,
        finetuned=finetuned,
        finetune_epochs=finetune_epochs,
        finetune_images=finetune_epochs * (num_images - count_unlabeled(train)),
        effective_weight=weight,
        feature_loss=distill.features.loss if distill.uses_features else None,
        feature_weight=distill.features.weight if distill.uses_features else None,
        num_features=num_features,
        input=distill.teacher_input,
        num_views=num_views if cached else 0,
        num_computed=min(num_images * num_views, num_seen) if reuses else num_seen,
        num_computed_without_cache=num_seen,
        # two bytes for each number of a target
        cache_mib=round(2 * width * num_images * num_views / 2**20, 2) if cached else None,
    )
