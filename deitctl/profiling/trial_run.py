"""The parts of a run without a run: model, teacher (random weights), optimizer, views; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, TrainViews, ViewPlan, build_train_loader, collate
from deitctl.data.mixup import normalize
from deitctl.data.open import BUILT_IN
from deitctl.data.samplers import SampleKey, TrainBatches
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.resolve import freeze_teacher
from deitctl.distillation.target_cache import TargetCodec
from deitctl.distillation.teacher import Teacher
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.factory import build_model, list_weight_files
from deitctl.models.heads import forward_heads
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import DIGITS_CONVNET
from deitctl.training.launch import build_student
from deitctl.training.losses import teacher_targets
from deitctl.training.run_dir import Run
from deitctl.training.state import TrainState
from deitctl.training.step import (
    LOG_EVERY,
    Plan,
    at_a_time,
    compute_loss,
    gradients,
    set_train_mode,
    update,
)
from deitctl.training.trainer import Trainer

NUM_RENDERED = 8
"""Distinct views that a batch is made of."""
MAX_TRIES = 256
"""Images among which readable ones are looked for."""


@dataclass(frozen=True)
class TrialRun:
    """What steps of a training need, with a teacher that computes targets for every image."""

    config: TrainConfig
    train: ImageDataset
    val: ImageDataset
    device: Device
    workers: int
    plan: Plan
    state: TrainState
    views: ViewPlan

    @property
    def preprocessing(self) -> Preprocessing:
        """The student's."""
        return self.plan.preprocessing

    @property
    def img_size(self) -> int:
        """Side of the student's input in pixels."""
        return self.preprocessing.img_size

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.plan.recipe.batch_size

    @property
    def steps_per_sync(self) -> int:
        """Steps between two reads of the loss, for which alone training waits for an accelerator."""
        return 1 if self.device.is_synchronous else LOG_EVERY

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher's network, None without one."""
        return self.plan.teacher or (
            self.plan.listener.teacher() if self.plan.listener is not None else None
        )

    def with_batch_size(self, batch_size: int) -> TrialRun:
        """Return the same with batches of another size; model and state are shared."""
        recipe = replace(self.plan.recipe, batch_size=batch_size)
        return replace(self, plan=replace(self.plan, recipe=recipe))

    def train_views(self, dataset: ImageDataset | None = None) -> TrainViews:
        """Return the views of the training images, or of another data set's, by key."""
        dataset = dataset or self.train
        return TrainViews(dataset, self.plan.recipe.augment, self.img_size, self.views)

    def batches(self) -> Iterator[Batch]:
        """Return the stream that the training takes its batches from, without an end."""
        return build_train_loader(
            self.train,
            self.plan.recipe.augment,
            self.img_size,
            self._sample(self.batch_size),
            workers=self.workers,
            pin_memory=self.device.pins_memory,
            plan=self.views,
        )

    def _sample(self, batch_size: int) -> TrainBatches:
        return TrainBatches(
            len(self.train.labels),
            min(batch_size, len(self.train.labels)),
            seed=self.plan.seed,
            epochs=10**9,
            repeats=self.plan.recipe.augment.repeated_aug,
        )

    def readable_keys(self, count: int) -> list[SampleKey]:
        """Return the first samples of the training, at most `count`, whose images can be read.

        Raises:
            DataError: none of the first `MAX_TRIES` images can be read.
        """
        views, keys, errors = self.train_views(), list[SampleKey](), list[str]()
        for key in next(iter(self._sample(MAX_TRIES))):
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
        """Return a batch of few distinct real views, each repeated; raise `DataError` where no image can be read."""
        views = self.train_views()
        samples = [views[key] for key in self.readable_keys(NUM_RENDERED)]
        batch = collate([samples[n % len(samples)] for n in range(self.batch_size)])
        if not self.device.pins_memory:
            return batch
        pinned = {n: getattr(batch, n).pin_memory() for n in ("images", "labels", "teacher_images")}
        return batch._replace(**pinned)

    def first_micro_batch(self, batch: Batch) -> Batch:
        """Return the images of a batch that a step takes at once."""
        return next(batch.parts(at_a_time(self.plan, self.state)))

    def step(self, batch: Batch) -> None:
        """Take a real step; where memory runs out, micro-batches are halved, as in a training."""
        progress = self.state.progress
        stats = gradients(self.plan, self.state, batch, self.train.name, SilentReporter())
        update(self.plan, self.state, self.plan.rate(progress.step), stats.norm)
        progress.step += 1

    def forward(self, batch: Batch) -> Tensor:
        """Return the student's loss on a batch, without a teacher."""
        student_alone = replace(self.plan, distill=None, listener=None, teacher=None)
        return compute_loss(student_alone, self.state, batch).total

    def forward_backward(self, batch: Batch) -> None:
        """Compute the student's gradients on a batch, without a teacher."""
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.scaler.scale(self.forward(batch)).backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self) -> None:
        """Update the weights by the gradients that are there, and no EMA."""
        norm = torch.ones((), device=self.device.torch_device)
        update(self.plan, replace(self.state, ema=None), self.plan.rate(0), norm)

    def update_ema(self) -> None:
        """Update the EMA of the weights."""
        assert self.state.ema is not None
        self.state.ema.update(self.state.model, self.state.progress.step)

    @torch.no_grad()
    def compute_teacher_targets(self, batch: Batch) -> Tensor:
        """Return the teacher's targets [B,K] for a batch, as a step computes them."""
        plan, device = self.plan, self.device
        if plan.listener is not None:
            return device.to_device(plan.listener(batch))
        assert plan.teacher is not None
        assert plan.distill is not None
        images = normalize(device.to_device(batch.images), plan.preprocessing)
        with device.autocast():
            return teacher_targets(plan.teacher(images), plan.distill.mode, plan.distill.tau)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Run the student on a batch as a validation does, in the training's precision."""
        model, recipe = self.state.model, self.plan.recipe
        model.eval()
        try:
            with self.device.autocast():
                images = normalize(self.device.to_device(batch.images), self.preprocessing)
                forward_heads(model, images)
        finally:
            set_train_mode(model, recipe.freeze, recipe.freeze_bn_stats)


