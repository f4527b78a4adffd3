"""One epoch of training, readable from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deitctl import rng
from deitctl.card import Preprocessing
from deitctl.config import DistillConfig, Recipe
from deitctl.data.loader import Batch
from deitctl.data.mixing import draw_mix, mix_images, mix_words, normalise, random_erase
from deitctl.data.on_top import move_a_little
from deitctl.device import Device
from deitctl.errors import DeitctlError
from deitctl.events import Reporter
from deitctl.losses import smooth_labels, teacher_word
from deitctl.models.layers import layer_names
from deitctl.models.vit import VisionTransformer
from deitctl.optim import learning_rate, set_learning_rate
from deitctl.teacher.frozen import Teacher
from deitctl.teacher.listen import Listener
from deitctl.training.objective import Distillation, Objective, Supervised
from deitctl.training.state import TrainState

LOG_EVERY = 10  # steps; reading the loss makes an accelerator wait


@dataclass(frozen=True)
class Plan:
    """What does not change from epoch to epoch."""

    recipe: Recipe
    preprocessing: Preprocessing
    num_classes: int
    steps_per_epoch: int
    seed: int
    device: Device
    distill: DistillConfig | None = None
    listener: Listener | None = None
    """Gives the teacher's words about views, which are mixed as the pictures are."""
    teacher: Teacher | None = None
    """Looks at the mixed pictures themselves, as in the paper."""

    @property
    def objective(self) -> Objective:
        """What a step minimises."""
        return Supervised() if self.distill is None else Distillation(self.distill)

    @property
    def moves_on_top(self) -> bool:
        """Whether views come again, so that the student sees them moved a little each time."""
        return self.distill is not None and self.distill.teacher_sees == "view" and self.distill.views > 0


def train_one_epoch(
    plan: Plan, state: TrainState, batches: Iterator[Batch], *, log: Callable[[dict[str, Any]], None],
    name_of: Callable[[int], str], reporter: Reporter,
) -> dict[str, float]:  # fmt: skip
    """Take the steps of one epoch from `batches` and return the means of the loss and its parts.

    Args:
        plan: the constants.
        state: the model and what moves with it; changed in place.
        batches: the stream that goes on from epoch to epoch.
        log: takes a record every `LOG_EVERY` steps.
        name_of: names a picture by its index, for those that cannot be read.
        reporter: shows progress.

    Raises:
        DeitctlError: the loss is no longer a number, or no picture can be read.
    """
    set_train_mode(state.model, plan.recipe.trainable, plan.recipe.keep_batch_stats)
    recipe, progress = plan.recipe, state.progress
    label = f"epoch {progress.epoch + 1}/{recipe.epochs}"
    sums: dict[str, Tensor] = {}
    with reporter.task(label, plan.steps_per_epoch * recipe.batch_size) as task:
        for number in range(plan.steps_per_epoch):
            batch = next(batches)
            progress.bad_images.update({name_of(index): why for index, why in batch.errors})
            if not batch.keys:
                raise DeitctlError(f"No picture of a whole batch can be read, {batch.errors[0][1]}")
            rate = learning_rate(
                recipe.optim, step=progress.step, steps_per_epoch=plan.steps_per_epoch, epochs=recipe.epochs,
                batch_size=recipe.batch_size,
            )  # fmt: skip
            set_learning_rate(state.optimizer, rate)
            parts = train_step(plan, state, batch)
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            fields: dict[str, object] = {}
            if number % LOG_EVERY == 0 or number + 1 == plan.steps_per_epoch:
                values = {k: float(v) for k, v in parts.items()}
                _require_finite(values["loss"], progress.step, rate)
                log({"kind": "step", "step": progress.step, "epoch": progress.epoch + 1, "lr": rate, **values})
                fields["loss"] = f"{values['loss']:.3f}"
            progress.step += 1
            progress.images_seen += len(batch.keys)
            task.advance(len(batch.keys), **fields)
    return {k: float(v) / plan.steps_per_epoch for k, v in sums.items()}


def train_step(plan: Plan, state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """Take one step and return the loss and its parts; all randomness is a function of (seed, step) or (seed, key)."""
    recipe, device, step = plan.recipe, plan.device, state.progress.step
    words = None if plan.listener is None else device.move(plan.listener(batch))
    images = normalise(device.move(batch.images), plan.preprocessing)
    if plan.moves_on_top:
        images = move_a_little(images, batch.keys, recipe.augment, plan.seed)
    images = random_erase(images, batch.keys, recipe.augment.erase_prob, plan.seed)
    targets = smooth_labels(device.move(batch.labels), plan.num_classes, recipe.smoothing)
    mix = draw_mix(recipe.augment, images.shape[-1], plan.seed, step)
    images, targets = mix_images(images, mix), mix_words(targets, mix)
    keep = None
    if isinstance(state.model, VisionTransformer) and state.model.training:  # a probed body drops nothing
        keep = state.model.draw_keep(len(images), rng.torch_generator(plan.seed, "drop-path", step))
        keep = device.move(keep) if keep is not None else None

    with rng.scope(plan.seed, "step", step), device.autocast():  # timm's models draw from the global generator
        if words is not None:
            words = mix_words(words, mix)
        elif plan.teacher is not None and plan.distill is not None:
            words = teacher_word(plan.teacher(images), plan.distill.mode, plan.distill.tau)
        loss = plan.objective(state.model, images, targets, words, keep)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
    if recipe.optim.clip_grad:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.optim.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model, step)
    return {"loss": loss.total.detach(), **{k: v.detach() for k, v in loss.parts.items()}}


def set_train_mode(model: nn.Module, trainable: str, keep_batch_stats: bool = False) -> None:
    """Put what learns into train mode; the rest of a probed model keeps its batch statistics and drops nothing."""
    model.train(trainable == "all")
    if trainable == "head":
        for name in layer_names(model)["classifier"]:
            model.get_submodule(name).train()
    if keep_batch_stats:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _require_finite(loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise DeitctlError(
            f"The loss is {loss} at step {step} (learning rate {rate:.2g}).",
            "The last saved epoch is untouched. Lower --lr, use --precision fp32, or --set optim.clip_grad=1.",
        )


class Stopwatch:
    """Seconds since it was made, on top of earlier sessions'."""

    def __init__(self, before: float = 0.0) -> None:
        self.before, self.start = before, time.monotonic()

    def __call__(self) -> float:
        return self.before + time.monotonic() - self.start
