"""Builds what a run trains with, without taking a step: model, optimizer, EMA, loader, context."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from deitctl import rng
from deitctl.config import Recipe, TrainConfig
from deitctl.data.class_file import read_class_names
from deitctl.data.classes import describe_classes
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import BalancedDraws, choose_draws, count_draws, count_epoch_views
from deitctl.data.epoch_steps import fit_batch_size, steps_per_epoch
from deitctl.data.eval_views import EvalViews
from deitctl.data.loader import Batch, TrainViews, ViewPlan, build_train_loader
from deitctl.data.loader_memory import count_batch_bytes, fit_loaders
from deitctl.data.loader_pool import LoaderPool
from deitctl.data.samplers import TrainBatches
from deitctl.data.transforms import VIEWS_VERSION
from deitctl.data.unlabeled import count_unlabeled, find_labeled, select_labeled
from deitctl.data.value_range import NO_RANGE
from deitctl.data.windows import Windows
from deitctl.device import Device
from deitctl.distillation.ensemble import RunTeacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import ConfigError, ModelError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.factory import LoadedModel
from deitctl.models.features import choose_student_pool, count_features
from deitctl.models.introspect import (
    compute_early_size,
    compute_max_activation_bytes,
    enable_grad_checkpointing,
    has_few_patches,
    pin_img_size,
)
from deitctl.models.model_config import ModelConfig
from deitctl.models.positions import fix_positions
from deitctl.models.sources import has_weights, resolve_folder
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import ImageSize, format_size
from deitctl.training.class_balance import ClassCounts
from deitctl.training.context import TrainContext
from deitctl.training.data_order import make_windows, note_order
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.engine import Engine, build_engine
from deitctl.training.feature_loss import FeatureTerm
from deitctl.training.freezing import freeze, get_layers
from deitctl.training.normalization import ChannelStats, measure_channels, set_channels
from deitctl.training.objective import Objective, build_objective
from deitctl.training.optim import add_trained, build_optimizer
from deitctl.training.projector import build_projector
from deitctl.training.schedule import compute_peak_lr
from deitctl.training.state import Progress, TrainState


@dataclass(frozen=True)
class TrainSetup:
    """A run's data, model and state, before its first step."""

    config: TrainConfig
    model_config: ModelConfig
    train: ImageDataset
    val: ImageDataset
    teacher: RunTeacher | None
    context: TrainContext
    state: TrainState
    early_size: ImageSize
    """Size of the input in progressive resizing's early epochs, in pixels; 0 without any."""
    workers: int
    fits_head: bool = False
    """Whether the model has a new head that is to be fitted before the first step."""

    @cached_property
    def engine(self) -> Engine:
        """Takes the passes of a step, in this process and with the others."""
        return build_engine(self.context, self.state)

    @property
    def num_unlabeled(self) -> int:
        """Training images without labels."""
        return count_unlabeled(self.train)

    @property
    def windows(self) -> Windows | None:
        """The order of images that are read by blocks; None: a random order over all."""
        return make_windows(self.config, self.train)

    @property
    def view_plan(self) -> ViewPlan:
        """Which views the loader renders, and which of them for the teacher too."""
        recipe, cached_teacher = self.config.recipe, self.context.cached_teacher
        plan = ViewPlan(
            self.config.seed,
            repeats=count_epoch_views(self.train, recipe),
            early_epochs=recipe.early_epochs,
            early_size=self.early_size,
            in_chans=self.context.view_chans,
            draws=self.context.table_draws,
        )
        if self.teacher is None or cached_teacher is None:
            return plan
        return replace(
            plan,
            seed=self.teacher.distill.view_seed,
            views=self.teacher.distill.views,
            teacher_views=self.teacher.list_views(),
        )

    def build_pool(self) -> LoaderPool:
        """Return the loader processes of the run, which make batches for training and for validation."""
        recipe, preprocessing = self.config.recipe, self.model_config.preprocessing
        train = TrainViews(self.train, recipe.augment, preprocessing.img_size, self.view_plan)
        val = EvalViews(self.val, [preprocessing.without_normalization])
        return LoaderPool([train, val], self.workers)

    def build_loader(
        self,
        pool: LoaderPool | None = None,
        pause: Callable[[], None] = lambda: None,
        reporter: Reporter | None = None,
    ) -> Generator[Batch]:
        """Return the batches from the state's step to the end of the last epoch, in one stream.

        One stream for all epochs, so that loader processes start once and read ahead over the end
        of an epoch.

        Args:
            pool: of the run; None: processes of its own.
            pause: called about once a second while no batch comes; may raise to stop.
            reporter: gets a warning when none comes for a minute.
        """
        recipe, context = self.config.recipe, self.context
        batches = TrainBatches(
            count_draws(self.train),
            context.recipe.batch_size,
            seed=self.config.seed,
            epochs=recipe.epochs,
            repeats=recipe.augment.repeated_aug,
            first_step=self.state.progress.step,
            draws=choose_draws(self.train, recipe.sampling),
            windows=self.windows,
            is_labeled=find_labeled(self.train.labels) if self.num_unlabeled else None,
        )
        return build_train_loader(
            self.train,
            recipe.augment,
            self.model_config.preprocessing.img_size,
            batches,
            workers=self.workers,
            pin_memory=context.device.pins_memory,
            plan=self.view_plan,
            shard=context.world.shard(context.recipe.batch_size),
            pool=pool,
            pause=pause,
            reporter=reporter,
        )


