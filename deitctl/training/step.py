"""One epoch of training, readable from top to bottom: gradients of a batch, over micro-batches and processes; a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deitctl import rng
from deitctl.config import DistillConfig, Recipe
from deitctl.data.batch_transforms import normalize, random_erase, student_affine
from deitctl.data.loader import Batch
from deitctl.data.mixup import mix_images, mix_targets, pair_indices, sample_mixup
from deitctl.device import Device, ran_out_of_memory
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError, DeitctlError
from deitctl.events import Reporter
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import Preprocessing
from deitctl.models.vit import VisionTransformer
from deitctl.training.losses import smooth_labels, teacher_targets
from deitctl.training.monitor import Incident, LossMonitor, Observation
from deitctl.training.objective import Distillation, Loss, Objective, Supervised
from deitctl.training.optim import learning_rate, set_learning_rate
from deitctl.training.signals import Stop
from deitctl.training.state import TrainState

LOG_EVERY = 10  # steps; reading the loss makes an accelerator wait
SMALLEST = 2  # images of a micro-batch: mixing needs pairs


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
    listener: CachedTeacher | None = None
    """Gives the teacher's words about views, which are mixed as the images are."""
    teacher: Teacher | None = None
    """Looks at the mixed images themselves, as in the paper."""
    world: World = SINGLE_PROCESS
    stop_on_bad_image: bool = False
    preferred_micro_batch_size: int = 0
    """See `Device.preferred_micro_batch_size`; 0: any."""

    @property
    def objective(self) -> Objective:
        """What a step minimizes."""
        return Supervised() if self.distill is None else Distillation(self.distill)

    @property
    def moves_on_top(self) -> bool:
        """Whether views come again, so that the student sees them moved a little each time."""
        return (
            self.distill is not None
            and self.distill.teacher_input == "unmixed"
            and self.distill.views > 0
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(
            self.recipe.optim,
            step=step,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.recipe.epochs,
            batch_size=self.recipe.batch_size,
        )


class TrainingDiverged(Exception):
    """A step that must not be taken, or should not have been."""

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.sentence)
        self.incident = incident


class StepStats(NamedTuple):
    """What `gradients` found, besides the gradients themselves; the same in every process."""

    parts: dict[str, Tensor]
    """Means of the loss and its parts over the images."""
    norm: Tensor
    num_images: int
    """That could be read."""
    signum: int
    """The signal that asked any process to stop, 0 for none."""
    save: bool
    """Whether a signal asked to save."""


def train_one_epoch(
    plan: Plan,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    log: Callable[[dict[str, Any]], None],
    name_of: Callable[[int], str],
    reporter: Reporter,
    watch: LossMonitor | None = None,
    stop: Stop | None = None,
    after_step: Callable[[StepStats], None] = lambda _: None,
) -> dict[str, float]:
    """Take the steps that are left of an epoch from `batches` and return the means of the loss and its parts over it.

    Args:
        plan: the constants.
        state: the model and what moves with it; changed in place.
        batches: the stream that goes on from epoch to epoch.
        log: takes a record every `LOG_EVERY` steps.
        name_of: names an image by its index, for those that cannot be read.
        reporter: shows progress.
        watch: notices a loss that goes wrong.
        stop: what signals have asked for.
        after_step: called when a step is done and the state is whole; saves, and stops.

    Raises:
        WentWrong: a loss that is no number, or that jumps.
        DataError: an image that cannot be read where that is to stop the run, or a batch of such images alone.
    """
    set_train_mode(state.model, plan.recipe.freeze, plan.recipe.freeze_bn_stats)
    watch = watch or LossMonitor(plan.num_classes, scaled=state.scaler.is_enabled())
    progress, done = state.progress, state.progress.step % plan.steps_per_epoch
    if progress.step // plan.steps_per_epoch > progress.epoch:
        done = plan.steps_per_epoch  # stopped between the last step of the epoch and its end
    label = f"epoch {progress.epoch + 1}/{plan.recipe.epochs}"
    sums = {k: torch.tensor(v, device=plan.device.torch_device) for k, v in progress.sums.items()}
    batch_size = plan.recipe.batch_size
    with reporter.task(label, plan.steps_per_epoch * batch_size) as task:
        task.skip(done * batch_size)
        for number in range(done, plan.steps_per_epoch):
            batch = next(batches)
            rate = plan.rate(progress.step)
            found = gradients(plan, state, batch, name_of, reporter, stop)
            watch.add(Observation(progress.step, rate, found.parts["loss"], found.norm, batch.keys))
            if plan.device.is_synchronous:  # before the weights are touched
                raise_if_diverged(watch)
            state.whole = False
            update(plan, state, rate, found.norm)
            for name, value in found.parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
            fields: dict[str, object] = {}
            last = number + 1 == plan.steps_per_epoch
            if number % LOG_EVERY == 0 or last:
                raise_if_diverged(watch)
                values = {k: float(v) for k, v in found.parts.items()}
                log(
                    {
                        "kind": "step",
                        "step": progress.step,
                        "epoch": progress.epoch + 1,
                        "lr": rate,
                        **values,
                        "grad_norm": float(found.norm),
                    }
                )
                fields["loss"] = f"{values['loss']:.3f}"
            progress.step += 1
            progress.images_seen += found.num_images
            state.sums, state.whole = sums, True
            task.advance(found.num_images, **fields)
            after_step(found)
    return {k: float(v) / plan.steps_per_epoch for k, v in sums.items()}


