"""The parts of a run without a run: model, teacher, optimizer, loader; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.batch_transforms import normalize, to_model_channels
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, TeacherView, TrainViews, ViewPlan, collate, pin_batch
from deitctl.data.samplers import EpochOrder, SampleKey
from deitctl.data.sources import BUILT_IN
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.ensemble import (
    CachedEnsemble,
    EnsembleNetwork,
    averages_labels,
    join_views,
)
from deitctl.distillation.features import FeatureCodec
from deitctl.distillation.joint_targets import JointCodec
from deitctl.distillation.targets import TargetCodec, TeacherTargets
from deitctl.distillation.teacher import Teacher, freeze_teacher
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.build import build_model
from deitctl.models.heads import forward_heads
from deitctl.models.model_config import Preprocessing
from deitctl.models.sources import list_weight_files
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.recipes import DIGITS_CONVNET
from deitctl.sizes import ImageSize
from deitctl.training.build import (
    TrainSetup,
    build_feature_term,
    build_student,
    build_training,
)
from deitctl.training.class_balance import ClassCounts
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch, place_batch
from deitctl.training.engine import build_engine
from deitctl.training.freezing import set_train_mode
from deitctl.training.objective import build_objective
from deitctl.training.optim import add_trained
from deitctl.training.step import (
    compute_losses,
    forward_backward,
    optimizer_step,
)
from deitctl.training.student_losses import teach
from deitctl.training.trainer import LOG_EVERY

ENDLESS = 10**9
"""Epochs of a trial's loader, so that no measurement comes to its end."""
NUM_RENDERED = 8
"""Distinct views that a batch is made of."""
MAX_TRIES = 256
"""Images among which readable ones are looked for."""


