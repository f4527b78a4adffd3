"""The stages of a step: teacher, forward, backward, optimizer, average; saving and evaluating; and the loop around them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path

import torch
from torch import Tensor

from deitctl import rng
from deitctl.data.loader import Batch
from deitctl.data.mixup import normalize
from deitctl.errors import DeitctlError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.heads import forward_heads
from deitctl.models.vit import VisionTransformer
from deitctl.profiling.bench_result import Limit, Stage, StageClock
from deitctl.profiling.clock import Timing, measure
from deitctl.profiling.trial_run import TrialRun
from deitctl.training.losses import smooth_labels, teacher_targets
from deitctl.training.step import (
    LOG_EVERY,
    StepStats,
    TrainingDiverged,
    set_train_mode,
    train_one_epoch,
    update,
)
from deitctl.training.trainer import EVAL_BATCH

ADAMW_BYTES, AVERAGE_BYTES = 28, 12
"""Of memory that a step moves for each parameter: weights, gradients and two moments are read and all but the gradients
written; an average is read and written, and the weights read."""
LONGEST = 400
"""Steps of a measured loop."""


@dataclass(frozen=True)
class Limits:
    """The ceilings of the stages."""

    forward: Limit
    backward: Limit
    teacher: Limit | None
    optimizer: Limit
    average: Limit


def teacher_stage(job: TrialRun, batch: Batch, clock: StageClock, limit: Limit | None) -> Stage:
    """Measure the teacher's answers as a step asks for them."""

    def work() -> int:
        teacher_words(job, batch)
        return len(batch.keys)

    return clock.take("teacher", "teacher", work, limit=limit)


@torch.no_grad()
def teacher_words(job: TrialRun, batch: Batch) -> Tensor | None:
    """Return the teacher's words about a batch, [B,K] on the device; None without a teacher."""
    plan, device = job.plan, job.device
    if plan.listener is not None:
        return device.to_device(plan.listener.form.decode(plan.listener.ask(batch.teacher_images)))
    if plan.teacher is None or plan.distill is None:
        return None
    with device.autocast():
        images = normalize(device.to_device(batch.images), plan.preprocessing)
        return teacher_targets(plan.teacher(images), plan.distill.mode, plan.distill.tau)


def student_stages(
    job: TrialRun, batch: Batch, clock: StageClock, limits: Limits
) -> Iterator[Stage]:
    """Measure the forward and the backward pass on a batch that is on the device, its teacher's words too."""
    plan, state, device, size = job.plan, job.state, job.device, len(batch.keys)
    images = normalize(device.to_device(batch.images), plan.preprocessing)
    targets = smooth_labels(device.to_device(batch.labels), plan.num_classes, plan.recipe.smoothing)
    words, keep = teacher_words(job, batch), None
    if isinstance(state.model, VisionTransformer) and state.model.training:
        keep = state.model.sample_drop_path(size, rng.torch_generator(plan.seed, "drop-path", 0))
        keep = device.to_device(keep) if keep is not None else None
    forward: list[float] = []

    def work() -> int:
        state.optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with rng.scope(plan.seed, "step", 0), device.autocast():
            loss = plan.objective(state.model, images, targets, words, keep).total
        device.synchronize()
        forward.append((time.perf_counter() - start) / size)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return size

    both = clock.take("both", "both passes", work)
    if both.timing is None:
        yield replace(both, name="forward")
        yield replace(both, name="backward")
        return
    there = Timing(forward[0] * size, tuple(forward[1:]))
    back = Timing(
        both.timing.first - there.first,
        tuple(b - f for b, f in zip(both.timing.samples, there.samples, strict=True)),
    )
    for name, timing, limit in (
        ("forward", there, limits.forward),
        ("backward", back, limits.backward),
    ):
        yield replace(
            both,
            name=name,
            title=f"{name} pass",
            timing=timing,
            share=limit.cost * timing.rate / limit.most,
            ceiling=limit.name,
        )


def update_stages(job: TrialRun, clock: StageClock, limits: Limits) -> Iterator[Stage]:
    """Measure the optimizer and the average of the weights, by the images of a step; gradients are there already."""
    plan, state, size = job.plan, job.state, job.plan.recipe.batch_size
    alone = replace(state, ema=None)
    norm = torch.ones((), device=job.device.torch_device)

    def work() -> int:
        update(plan, alone, plan.rate(0), norm)
        return size

    yield clock.take("optimizer", "optimizer", work, limit=limits.optimizer)
    if (average := state.ema) is not None:

        def follow() -> int:
            average.update(state.model, state.progress.step)
            return size

        yield clock.take("average", "average", follow, limit=limits.average)