def build_student(
    config: TrainConfig,
    train: ImageDataset,
    reporter: Reporter,
    *,
    download: bool = True,
    channels: ChannelStats | None = None,
) -> LoadedModel:
    """Build the model that a run trains: initialized by the seed, or from the named weights.

    Args:
        config: the run.
        train: the training images, whose classes the model gets.
        reporter: shows downloads.
        download: False: weights that would be downloaded are left random.
        channels: of images of bands, as the run began with; None: those of the weights, or measured.
    """
    recipe = config.recipe
    distilled = None if config.distill is None else config.distill.dist_token
    with rng.scope(config.seed, "init"), _hinting_at_scratch():
        student = build_model(
            config.model,
            class_names=train.class_names,
            descriptions=describe_classes(train.class_names),
            img_size=recipe.img_size,
            drop_path_rate=recipe.drop_path_rate,
            pretrained=recipe.pretrained,
            weights=config.weights,
            distilled=distilled,
            model_args=config.model_args,
            in_chans=recipe.in_chans,
            start_classes=read_start_classes(config),
            dpr_constant=recipe.dpr_constant,
            download=download,
            reporter=reporter,
        )
    if recipe.pos_embed == "sincos2d":
        fix_positions(student.model, fill=not student.weights)
    student = set_task(student, train)
    student = replace(student, model_config=_keep_value_range(student.model_config, train))
    if train.bands:
        student = _normalize_bands(student, config, train, channels, reporter)
    if recipe.augment.crop_scale == (1.0, 1.0):  # trained on uncropped images, so evaluated on them
        preprocessing = replace(
            student.model_config.preprocessing, crop_pct=1.0, crop_mode="squash"
        )
        model_config = replace(student.model_config, preprocessing=preprocessing)
        student = replace(student, model_config=model_config)
    if recipe.early_epochs:  # raises for a model of one input size, before anything is written
        compute_early_size(student.model, student.model_config, recipe)
    if config.classes and not student.weights:
        raise ConfigError(
            "--classes names the classes of weights, and this training starts from none.",
            "Name them with --weights, or leave it out.",
        )
    if config.classes and not isinstance(student.model, VisionTransformer):
        reporter.note(f"--classes is not used: {config.model} is no DeiT, and gets a new head.")
    if distilled and not isinstance(student.model, VisionTransformer):
        reporter.note(
            f"{config.model} is no DeiT and has no distillation token: its one head learns from "
            "the teacher."
        )
    return student


def set_task(student: LoadedModel, train: ImageDataset) -> LoadedModel:
    """Let the model predict what its training images have: one label, or several.

    A head of the other kind is fitted anew: its logits are of another scale, although its rows are
    those of the classes. Temperatures and thresholds are left out: they are those of the weights that
    it starts from.
    """
    task = MULTILABEL if train.is_multilabel else CLASSIFICATION
    is_other = bool(student.weights) and student.model_config.task != task
    model_config = replace(student.model_config, task=task, thresholds={}, temperatures={})
    return replace(
        student, model_config=model_config, has_new_head=student.has_new_head or is_other
    )