def build_trial(
    config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset], device: Device
) -> TrialRun:
    """Build what a run of `config` trains, with random weights: nothing is downloaded and nothing is written.

    Only a model of the hub (`hf-hub:`) is fetched, because its architecture is known there alone.
    """
    train, val = datasets
    recipe = replace(config.recipe, pretrained=False)
    student = build_student(replace(config, recipe=recipe, weights=""), train, SilentReporter())
    alone = replace(config, recipe=recipe, weights="", distill=None)
    trainer = Trainer(
        Run(Path(), writes=False), alone, device, student, train, val, None, SilentReporter()
    )
    plan, views = trainer.plan, ViewPlan(config.seed, repeats=recipe.augment.repeated_aug)
    if (distill := config.distill) is not None:
        teacher = build_random_teacher(config, train, plan.preprocessing, device)
        plan = replace(plan, distill=distill)
        if distill.teacher_input == "mixed":
            plan = replace(plan, teacher=teacher)
        else:
            codec = TargetCodec(
                distill.mode, plan.num_classes, distill.logits_topk if distill.mode == "soft" else 0
            )
            repeats, size = recipe.augment.repeated_aug, teacher.model_config.preprocessing.img_size
            listener = CachedTeacher(
                codec, distill.tau, None, lambda: teacher, device, distill.views, repeats
            )
            plan = replace(plan, listener=listener)
            views = ViewPlan(distill.view_seed, distill.views, repeats, size)
    set_train_mode(trainer.state.model, recipe.freeze, recipe.freeze_bn_stats)
    return TrialRun(config, train, val, device, trainer.workers, plan, trainer.state, views)


def build_random_teacher(
    config: TrainConfig, train: ImageDataset, preprocessing: Preprocessing, device: Device
) -> Teacher:
    """Build a run's teacher with random weights, which are as slow as any."""
    distill = config.distill
    assert distill is not None
    size = distill.teacher_img_size
    if config.data == BUILT_IN and not list_weight_files(distill.teacher, distill.teacher_weights):
        # what the built-in teacher is trained at where its weights are not here
        size = size or DIGITS_CONVNET.img_size
    with rng.scope(config.seed, "teacher"):
        teacher = build_model(
            distill.teacher,
            class_names=train.class_names,
            img_size=size,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=None,
            reporter=SilentReporter(),
        )
    return freeze_teacher(teacher, tuple(range(len(train.class_names))), preprocessing, device)