@dataclass(frozen=True)
class TrialRun(TrainSetup):
    """A run whose teacher has random weights and computes targets for every image."""

    teacher_network: Teacher | EnsembleNetwork | None = None

    @property
    def view_plan(self) -> ViewPlan:
        """Views at full size, for the teacher too where it sees views."""
        recipe, cached_teacher = self.context.recipe, self.context.cached_teacher
        plan = ViewPlan(
            self.context.seed,
            repeats=recipe.augment.repeated_aug,
            in_chans=self.context.view_chans,
            draws=self.context.table_draws,
        )
        distill, network = self.context.distill, self.teacher_network
        if cached_teacher is None or distill is None or network is None:
            return plan
        inputs = [teacher.model_config.preprocessing for teacher in network.networks]
        return replace(
            plan,
            seed=distill.view_seed,
            views=distill.views,
            teacher_views=join_views([TeacherView(own.img_size, own.in_chans) for own in inputs]),
        )

    @property
    def img_size(self) -> ImageSize:
        """Of the student's input in pixels."""
        return self.context.preprocessing.img_size

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.context.recipe.batch_size

    @property
    def steps_per_sync(self) -> int:
        """Steps between two reads of the loss, which synchronize an accelerator."""
        return 1 if self.context.device.is_synchronous else LOG_EVERY

    def with_batch_size(self, batch_size: int) -> TrialRun:
        """Return the same with batches of another size; model and state are shared."""
        recipe = replace(self.context.recipe, batch_size=batch_size)
        return replace(self, context=replace(self.context, recipe=recipe))

    def train_views(self, dataset: ImageDataset | None = None) -> TrainViews:
        """Return the views of the training images, or of another data set's, by key."""
        augment = self.context.recipe.augment
        return TrainViews(dataset or self.train, augment, self.img_size, self.view_plan)

    def readable_keys(self, count: int) -> list[SampleKey]:
        """Return the first samples of the training, at most `count`, whose images can be read.

        Raises:
            DataError: none of the first `MAX_TRIES` images can be read.
        """
        order = EpochOrder(
            len(self.train.labels),
            seed=self.context.seed,
            epoch=0,
            repeats=self.context.recipe.augment.repeated_aug,
        )
        views, keys, errors = self.train_views(), list[SampleKey](), list[str]()
        for key in order[:MAX_TRIES]:
            sample = views[key]
            if sample.pixels is None:
                errors.append(sample.error)
            else:
                keys.append(key)
            if len(keys) == count:
                break
        if not keys:
            raise DataError(f"None of {len(errors)} images can be read; the first: {errors[0]}")
        return keys

    def batch(self) -> Batch:
        """Return a batch of few distinct real views, each repeated."""
        views = self.train_views()
        samples = [views[key] for key in self.readable_keys(NUM_RENDERED)]
        batch = collate([samples[n % len(samples)] for n in range(self.batch_size)])
        if not self.context.device.pins_memory:
            return batch
        return pin_batch(batch)

    def place(self, batch: Batch) -> DeviceBatch:
        """Return a batch on the device, as the next step takes it."""
        return place_batch(self.context, self.state, batch, self.state.progress.step)

    def first_micro_batch(self, batch: Batch) -> Batch:
        """Return the images of a batch that a step takes at once."""
        return next(batch.split(self.context.micro_batch_size(self.state)))

    def step(self, batch: Batch) -> None:
        """Take a real step; where memory runs out, micro-batches are halved, as in a training."""
        context, state = self.context, self.state
        stats = forward_backward(self.engine, self.place(batch), SilentReporter())
        optimizer_step(context, state, context.lr_at(state.progress.step), stats.grad_norm)
        state.progress.step += 1

    def forward(self, batch: Batch) -> Tensor:
        """Return the student's loss on a batch, without a teacher."""
        alone = build_engine(self.context.without_teacher(), self.state)
        return compute_losses(alone, self.place(batch))["loss"]

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self) -> None:
        """Update the weights by the gradients that are there, and no EMA."""
        grad_norm = torch.ones((), device=self.context.device.torch_device)
        without_ema = replace(self.state, ema=None)
        optimizer_step(self.context, without_ema, self.context.lr_at(0), grad_norm)

    def update_ema(self) -> None:
        """Update the EMA of the weights."""
        assert self.state.ema is not None
        step = self.state.progress.step
        total_steps = self.context.schedule_steps(step)
        self.state.ema.update(self.state.model, step, total_steps=total_steps)

    @torch.no_grad()
    def compute_teacher_targets(self, batch: Batch) -> TeacherTargets:
        """Return the teacher's targets for a batch, as a step computes them."""
        context, device = self.context, self.context.device
        if context.cached_teacher is not None:
            return context.cached_teacher(batch)
        assert context.teacher is not None
        assert context.distill is not None
        images = normalize(device.to_device(batch.images), context.preprocessing)
        with device.autocast():
            several = batch.labels.ndim == 2
            return teach(context.teacher, images, context.distill, is_multilabel=several)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Run the student on a batch as a validation does, in the training's precision."""
        model, device, recipe = self.state.model, self.context.device, self.context.recipe
        model.eval()
        try:
            with device.autocast():
                own = self.context.preprocessing
                images = normalize(device.to_device(batch.images), own)
                forward_heads(model, to_model_channels(images, own.in_chans))
        finally:
            set_train_mode(model, recipe.freeze, recipe.freeze_bn_stats)


