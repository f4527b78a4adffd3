"""One training step: forward and backward of a batch, all-reduce, gradient norm; then the optimizer
and the EMA.

Letters: B images, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import DistillConfig, OptimConfig, Recipe
from deitctl.data.batch_transforms import normalize, random_erase, student_affine, to_model_channels
from deitctl.data.loader import Batch
from deitctl.data.mixup import MixGroup, mix_images, mix_targets, pair_indices, sample_mixup
from deitctl.device import Device, ran_out_of_memory
from deitctl.distillation.cached_teacher import CachedTeacher
from deitctl.distillation.ensemble import CachedEnsemble, EnsembleNetwork
from deitctl.distillation.targets import TeacherTargets, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, Patience, World
from deitctl.errors import DataError, DeitctlError
from deitctl.events import Reporter
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import Preprocessing
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import make_size
from deitctl.training.freezing import is_batch_norm
from deitctl.training.losses import find_labeled, make_targets
from deitctl.training.objective import Objective, StudentBatch, Supervised, find_task_loss
from deitctl.training.optim import set_learning_rate
from deitctl.training.optimizer_state import seeded
from deitctl.training.schedule import compute_lr_with_restarts
from deitctl.training.signals import StopRequest
from deitctl.training.state import TrainState

MIN_MICRO_BATCH = 2  # mixing needs pairs of images


class OutOfMemory(DeitctlError):
    """Memory runs out with the smallest micro-batch."""


@dataclass(frozen=True)
class TrainContext:
    """What a step needs besides the state, the same for every step of a run."""

    recipe: Recipe
    """Its `batch_size` is that of the largest batch, see `fit_batch_size`."""
    preprocessing: Preprocessing
    num_classes: int
    steps_per_epoch: int
    seed: int
    device: Device
    objective: Objective
    """What a step minimizes."""
    distill: DistillConfig | None = None
    cached_teacher: CachedTeacher | CachedEnsemble | None = None
    """Gives targets of views, to be mixed as the images are (`--teacher-input unmixed`)."""
    teacher: Teacher | EnsembleNetwork | None = None
    """Gives targets of the mixed images themselves, as in the paper (`--teacher-input mixed`)."""
    has_unlabeled: bool = False
    """Whether some training images have no labels."""
    world: World = SINGLE_PROCESS
    stop_on_bad_image: bool = False
    preferred_micro_batch_size: int = 0
    """See `Device.preferred_micro_batch_size`; 0: any."""

    @property
    def view_chans(self) -> int:
        """Channels of the views: RGB's where a teacher sees them in color and its student in gray."""
        own = self.preprocessing.in_chans
        return max(own, self.teacher.in_chans) if self.teacher else own

    @property
    def uses_student_affine(self) -> bool:
        """Whether the student sees views moved a little, because the same views come again."""
        return (
            self.distill is not None
            and self.distill.teacher_input == "unmixed"
            and self.distill.views > 0
        )

    def without_teacher(self) -> TrainContext:
        """Return the context of steps that learn the true labels alone, by the same loss."""
        objective = self.objective
        if self.distill is not None:
            objective = Supervised(find_task_loss(objective))
        return replace(self, objective=objective, distill=None, cached_teacher=None, teacher=None)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return compute_lr_with_restarts(
            self.recipe, step=step, steps_per_epoch=self.steps_per_epoch
        )

    def schedule_steps(self, step: int) -> int:
        """Return the steps of the schedule that a step is in."""
        return self.recipe.schedule_of(step // self.steps_per_epoch)[1] * self.steps_per_epoch

    def micro_batch_size(self, state: TrainState) -> int:
        """Return the images of a micro-batch: requested, forced by memory, or fastest; 0 for all."""
        return state.progress.micro_batch_size or self.preferred_micro_batch_size

    def largest_micro_batch(self, state: TrainState) -> int:
        """Return the most images that any process takes at a time."""
        pairs = -(-self.recipe.batch_size // 2)
        largest_shard = 2 * -(-pairs // self.world.size)
        return min(self.micro_batch_size(state) or largest_shard, largest_shard)


class StepStats(NamedTuple):
    """What `forward_backward` returns besides the gradients; the same in every process."""

    losses: dict[str, Tensor]
    """Means over the images of the global batch: `loss`, `task_loss` and so on."""
    grad_norm: Tensor
    """Of all gradients, before clipping."""
    num_images: int
    """Images of the global batch that could be read."""
    unreadable: list[tuple[int, str]]
    """Index and reason of each of the others."""
    signum: int
    """The signal by which any process is to stop, 0 for none."""
    save_requested: bool
    """Whether any process is to save, after a signal."""


def forward_backward(
    context: TrainContext,
    state: TrainState,
    batch: Batch,
    reporter: Reporter,
    signals: StopRequest | None = None,
) -> StepStats:
    """Leave the gradient of the mean loss over the global batch in the parameters.

    If memory runs out in any process, all halve their micro-batches and start the batch again.
    Every draw is a function of the step and the images, so the gradient stays the same but for
    rounding.

    Raises:
        DataError: no image of the batch can be read; or one cannot, with `stop_on_bad_image`.
        OutOfMemory: memory runs out with the smallest micro-batch.
    """
    world, signals = context.world, signals or StopRequest()
    while True:
        losses = accumulate_gradients(context, state, batch)
        # The step's one exchange of numbers; processes must agree on each of them.
        out_of_memory, counts, unreadable_counts, signums, saves = zip(
            *world.all_gather_ints(
                [
                    losses is None,
                    len(batch.keys),
                    len(batch.unreadable),
                    signals.signum,
                    signals.save_requested,
                ],
                Patience(signals.raise_if_set, reporter.warn),
            ),
            strict=True,
        )
        if losses is not None and not any(out_of_memory):
            break
        _halve_micro_batch(context, state, reporter)
    num_images, unreadable = sum(counts), []
    if any(unreadable_counts):
        unreadable = [error for errors in world.all_gather_object(batch.errors) for error in errors]
        reason = unreadable[0][1]
        if context.stop_on_bad_image:
            raise DataError(reason, "The run stops at such an image (--on-bad-image stop).")
        if not num_images:
            raise DataError(f"No image of the batch can be read; the first: {reason}")
    if world.size > 1:
        all_reduce_gradients(context, state, losses, counts)
    if state.scaler.is_enabled():
        state.scaler.unscale_(state.optimizer)
    grads = [p.grad for _, p in state.named_parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(grads)
    return StepStats(losses, grad_norm, num_images, unreadable, max(signums), any(saves))


def accumulate_gradients(
    context: TrainContext, state: TrainState, batch: Batch
) -> dict[str, Tensor] | None:
    """Run forward and backward in micro-batches; return their losses, None if memory ran out."""
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    # Several processes divide by the size of the largest batch; `all_reduce_gradients` corrects
    # for a smaller one and for unreadable images.
    total = len(batch.keys) if context.world.size == 1 else context.recipe.batch_size
    try:
        for part in batch.split(context.micro_batch_size(state)):
            if not part.keys:
                continue
            losses, weight = compute_losses(context, state, part), len(part.keys) / total
            state.scaler.scale(losses["loss"] * weight).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                value = value.detach() * weight
                sums[name] = sums[name] + value if name in sums else value
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return None
    return sums


def _halve_micro_batch(context: TrainContext, state: TrainState, reporter: Reporter) -> None:
    progress, batch_size = state.progress, context.recipe.batch_size
    size = context.largest_micro_batch(state)  # of any process, so that all halve alike
    state.optimizer.zero_grad(set_to_none=True)
    context.device.empty_cache()
    if size <= MIN_MICRO_BATCH:
        raise OutOfMemory(
            f"Memory runs out even with {MIN_MICRO_BATCH} images at a time.",
            "Use a smaller --img-size or a smaller model.",
        )
    progress.micro_batch_size = max(MIN_MICRO_BATCH, size // 4 * 2)  # even
    reporter.warn(
        f"Out of memory with micro-batches of {size} images: continuing with "
        f"{progress.micro_batch_size}, and the batch size is still {batch_size}."
    )


def all_reduce_gradients(
    context: TrainContext, state: TrainState, losses: dict[str, Tensor], counts: tuple[int, ...]
) -> None:
    """Sum gradients and losses over the processes, and average the statistics of batch norms.

    Args:
        context: of the run.
        state: whose gradients.
        losses: of this process; replaced by those of the global batch.
        counts: readable images of each process.
    """
    # One sum after the backward pass instead of DistributedDataParallel's during it: memory that
    # runs out in one process then cannot leave the others waiting inside a collective,
    # micro-batches need no special case, and heads that a loss leaves out need no search for unused
    # parameters.
    world, named = context.world, list(state.named_parameters())
    if 0 in counts:  # a process without an image has no gradients, and must still join the sum
        with_grad = [n for n, p in named if p.grad is not None]
        trained = {name for names in world.all_gather_object(with_grad) for name in names}
        for name, parameter in named:
            if name in trained and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # The longest list of names is that of a process with images.
        for name in max(world.all_gather_object(list(losses)), key=len):
            losses.setdefault(name, torch.zeros((), device=context.device.torch_device))
    grads = [p.grad for _, p in named if p.grad is not None]
    order = sorted(losses)
    values = torch.stack([losses[name].float() for name in order])
    world.all_reduce_([*grads, values])
    correction = context.recipe.batch_size / sum(counts)
    if correction != 1:  # the mean is over the images that there are and that can be read
        torch._foreach_mul_(grads, correction)
        values *= correction
    losses.update(zip(order, values, strict=True))
    batch_norms = [m for m in state.model.modules() if is_batch_norm(m) and m.training]
    if stats := [b for m in batch_norms for b in m.buffers() if b.is_floating_point()]:
        world.all_reduce_(stats)
        torch._foreach_div_(stats, world.size)


def compute_losses(context: TrainContext, state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """Return the mean losses of a micro-batch.

    Every draw is a function of (seed, step), of (seed, key) or of an image's slot in the global
    batch, so that neither micro-batches nor processes change what an image becomes. Only what
    timm's models draw by themselves (dropout, stochastic depth) depends on the micro-batch too.
    """
    recipe, device, step = context.recipe, context.device, state.progress.step
    taught = None
    if context.cached_teacher is not None:
        padded = context.largest_micro_batch(state)
        taught = place_targets(context.cached_teacher(batch, padded), device)
    images = normalize(device.to_device(batch.images), context.preprocessing)
    if context.uses_student_affine:
        images = student_affine(images, batch.keys, recipe.augment, context.seed)
    images = random_erase(images, batch.keys, recipe.augment.random_erase_prob, context.seed)
    labels = device.to_device(batch.labels)
    targets = make_targets(labels, context.num_classes)

    first = context.world.shard(recipe.batch_size).start
    slots = [first + slot for slot in batch.slots]  # of the global batch
    size = make_size(*images.shape[-2:])
    groups = sample_mixup(recipe.augment, size, context.seed, step, slots)
    partners = device.to_device(pair_indices(slots))
    images, targets = mix_images(images, groups, partners), mix_targets(targets, groups, partners)
    labeled = None
    if context.has_unlabeled:
        labeled = mix_targets(find_labeled(labels)[:, None], groups, partners)[:, 0]
    mask = None
    # Without train mode (a frozen backbone) nothing is dropped. timm's models draw their own, in
    # the scope below.
    if isinstance(state.model, VisionTransformer) and state.model.training:
        generator = rng.torch_generator(context.seed, "drop-path", step)
        mask = state.model.sample_drop_path(recipe.batch_size, generator)
        if mask is not None:  # a frozen block drops nothing
            mask[[not block.training for block in state.model.blocks]] = 1
        mask = device.to_device(mask[..., slots]) if mask is not None else None

    # The first micro-batch of the first process has the seed of an undivided batch. It begins with
    # slot 1 where the image of slot 0 is unreadable.
    scope = (context.seed, "step", step, *(() if slots[0] < 2 else (slots[0],)))
    with rng.scope(*scope), device.autocast():
        if taught is not None:
            taught = _mix(taught, groups, partners)
        elif context.teacher is not None and context.distill is not None:
            several = labels.ndim == 2
            taught = teach(context.teacher, images, context.distill, is_multilabel=several)
        else:
            taught = TeacherTargets(None)
        images = to_model_channels(images, context.preprocessing.in_chans)
        return context.objective(
            state.model,
            StudentBatch(images, targets, taught.labels, mask, taught.features, labeled),
        )


def teach(
    teacher: Teacher | EnsembleNetwork,
    images: Tensor,
    distill: DistillConfig,
    *,
    is_multilabel: bool = False,
) -> TeacherTargets:
    """Return what a student learns of mixed images [B,C,H,W] from its teacher, as they are computed.

    Args:
        teacher: the network, or several.
        images: as the student sees them.
        distill: for mode and temperature.
        is_multilabel: whether the data's images have several labels.
    """
    outputs = [network(images) for network in teacher.networks]
    logits = [output.logits.float() for output in outputs if output.logits is not None]
    labels = None
    if distill.label_mode:
        average = logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)
        labels = teacher_targets(average, distill.label_mode, distill.tau, is_multilabel)
    features = [output.features.float() for output in outputs if output.features is not None]
    return TeacherTargets(labels, tuple(features))


def place_targets(targets: TeacherTargets, device: Device) -> TeacherTargets:
    """Return targets on a device."""
    labels = None if targets.labels is None else device.to_device(targets.labels)
    return TeacherTargets(labels, tuple(device.to_device(f) for f in targets.features))


def _mix(targets: TeacherTargets, groups: Sequence[MixGroup], partners: Tensor) -> TeacherTargets:
    """Mix targets in the proportion in which their images are mixed.

    Features too: that is no feature of the mixed image, which VkD's released code computes, as
    `--teacher-input mixed` does, and nothing could be cached.
    """
    labels = targets.labels
    labels = None if labels is None else mix_targets(labels, groups, partners)
    return TeacherTargets(labels, tuple(mix_targets(f, groups, partners) for f in targets.features))


def optimizer_step(context: TrainContext, state: TrainState, lr: float, grad_norm: Tensor) -> None:
    """Clip the gradients, whose norm is `grad_norm`, and update weights and EMA."""
    set_learning_rate(state.optimizer, lr)
    clip_gradients(state, context.recipe.optim, grad_norm)
    with seeded(state.optimizer, context.seed, "optimizer", state.progress.step):
        state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        step = state.progress.step
        state.ema.update(state.model, step, total_steps=context.schedule_steps(step))


def clip_gradients(state: TrainState, config: OptimConfig, grad_norm: Tensor) -> None:
    """Make gradients smaller that are larger than `clip_grad`, by `clip_mode`, as timm's
    `dispatch_clip_grad`; `grad_norm` is the norm of all."""
    limit = config.clip_grad
    if not limit:
        return
    named = list(state.named_parameters())
    if config.clip_mode == "norm":
        torch.nn.utils.clip_grads_with_norm_([p for _, p in named], limit, grad_norm)
    elif config.clip_mode == "value":
        torch.nn.utils.clip_grad_value_([p for _, p in named], limit)
    else:
        from timm.utils import adaptive_clip_grad  # type: ignore[attr-defined]

        # As in the paper (arXiv 2102.06171 §4.1), not the classifier.
        heads = tuple(f"{name}." for name in describe_layers(state.model)["classifier"])
        clipped = [p for name, p in named if not name.startswith(heads)]
        adaptive_clip_grad(clipped, limit)  # type: ignore[no-untyped-call]