def raise_if_diverged(watch: LossMonitor) -> None:
    """Raise `TrainingDiverged` if a step so far has."""
    if incident := watch.look():
        raise TrainingDiverged(incident)


def gradients(
    plan: Plan,
    state: TrainState,
    batch: Batch,
    name_of: Callable[[int], str],
    reporter: Reporter,
    stop: Stop | None = None,
) -> StepStats:
    """Leave the gradient of the mean loss over the whole batch, of all processes, in the parameters.

    Where memory runs out in any process, all halve their micro-batches and begin the batch again; every draw is a
    function of the step and the images, so nothing else changes.
    """
    world, progress = plan.world, state.progress
    while True:
        parts, no_memory = _try_gradients(plan, state, batch)
        told = world.all_gather_ints(
            [
                int(no_memory),
                len(batch.keys),
                len(batch.unreadable),
                stop.signum if stop else 0,
                int(stop.save) if stop else 0,
            ]
        )
        if not any(t[0] for t in told):
            break
        _halve_micro_batch(plan, state, reporter)
    if any(t[2] for t in told):
        bad = {
            name_of(index): why
            for errors in world.all_gather_object(batch.errors)
            for index, why in errors
        }
        progress.bad_images.update(bad)
        if plan.stop_on_bad_image:
            raise DataError(
                next(iter(bad.values())), "The run stops at such an image (--on-bad-image stop)."
            )
        if not any(t[1] for t in told):
            raise DataError(f"No image of a whole batch can be read, {next(iter(bad.values()))}")
    num_images = sum(t[1] for t in told)
    if world.size > 1:
        _sum_over_processes(
            plan, state.model, parts, num_images, alone=any(t[1] == 0 for t in told)
        )
    if plan.device.dtype is torch.float16:
        state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in state.model.parameters() if p.grad is not None]
    )
    return StepStats(parts, norm, num_images, max(t[3] for t in told), any(t[4] for t in told))


def _try_gradients(plan: Plan, state: TrainState, batch: Batch) -> tuple[dict[str, Tensor], bool]:
    """Run this process's images forward and backward in micro-batches; return the loss's parts, or that memory ran out."""
    sums: dict[str, Tensor] = {}
    state.optimizer.zero_grad(set_to_none=True)
    whole = len(batch.keys) if plan.world.size == 1 else plan.recipe.batch_size
    try:
        for part in batch.parts(at_a_time(plan, state)):
            if not part.keys:
                continue
            loss, weight = compute_loss(plan, state, part), len(part.keys) / whole
            state.scaler.scale(loss.total * weight).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.total, **loss.parts}.items():
                value = value.detach() * weight
                sums[name] = sums[name] + value if name in sums else value
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return {}, True
    return sums, False


def at_a_time(plan: Plan, state: TrainState) -> int:
    """Return the images of a micro-batch: asked for, or forced by memory, or as pays on the device; 0 for all."""
    return state.progress.micro_batch or plan.preferred_micro_batch_size


