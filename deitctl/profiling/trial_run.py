"""A run's parts without a run: the same loop, recipe, model and teacher, of random weights, and no folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from deitctl import rng
from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, Sample, TrainViews, ViewPlan, collate, build_train_loader
from deitctl.data.open import BUILT_IN
from deitctl.data.samplers import TrainBatches
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.resolve import freeze_teacher
from deitctl.distillation.target_cache import TargetCodec
from deitctl.distillation.teacher import Teacher
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.models.factory import build_model, weight_files
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import DIGITS_CONVNET
from deitctl.training.launch import build_student
from deitctl.training.run_dir import Run
from deitctl.training.state import TrainState
from deitctl.training.step import Plan, gradients, set_train_mode, update
from deitctl.training.trainer import Trainer

RENDERED, TRIES = 8, 256
"""Views that a batch is made of, and images among which as many readable ones are looked for."""


@dataclass(frozen=True)
class TrialRun:
    """What steps of a training take, with a teacher that is asked about every image."""

    config: TrainConfig
    train: ImageDataset
    val: ImageDataset
    device: Device
    workers: int
    plan: Plan
    state: TrainState
    views: ViewPlan

    @property
    def img_size(self) -> int:
        """Side of the student's input in pixels."""
        return self.plan.preprocessing.img_size

    @cached_property
    def teacher(self) -> Teacher | None:
        """The network that is asked, None without a teacher."""
        return self.plan.teacher or (
            self.plan.listener.teacher() if self.plan.listener is not None else None
        )

    def at(self, batch_size: int) -> TrialRun:
        """Return the same with batches of another size; model and state are shared."""
        recipe = replace(self.plan.recipe, batch_size=batch_size)
        return replace(self, plan=replace(self.plan, recipe=recipe))

    def keys(self, batch_size: int = 0) -> TrainBatches:
        """Return the order of the images, without an end, in batches of the plan's or another size."""
        recipe, count = self.plan.recipe, len(self.train.labels)
        size = min(batch_size or recipe.batch_size, count)
        return TrainBatches(
            count, size, seed=self.plan.seed, epochs=10**9, repeats=recipe.augment.repeated_aug
        )

    def training_views(self, dataset: ImageDataset | None = None) -> TrainViews:
        """Return the views of the training images, or of another source's, by key."""
        return TrainViews(dataset or self.train, self.plan.recipe.augment, self.img_size, self.views)

    def batches(self) -> Iterator[Batch]:
        """Return the stream that the training would take its batches from."""
        return build_train_loader(
            self.train,
            self.plan.recipe.augment,
            self.img_size,
            self.keys(),
            workers=self.workers,
            pin_memory=self.device.pins_memory,
            plan=self.views,
        )

    def batch(self) -> Batch:
        """Return a batch of the plan's size, of `RENDERED` real views or fewer, each as often as it takes.

        Raises:
            DataError: none of the first images can be read.
        """
        views, samples, errors = self.training_views(), list[Sample](), list[str]()
        for key in next(iter(self.keys(TRIES))):
            sample = views[key]
            if sample.pixels is None:
                errors.append(sample.error)
            else:
                samples.append(sample)
            if len(samples) == RENDERED:
                break
        if not samples:
            raise DataError(f"Not one of {len(errors)} images can be read; the first: {errors[0]}")
        batch = collate([samples[n % len(samples)] for n in range(self.plan.recipe.batch_size)])
        if not self.device.pins_memory:
            return batch
        pinned = {n: getattr(batch, n).pin_memory() for n in ("images", "labels", "teacher_images")}
        return batch._replace(**pinned)

    def step(self, batch: Batch) -> bool:
        """Take a real step on a batch; return whether the memory was enough for all of it at once."""
        progress = self.state.progress
        before = progress.micro_batch
        found = gradients(self.plan, self.state, batch, self.train.name, SilentReporter())
        update(self.plan, self.state, self.plan.rate(progress.step), found.norm)
        progress.step += 1
        enough, progress.micro_batch = progress.micro_batch == before, before
        return enough


def rehearse(config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset], device: Device) -> TrialRun:
    """Build what a run of `config` would train, without its weights: nothing is downloaded and nothing is written.

    Only a model of the hub (`hf-hub:`) is fetched, because no other place says what it is.
    """
    train, val = datasets
    recipe = replace(config.recipe, pretrained=False)
    student = build_student(replace(config, recipe=recipe, weights=""), train, SilentReporter())
    alone = replace(config, recipe=recipe, weights="", distill=None)
    session = Trainer(
        Run(Path(), writes=False), alone, device, student, train, val, None, SilentReporter()
    )
    plan, views = session.plan, ViewPlan(config.seed, repeats=recipe.augment.repeated_aug)
    if (distill := config.distill) is not None:
        teacher = untrained_teacher(config, train, plan.preprocessing, device)
        plan = replace(plan, distill=distill)
        if distill.teacher_input == "mixed":
            plan = replace(plan, teacher=teacher)
        else:
            form = TargetCodec(
                distill.mode, plan.num_classes, distill.logits_topk if distill.mode == "soft" else 0
            )
            repeats, size = recipe.augment.repeated_aug, teacher.model_config.preprocessing.img_size
            listener = CachedTeacher(
                form, distill.tau, None, lambda: teacher, device, distill.views, repeats
            )
            plan = replace(plan, listener=listener)
            views = ViewPlan(distill.view_seed, distill.views, repeats, size)
    set_train_mode(session.state.model, recipe.freeze, recipe.freeze_bn_stats)
    return TrialRun(config, train, val, device, session.workers, plan, session.state, views)


def untrained_teacher(
    config: TrainConfig, train: ImageDataset, seen: Preprocessing, device: Device
) -> Teacher:
    """Build a run's teacher with random weights, which take as long to answer as any."""
    distill = config.distill
    assert distill is not None
    size = distill.teacher_img_size
    if config.data == BUILT_IN and not weight_files(distill.teacher, distill.teacher_weights):
        size = (
            size or DIGITS_CONVNET.img_size
        )  # what it is trained at, should its weights not be there
    with rng.scope(config.seed, "teacher"):
        found = build_model(
            distill.teacher,
            class_names=train.class_names,
            img_size=size,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=None,
            reporter=SilentReporter(),
        )
    return freeze_teacher(found, tuple(range(len(train.class_names))), seen, device)