def build_trial(
    config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset], device: Device
) -> TrialRun:
    """Build what a run of `config` trains, with random weights; nothing is downloaded or written.

    Only a model of the hub (`hf-hub:`) is fetched, because its architecture is known there alone.
    """
    train, val = datasets
    recipe, distill = replace(config.recipe, pretrained=False), config.distill
    untrained = replace(config, recipe=recipe, weights="", classes="")
    student = build_student(untrained, train, SilentReporter(), download=False)
    # a DistillationTeacher would fetch its weights and open its cache
    without_teacher = replace(untrained, distill=None)
    setup = build_training(
        without_teacher, student, train, val, device=device, reporter=SilentReporter()
    )
    context, teacher = setup.context, None
    if distill is not None:
        alone = [replace(config, distill=distill) for distill in distill.list_teachers()]
        networks = [build_random_teacher(a, train, context.preprocessing, device) for a in alone]
        teacher = networks[0] if len(networks) == 1 else EnsembleNetwork(networks)
        term = None
        if distill.uses_features:
            num_features = tuple(n.num_features for n in networks if n.feature_pool)
            term = build_feature_term(config, student, num_features, device)
            add_trained(setup.state.optimizer, term.projector, context.recipe.optim)
            setup = replace(setup, state=replace(setup.state, projector=term.projector))
        objective = build_objective(config, ClassCounts.of(train), device.torch_device, term)
        context = replace(context, distill=distill, objective=objective)
        if distill.teacher_input == "mixed":
            context = replace(context, teacher=teacher)
        else:
            pairs = zip(networks, alone, strict=True)
            averages = averages_labels(distill)
            uncached = [_build_uncached(network, a, context, averages) for network, a in pairs]
            context = replace(context, cached_teacher=_join_uncached(uncached, networks, distill))
    set_train_mode(setup.state.model, recipe.freeze, recipe.freeze_bn_stats)
    endless = replace(without_teacher, recipe=replace(recipe, epochs=ENDLESS))
    parts = vars(setup) | {"config": endless, "context": context}
    return TrialRun(**parts, teacher_network=teacher)


def _join_uncached(
    parts: list[CachedTeacher], networks: list[Teacher], distill: DistillConfig
) -> CachedTeacher | CachedEnsemble:
    if len(parts) == 1:
        return parts[0]
    inputs = [network.model_config.preprocessing for network in networks]
    distinct = list(dict.fromkeys((own.img_size, own.in_chans) for own in inputs))
    placed = [
        replace(part, place=distinct.index((own.img_size, own.in_chans)))
        for part, own in zip(parts, inputs, strict=True)
    ]
    is_multilabel = networks[0].is_multilabel  # all have the data's
    return CachedEnsemble(tuple(placed), distill.label_mode, distill.tau, is_multilabel)


def _build_uncached(
    teacher: Teacher, config: TrainConfig, context: TrainContext, averages: bool
) -> CachedTeacher:
    distill, device = config.distill, context.device
    assert distill is not None
    topk = distill.logits_topk if distill.label_mode == "soft" else 0
    mode = "logits" if averages else distill.label_mode
    labels = TargetCodec(mode, context.num_classes, topk, teacher.is_multilabel)
    codec = JointCodec(
        labels if distill.label_mode else None,
        FeatureCodec(teacher.num_features) if distill.uses_features else None,
    )
    repeats = config.recipe.augment.repeated_aug
    return CachedTeacher(codec, distill.tau, None, lambda: teacher, device, distill.views, repeats)


def build_random_teacher(
    config: TrainConfig, train: ImageDataset, preprocessing: Preprocessing, device: Device
) -> Teacher:
    """Build a run's teacher with random weights, which are as slow as any."""
    distill = config.distill
    assert distill is not None
    img_size = distill.teacher_img_size
    if config.data == BUILT_IN and not list_weight_files(distill.teacher, distill.teacher_weights):
        # what the built-in teacher is trained at where its weights are not here
        img_size = img_size or DIGITS_CONVNET.img_size
    with rng.scope(config.seed, "teacher"):
        teacher = build_model(
            distill.teacher,
            class_names=train.class_names,
            img_size=img_size,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=None,
            reporter=SilentReporter(),
        )
    task = MULTILABEL if train.is_multilabel else CLASSIFICATION
    teacher = replace(teacher, model_config=replace(teacher.model_config, task=task))
    rows = tuple(range(len(train.class_names))) if distill.label_mode else None
    feature_pool = distill.features.pool if distill.uses_features else ""
    return freeze_teacher(teacher, rows, preprocessing, device, feature_pool=feature_pool)