def save_stage(job: TrialRun, clock: StageClock, folder: Path) -> Stage:
    """Measure writing the whole state, into a folder that is thrown away."""

    def work() -> int:
        job.state.save(folder / "state")
        return 1

    return clock.take("save", "save the state", work, unit="times", most=5)


def evaluation_stage(job: TrialRun, batch: Batch, clock: StageClock, limit: Limit) -> Stage:
    """Measure the answers about validation images that are on the device, in the training's precision."""
    model, size = job.state.model, min(EVAL_BATCH, len(batch.keys))
    images = normalize(job.device.to_device(batch.images[:size]), job.plan.preprocessing)

    @torch.no_grad()
    def work() -> int:
        with job.device.autocast():
            forward_heads(model, images)
        return size

    model.eval()
    try:
        return clock.take("evaluation", "evaluation", work, limit=limit)
    finally:
        set_train_mode(model, job.plan.recipe.freeze, job.plan.recipe.freeze_bn_stats)


def step_stage(job: TrialRun, batch: Batch, clock: StageClock, name: str, title: str) -> Stage:
    """Measure whole steps on a batch that is at hand."""

    def work() -> int:
        if not job.step(batch):
            raise MemoryError
        return len(batch.keys)

    return clock.take(name, title, work)


def loop_stage(
    job: TrialRun,
    batches: Callable[[], Iterator[Batch]],
    clock: StageClock,
    name: str,
    title: str,
    guess: float,
    reporter: Reporter,
) -> Stage:
    """Measure the training loop itself, and how long it waits for batches.

    Args:
        job: what is trained.
        batches: opens the stream, which is taken as part of the first step.
        clock: takes the stage.
        name: of the stage.
        title: of the stage.
        guess: seconds that an image takes, from which the number of steps follows.
        reporter: is told of memory that runs out.
    """
    waited = 0.0

    def timed() -> Timing:
        nonlocal waited
        timing, waited = _time_loop(job, batches, guess, clock.seconds, reporter)
        return timing

    return replace(clock.watch(name, title, timed), waited=waited)


def _time_loop(
    job: TrialRun,
    batches: Callable[[], Iterator[Batch]],
    guess: float,
    seconds: float,
    reporter: Reporter,
) -> tuple[Timing, float]:
    """Run `train_one_epoch` for about twice `seconds`; the first step is kept apart, as is its wait."""
    size, state, device = job.plan.recipe.batch_size, job.state, job.device
    window = (
        1 if device.is_synchronous else LOG_EVERY
    )  # an accelerator is waited for as seldom as training does
    windows = max(2, min(LONGEST // window, math.ceil(2 * seconds / (guess * size * window))))
    waits, marks = list[float](), list[float]()
    begun, quiet = time.perf_counter(), _WarningsAlone(reporter)

    def waiting() -> Iterator[Batch]:
        stream = batches()
        while True:
            start = time.perf_counter()
            batch = next(stream)
            waits.append(time.perf_counter() - start)
            yield batch

    def after_step(_: StepStats) -> None:
        if (len(waits) - 1) % window == 0:
            device.synchronize()
            marks.append(time.perf_counter())

    plan = replace(job.plan, steps_per_epoch=1 + windows * window)
    progress = state.progress
    progress.step = progress.epoch = 0
    progress.sums, state.sums = {}, {}
    try:
        train_one_epoch(
            plan,
            state,
            waiting(),
            log=lambda _: None,
            name_of=job.train.name,
            reporter=quiet,
            after_step=after_step,
        )
    except TrainingDiverged as wrong:
        raise DeitctlError(f"Random weights did not learn: {wrong.incident.sentence}") from None
    samples = tuple((b - a) / (size * window) for a, b in pairwise(marks))
    return Timing(marks[0] - begun, samples), sum(waits[1:]) / (size * window * windows)


class _WarningsAlone(SilentReporter):
    """Passes on nothing but warnings: the epoch that is measured is no epoch to anybody."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def warn(self, message: str) -> None:
        self.reporter.warn(message)


def at_hand(batch: Batch) -> Iterator[Batch]:
    """Return a stream of one batch again and again."""
    return repeat(batch)


def seconds_an_image(job: TrialRun) -> float:
    """Return about how long an image takes in a step, from a small one."""
    small = job.at(min(8, job.plan.recipe.batch_size))
    batch = small.batch()

    def work() -> int:
        small.step(batch)
        return len(batch.keys)

    return measure(work, seconds=0.5, wait=job.device.synchronize, most=3).seconds
