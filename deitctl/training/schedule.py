"""The learning rate of a step: a function of the settings and of the step, with nothing to save."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from deitctl.config import OptimConfig, Recipe
from deitctl.recipes import ONECYCLE_END, ONECYCLE_START, RESTART_LR


class Span(NamedTuple):
    """Where a step is in its schedule, in steps. A rate moves with each of them, which short runs need."""

    step: int
    warmup: float
    """Steps of the warm-up, a part of `total`."""
    decay: float
    """Steps of the decay of `wsd`, a part of `total`."""
    total: int
    """Steps of the schedule."""


def compute_peak_lr(config: OptimConfig, batch_size: int) -> float:
    """Return lr * batch_size / lr_base_size, DeiT Table 9's linear scaling; lr itself without a base."""
    return config.lr * batch_size / config.lr_base_size if config.lr_base_size else config.lr


def compute_lr(
    config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int, batch_size: int
) -> float:
    """Return a step's learning rate, by the schedule that `config.sched` names.

    All but one-cycle rise linearly from `warmup_lr` first.
    """
    peak, per_epoch = compute_peak_lr(config, batch_size), max(1, steps_per_epoch)
    warmup, total = config.warmup_epochs * per_epoch, epochs * per_epoch
    decay = config.decay_epochs * (per_epoch if config.decay_epochs >= 1 else total - warmup)
    # Whole steps, as in timm's `create_scheduler_v2`; at least one, so that the run ends at `min_lr`.
    span = Span(step, warmup, max(1, min(round(decay), total - warmup)), total)
    if config.sched == "onecycle":
        return _follow_one_cycle(config, peak, span)
    if step < span.warmup:
        return config.warmup_lr + (peak - config.warmup_lr) * step / span.warmup
    return config.min_lr + (peak - config.min_lr) * _fall(config, span)


def _fall(config: OptimConfig, span: Span) -> float:
    """Return how far a rate after its warm-up is from `min_lr` to the peak: 1 at the peak, 0 at the end."""
    done = min(1.0, span.step / span.total)
    match config.sched:
        # These two count from step 0, as timm's do without `warmup_prefix`: the warm-up cuts off their beginning.
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":  # timm's `poly` of power 1
            return 1 - done
        case "wsd":
            return _decay(config, span)
    return 1.0  # constant


def _decay(config: OptimConfig, span: Span) -> float:
    """Return the same of warm-up, stable, decay (MiniCPM, arXiv 2404.06395), as timm's `wsd_lr`."""
    done = min(1.0, (span.step - (span.total - span.decay)) / span.decay)
    if done <= 0:
        return 1.0
    match config.decay_fn:
        case "1-sqrt":  # the best of arXiv 2405.18392
            return 1 - math.sqrt(done)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done


def _follow_one_cycle(config: OptimConfig, peak: float, span: Span) -> float:
    """Return a step's rate in one cycle (arXiv 1708.07120), as torch's `OneCycleLR` with cosines."""
    last = span.total - 1
    top = config.pct_start * span.total - 1  # torch's; the step of the peak
    start, end = peak / ONECYCLE_START, peak / ONECYCLE_START / ONECYCLE_END
    if span.step <= top:
        return _anneal(start, peak, span.step / top if top > 0 else 1.0)
    return _anneal(peak, end, min(1.0, (span.step - top) / (last - top)) if last > top else 1.0)


def _anneal(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


def compute_lr_with_restarts(recipe: Recipe, *, step: int, steps_per_epoch: int) -> float:
    """Return a step's learning rate where `recipe.restart_epochs` begin the schedule again (SGDR,
    arXiv 1608.03983): its warm-up, and all that follows, is stretched to its epochs, from those that the
    first was planned for."""
    start, epochs = recipe.schedule_of(step // max(1, steps_per_epoch))
    _, first_epochs = recipe.schedule_of(0)
    optim = recipe.optim
    if start:
        scale = epochs / first_epochs
        decay_epochs = optim.decay_epochs
        if decay_epochs >= 1:  # below 1 it is a fraction, which follows by itself
            decay_epochs = max(1.0, decay_epochs * scale)
        optim = replace(
            optim,
            lr=RESTART_LR * optim.lr,
            warmup_epochs=optim.warmup_epochs * scale,
            decay_epochs=decay_epochs,
        )
    return compute_lr(
        optim,
        step=step - start * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        batch_size=recipe.batch_size,
    )