def _normalize_bands(
    student: LoadedModel,
    config: TrainConfig,
    train: ImageDataset,
    channels: ChannelStats | None,
    reporter: Reporter,
) -> LoadedModel:
    """Let the model normalize bands as its run began, as its weights do, or as its images measure."""
    start = config.weights or (config.model if has_weights(config.model) else "")
    folder = resolve_folder(start, reporter, download_weights=False) if start else None
    is_of_weights = folder is not None and (
        load_model_config(folder).preprocessing.in_chans == train.bands
    )
    if channels is None and is_of_weights:
        return student
    stats = channels or measure_channels(select_labeled(train), config.seed, reporter)
    return replace(student, model_config=set_channels(student.model_config, stats))


def _keep_value_range(model_config: ModelConfig, train: ImageDataset) -> ModelConfig:
    """Let the model scale images of more than 8 bits as its training does."""
    return model_config.with_value_range(
        None if train.value_range == NO_RANGE else train.value_range
    )


@contextmanager
def _hinting_at_scratch() -> Iterator[None]:
    """Let an error of weights that cannot be had name the training that needs none."""
    try:
        yield
    except WeightsNotFound as error:
        hint = f"{error.hint} --no-pretrained trains from scratch."
        raise WeightsNotFound(error.message, hint.strip()) from error


def read_start_classes(config: TrainConfig) -> tuple[str, ...]:
    """Return the names of the classes of the weights that a run starts from, if it names them."""
    return read_class_names(config.classes).names if config.classes else ()


def note_changes(config: TrainConfig, student: LoadedModel, reporter: Reporter) -> None:
    """Report how the weights that a run starts from were changed to fit."""
    for change in student.changes:
        reporter.note(f"{config.model}: {change}.")


