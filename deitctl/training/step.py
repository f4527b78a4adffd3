"""One training step: forward and backward of a batch in micro-batches, gradient norm; then the optimizer
and the EMA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import OptimConfig
from deitctl.device import ran_out_of_memory
from deitctl.distributed import Patience
from deitctl.errors import DataError, DeitctlError
from deitctl.events import Reporter
from deitctl.models.introspect import describe_layers
from deitctl.training.context import MIN_MICRO_BATCH, TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.engine import Engine, Outcome, Share, add_losses
from deitctl.training.optim import set_learning_rate
from deitctl.training.optimizer_state import seeded
from deitctl.training.signals import StopRequest
from deitctl.training.state import TrainState
from deitctl.training.step_stats import Reading, StepStats


class OutOfMemory(DeitctlError):
    """Memory runs out with the smallest micro-batch."""


def forward_backward(
    engine: Engine,
    batch: DeviceBatch,
    reporter: Reporter,
    signals: StopRequest | None = None,
    *,
    has_diverged: bool = False,
) -> StepStats:
    """Leave the gradient of the mean loss over the global batch in the parameters.

    If memory runs out in any process, all halve their micro-batches and start the batch again.
    Every draw is a function of the step and the images, so the gradient stays the same but for
    rounding.

    Args:
        engine: of the run.
        batch: of this process.
        reporter: gets warnings.
        signals: those that this process has received.
        has_diverged: what this process tells the others of the steps that it has read.

    Raises:
        DataError: no image of the batch can be read; or one cannot, with `stop_on_bad_image`.
        OutOfMemory: memory runs out with the smallest micro-batch.
    """
    context, state, signals = engine.context, engine.state, signals or StopRequest()
    patience = Patience(signals.raise_if_set, reporter.warn)
    own = Share(
        len(batch.keys),
        len(batch.unreadable),
        signals.signum,
        signals.save_requested,
        has_diverged,
    )
    shares = engine.exchange(own, batch, patience)
    num_images = sum(share.num_images for share in shares)
    unreadable = _gather_unreadable(context, batch, shares, num_images)
    while True:
        losses = accumulate_gradients(engine, batch, num_images)
        outcome = engine.agree(out_of_memory=losses is None, patience=patience)
        if outcome is Outcome.DONE:
            break
        if outcome is Outcome.OUT_OF_MEMORY:
            _halve_micro_batch(context, state, reporter)
        engine.recover()
    assert losses is not None
    engine.reduce(losses, shares)
    if state.scaler.is_enabled():
        state.scaler.unscale_(state.optimizer)
    grad_norm = engine.compute_grad_norm()
    return StepStats(
        losses,
        grad_norm,
        Reading(losses, grad_norm, context.device, context.mark_targets()),
        num_images,
        unreadable,
        signum=max(share.signum for share in shares),
        save_requested=any(share.save_requested for share in shares),
        has_diverged=any(share.has_diverged for share in shares),
    )


def _gather_unreadable(
    context: TrainContext, batch: DeviceBatch, shares: list[Share], num_images: int
) -> list[tuple[int, str]]:
    """Return index and reason of each image that a process could not read; raise `DataError` if none can go on."""
    if not any(share.num_unreadable for share in shares):
        return []
    gathered = context.world.all_gather_object(batch.errors)
    unreadable = [error for errors in gathered for error in errors]
    reason = unreadable[0][1]
    if context.stop_on_bad_image:
        raise DataError(reason, "The run stops at such an image (--on-bad-image stop).")
    if not num_images:
        raise DataError(f"No image of the batch can be read; the first: {reason}")
    return unreadable


def accumulate_gradients(
    engine: Engine, batch: DeviceBatch, num_images: int
) -> dict[str, Tensor] | None:
    """Run forward and backward in micro-batches; return their losses, None if memory ran out.

    Args:
        engine: of the run.
        batch: of this process.
        num_images: of the global batch, whose mean the losses are part of.
    """
    state = engine.state
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    try:
        engine.begin()
        parts = list(batch.split(engine.context.micro_batch_size(state)))
        for number, part in enumerate(parts, 1):
            weight = len(part.keys) / num_images
            with engine.accumulate(is_last=number == len(parts)):
                losses = compute_losses(engine, part)
                state.scaler.scale(losses["loss"] * weight).backward()  # type: ignore[no-untyped-call]
            add_losses(sums, losses, weight)
        engine.prepare_sum(sums)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return None
    return sums


def compute_losses(engine: Engine, batch: DeviceBatch) -> dict[str, Tensor]:
    """Return the mean losses of a micro-batch.

    Only what timm's models draw by themselves (dropout, stochastic depth) depends on the micro-batch too.
    """
    context, cached = engine.context, None
    if context.cached_teacher is not None:
        size = context.largest_micro_batch(engine.state)
        views = (batch.teacher_images, batch.teacher_rows)
        cached = context.cached_teacher.complete(batch.targets, *views, size)
    # The first micro-batch of the first process has the seed of an undivided batch. It begins with
    # slot 1 where the image of slot 0 is unreadable.
    first = batch.first_slot + batch.slots[0]
    scope = (context.seed, "step", batch.step, *(() if first < 2 else (first,)))
    with rng.scope(*scope):
        return engine.forward(batch, cached)


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