def _halve_micro_batch(plan: Plan, state: TrainState, reporter: Reporter) -> None:
    """Make micro-batches half as large, an even number of images."""
    progress = state.progress
    pairs = -(-plan.recipe.batch_size // 2)
    present = at_a_time(plan, state) or 2 * -(
        -pairs // plan.world.size
    )  # the largest share of any process
    state.optimizer.zero_grad(set_to_none=True)
    plan.device.empty_cache()
    if present <= SMALLEST:
        raise DeitctlError(
            f"Memory runs out even with {SMALLEST} images at a time.",
            "Use a smaller --img-size or a smaller model.",
        )
    progress.micro_batch = max(SMALLEST, present // 4 * 2)
    reporter.warn(
        f"Out of memory with {present} images at a time: going on with {progress.micro_batch}, "
        f"and a batch is still {plan.recipe.batch_size}."
    )


def _sum_over_processes(
    plan: Plan, model: nn.Module, parts: dict[str, Tensor], num_images: int, *, alone: bool
) -> None:
    """Add up gradients and loss parts over the processes; one that had no image adds nothing.

    Our own sum after the backward pass instead of DistributedDataParallel's during it: memory that runs out in one
    process then cannot leave the others waiting inside a collective, micro-batches need no special case, and heads
    that a loss leaves out need no search for unused parameters.
    """
    named = list(model.named_parameters())
    if alone:
        learn = {
            n
            for names in plan.world.all_gather_object([n for n, p in named if p.grad is not None])
            for n in names
        }
        for name, parameter in named:
            if name in learn and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        names = max(plan.world.all_gather_object(list(parts)), key=len)
        for name in names:
            parts.setdefault(name, torch.zeros((), device=plan.device.torch_device))
    tensors = [p.grad for _, p in named if p.grad is not None]
    order = sorted(parts)
    values = torch.stack([parts[name].float() for name in order])
    plan.world.all_reduce_([*tensors, values])
    missing = plan.recipe.batch_size / num_images
    if missing != 1:  # images that could not be read: the mean is over the others
        torch._foreach_mul_(tensors, missing)
        values *= missing
    parts.update(zip(order, values, strict=True))
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]
    if statistics := [b for m in norms for b in m.buffers() if b.is_floating_point()]:
        plan.world.all_reduce_(statistics)
        torch._foreach_div_(statistics, plan.world.size)


def compute_loss(plan: Plan, state: TrainState, batch: Batch) -> Loss:
    """Return the mean loss of images; all randomness is a function of (seed, step), (seed, key) or an image's slot."""
    recipe, device, step = plan.recipe, plan.device, state.progress.step
    words = None if plan.listener is None else device.to_device(plan.listener(batch))
    images = normalize(device.to_device(batch.images), plan.preprocessing)
    if plan.moves_on_top:
        images = student_affine(images, batch.keys, recipe.augment, plan.seed)
    images = random_erase(images, batch.keys, recipe.augment.random_erase_prob, plan.seed)
    targets = smooth_labels(device.to_device(batch.labels), plan.num_classes, recipe.smoothing)
    mix, other = (
        sample_mixup(recipe.augment, images.shape[-1], plan.seed, step),
        device.to_device(pair_indices(batch.slots)),
    )
    images, targets = mix_images(images, mix, other), mix_targets(targets, mix, other)
    first = plan.world.shard(recipe.batch_size).start
    slots = [first + slot for slot in batch.slots]
    keep = None
    if (
        isinstance(state.model, VisionTransformer) and state.model.training
    ):  # a probed body drops nothing
        keep = state.model.sample_drop_path(
            recipe.batch_size, rng.torch_generator(plan.seed, "drop-path", step)
        )
        keep = device.to_device(keep[..., slots]) if keep is not None else None

    seed = (plan.seed, "step", step) if slots[0] < 2 else (plan.seed, "step", step, slots[0])
    with rng.scope(*seed), device.autocast():  # timm's models draw from the global generator
        if words is not None:
            words = mix_targets(words, mix, other)
        elif plan.teacher is not None and plan.distill is not None:
            words = teacher_targets(plan.teacher(images), plan.distill.mode, plan.distill.tau)
        return plan.objective(state.model, images, targets, words, keep)


def update(plan: Plan, state: TrainState, rate: float, norm: Tensor) -> None:
    """Take a step of AdamW along the gradients, whose norm is `norm`, and let the average of the weights follow."""
    set_learning_rate(state.optimizer, rate)
    if clip := plan.recipe.optim.clip_grad:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), clip, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model, state.progress.step)


def set_train_mode(model: nn.Module, freeze: str, freeze_bn_stats: bool = False) -> None:
    """Put what learns into train mode; the rest of a probed model keeps its batch statistics and drops nothing."""
    model.train(freeze == "none")
    if freeze == "backbone":
        for name in describe_layers(model)["classifier"]:
            model.get_submodule(name).train()
    if freeze_bn_stats:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class Stopwatch:
    """Seconds since it was made, on top of earlier sessions'."""

    def __init__(self, before: float = 0.0) -> None:
        self.before, self.start = before, time.monotonic()

    def __call__(self) -> float:
        return self.before + time.monotonic() - self.start