def build_training(
    config: TrainConfig,
    student: LoadedModel,
    train: ImageDataset,
    val: ImageDataset,
    *,
    device: Device,
    reporter: Reporter,
    teacher: RunTeacher | None = None,
    objective: Objective | None = None,
    world: World = SINGLE_PROCESS,
) -> TrainSetup:
    """Move `student` to `device`, and build optimizer, EMA and context for it.

    Raises:
        ConfigError: a batch has fewer pairs of images than there are processes.
    """
    model_config = pin_img_size(student.model, student.model_config)
    device.tune_malloc()
    model = device.to_device(student.model)
    world.broadcast_module_(model)
    num_images = count_draws(train)
    # The learning rate is scaled by the images that a step has, not by those it might have.
    batch_size = fit_batch_size(num_images, config.recipe.batch_size)
    recipe = replace(config.recipe, batch_size=batch_size)
    if world.size > 1 and recipe.batch_size < 2 * world.size:
        raise ConfigError(
            f"A batch of {recipe.batch_size} is too small for {world.size} processes, which take two "
            "images or more.",
            "Raise --batch-size, or start fewer.",
        )
    steps = steps_per_epoch(num_images, recipe.batch_size)
    frozen = freeze(model, recipe)
    if config.grad_checkpointing:
        enable_grad_checkpointing(model)
    sharding = None
    if config.strategy == "fsdp" and world.size > 1:
        from deitctl.training.sharding import Sharding  # which imports much of torch

        sharding = Sharding(model, world, device)
    ema = None
    if recipe.ema_decay:
        ema = ExponentialMovingAverage(model, decay=recipe.ema_decay)
    optimizer = build_optimizer(
        model,
        recipe.optim,
        get_layers(model, recipe),
        peak_lr=compute_peak_lr(recipe.optim, batch_size),
    )
    progress = Progress(
        num_train_images=len(train.labels),
        micro_batch_size=round_up_to_pairs(config.micro_batch_size),
        views_version=VIEWS_VERSION,
    )
    if teacher is not None:
        teacher.load()
    term = None
    if teacher is not None and teacher.num_features and objective is None:
        term = build_feature_term(config, student, teacher.num_features, device)
        world.broadcast_module_(term.projector)
        add_trained(optimizer, term.projector, recipe.optim)
    state = TrainState(
        model,
        optimizer,
        device.grad_scaler(),
        ema,
        progress,
        projector=None if term is None else term.projector,
        frozen=frozen,
        sharding=sharding,
    )
    context = TrainContext(
        recipe,
        model_config.preprocessing,
        len(train.class_names),
        steps,
        config.seed,
        device,
        objective or build_objective(config, ClassCounts.of(train), device.torch_device, term),
        config.distill,
        cached_teacher=teacher.build_cached_teacher() if teacher and teacher.uses_views else None,
        teacher=teacher.get_network() if teacher and not teacher.uses_views else None,
        has_unlabeled=count_unlabeled(train) > 0,
        world=world,
        stop_on_bad_image=config.on_bad_image == "stop",
        preferred_micro_batch_size=device.preferred_micro_batch_size(
            compute_max_activation_bytes(model, device.dtype)
        ),
    )
    early_size = compute_early_size(model, model_config, recipe) if recipe.early_epochs else 0
    img_size = model_config.preprocessing.img_size
    warn_about_sizes(config.recipe, num_images, model, img_size, early_size, reporter)
    note_sampling(config.recipe, train, reporter)
    note_order(config, train, reporter)
    workers = device.choose_num_workers(config.workers, in_memory=train.is_in_memory)
    fits_head = student.has_new_head and recipe.head_init == "ridge"
    setup = TrainSetup(
        config, model_config, train, val, teacher, context, state, early_size, workers, fits_head
    )
    if config.workers >= 0:
        return setup
    own_size = -(-batch_size // world.size)
    batch_bytes = count_batch_bytes(own_size, img_size, setup.view_plan)
    return replace(setup, workers=fit_loaders(workers, batch_bytes, reporter.note))


def build_feature_term(
    config: TrainConfig, student: LoadedModel, num_teachers: Sequence[int], device: Device
) -> FeatureTerm:
    """Build the loss of teachers' features and its projections, on the device.

    Args:
        config: the run, in a mode with features.
        student: the model that is trained, on the device.
        num_teachers: number of features of each teacher.
        device: of the run.
    """
    assert config.distill is not None
    features = config.distill.features
    pool = choose_student_pool(student.model, features.student_pool)
    num_student = count_student_features(student, pool)
    projector = build_projector(features.loss, num_student, num_teachers, config.seed)
    return FeatureTerm(features.loss, features.weight, pool, projector.to(device.torch_device))


def count_student_features(student: LoadedModel, pool: str) -> int:
    """Return the number of a student's features; raise `ModelError` for one that lacks what is to be pooled."""
    try:
        return count_features(student.model, student.model_config.preprocessing, pool)
    except ModelError as error:
        if pool == "cls":
            hint = "Use the average of its features: --set distill.features.student_pool=avg, or leave it out."
            raise ModelError(error.message, hint) from error
        raise


def warn_about_sizes(
    recipe: Recipe,
    num_images: int,
    model: nn.Module,
    img_size: ImageSize,
    early_size: ImageSize,
    reporter: Reporter,
) -> None:
    """Report a batch size or progressive resizing that differs from the recipe's, or that may cost
    accuracy.

    Args:
        recipe: as configured.
        num_images: of an epoch.
        model: the student.
        img_size: of its input, in pixels.
        early_size: the same in the early epochs, 0 without any.
        reporter: gets the messages.
    """
    if recipe.batch_size > num_images:
        reporter.note(
            f"A batch is all {num_images} images of an epoch, which are fewer than "
            f"{recipe.batch_size}."
        )
    resize = recipe.progressive_resize
    if resize.fraction and resize.scale < 1 and early_size in (0, img_size):
        reason = "images are too small" if early_size else "the run is too short"
        reporter.note(f"No early epochs of smaller images: {reason}.")
    elif early_size:
        reporter.note(
            f"{recipe.early_epochs} of {recipe.epochs} epochs at {format_size(early_size)} pixels, "
            f"the others at {format_size(img_size)}."
        )
        if has_few_patches(model, early_size):
            reporter.warn(
                f"Images of {format_size(early_size)} pixels are so few patches that early epochs of them may cost "
                "accuracy (ten points at 2 x 2 patches). A recipe without -fast, or a "
                "larger --img-size, does not."
            )


def note_sampling(recipe: Recipe, train: ImageDataset, reporter: Reporter) -> None:
    """Report what an epoch is where it does not show every image once."""
    if recipe.sampling == "balanced":
        draws = BalancedDraws(train.labels)
        reporter.note(draws.describe(train.class_names, recipe.augment.repeated_aug))


def round_up_to_pairs(size: int) -> int:
    """Return an even micro-batch size: mixing needs pairs."""
    return size + size % 2
