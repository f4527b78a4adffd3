"""Results of `deitctl bench`: stages, parts of a step's time, expected time of a run, hints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deitctl.config import TrainConfig
from deitctl.distillation.distillation_teacher import NO_CACHE
from deitctl.profiling.peak import PeakThroughput
from deitctl.sizes import ImageSize, long_side

MIN_DATA_WAIT = 0.1
"""Share of the time in waiting for data above which the loader is a bottleneck."""
MIN_TEACHER_SHARE = 0.15
MIN_SPEEDUP = 1.2
"""Of another precision that is worth a hint."""
PACK_SCALE = 8 / 7
"""Short side of packed images over the input's: 256 for 224."""
MIN_SHRINK = 1.2
"""Median short side over that of packed images from which packing is worth a hint."""
PER_STEP = ("optimizer", "ema_update")
"""Stages that cost the same whatever the batch size."""
PER_IMAGE = ("teacher", "forward", "backward")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the work, measured on its own."""

    name: str
    """`read` to `loader` (data), `teacher`, `forward` to `step_cached_batch` (step), `end_to_end`,
    `evaluation`."""
    images_per_second: float | None = None
    """Median; null where the stage could not be measured."""
    images_per_second_iqr: float | None = None
    """Interquartile range; null for a single sample."""
    memory_mib: float | None = None
    """Peak above what was in use before, without the loader's processes."""
    peak: str | None = None
    """What `peak_share` is of: a precision's matrix product, or `copy`."""
    peak_share: float | None = None
    """Of the device's peak throughput, 0 to 1; more where a model fits into the cache."""
    error: str | None = None
    """Why the stage could not be measured."""

    @property
    def seconds(self) -> float | None:
        """Seconds an image, the median."""
        return None if self.images_per_second is None else 1 / self.images_per_second


@dataclass(frozen=True, kw_only=True)
class BenchSetup:
    """The measured training."""

    model: str
    """As named, with random weights."""
    teacher: str | None
    """Null without one."""
    teacher_input: str | None
    """`mixed`, or `unmixed` views, whose targets can be cached; null without a teacher."""
    data: str | None
    """Null for synthetic images."""
    num_train_images: int
    """Of the data, of which few are measured."""
    num_val_images: int
    """Likewise."""
    num_classes: int
    """Of the data."""
    median_side_px: float
    """Short side of the training images in pixels."""
    recipe: str
    """Its name."""
    epochs: int
    """The recipe's."""
    img_size_px: ImageSize
    """Side of the student's input."""
    batch_size: int
    """The recipe's, or that of `auto`."""
    batch_size_reason: str | None
    """Why `auto` chose it; null for any other batch size."""
    measured_batch_size: int
    """Smaller than `batch_size` where a step takes long."""
    peak_lr: float
    """Learning rate at its highest."""
    num_workers: int
    """Loader processes."""
    device: str
    """The GPU's name, or the kind of device and the processor's architecture."""
    precision: str
    """Of training: `fp32`, `tf32`, `bf16` or `fp16`."""


@dataclass(frozen=True, kw_only=True)
class FlopsPerImage:
    """Floating-point operations; a multiplication and an addition are two."""

    forward: int
    """Of the student."""
    step: int
    """Forward and backward."""
    teacher: int | None
    """Of a forward pass; null without one."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run on this machine takes."""

    images_per_second: float
    """Of training."""
    epoch_s: float
    """An epoch with its validation."""
    run_s: float
    """All epochs of the recipe."""
    teacher_epochs: int | None = None
    """Epochs until all teacher targets are cached; null where they never are."""
    later_epoch_s: float | None = None
    """An epoch after that."""


@dataclass(frozen=True, kw_only=True)
class Hint:
    """A bottleneck, and what to change."""

    bottleneck: str
    """`data`, `teacher` or `compute`."""
    message: str
    """What limits, with its measurement."""
    change: str
    """What to do about it."""


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """All measurements of a training, and what follows from them."""

    setup: BenchSetup
    """The measured training."""
    peak: PeakThroughput
    """What the device does at best."""
    flops_per_image: FlopsPerImage
    """Floating-point operations."""
    stages: tuple[Stage, ...]
    """In the order of measurement."""
    step_time_s: dict[str, float]
    """Seconds an image by `teacher`, `forward`, `backward`, `optimizer`, `ema_update`, `overhead`
    (the rest of a step on a cached batch), `data_wait`, `loader_contention` (slowdown by the
    loader's processes). They add up to `end_to_end`, but for `optimizer` and `ema_update`, which
    are those of the recipe's batch size. Empty where a stage failed."""
    data_wait_share: float | None
    """Share of the training's time, 0 to 1, in which no batch is ready."""
    expected: Expected | None
    """Null where a stage failed."""
    hints: tuple[Hint, ...]
    """At most one each for data, teacher and compute."""
    seconds: float
    """Of the benchmark itself."""


def split_step_time(
    stages: Mapping[str, Stage], data_wait: float, *, per_step: float
) -> dict[str, float]:
    """Return the parts of the time an image takes in a run, none below 0; empty where a stage failed.

    Args:
        stages: by name.
        data_wait: seconds an image in which the loop waited for a batch.
        per_step: measured / recipe's batch size; the optimizer's time an image shrinks with it.
    """
    names = [name for name in (*PER_IMAGE, *PER_STEP) if name in stages]
    seconds = {name: stages[name].seconds for name in (*names, "step_cached_batch", "end_to_end")}
    if None in seconds.values():
        return {}
    times = {name: s for name, s in seconds.items() if s is not None}
    cached, end_to_end = times.pop("step_cached_batch"), times.pop("end_to_end")
    # Measured apart, the parts may take longer than the whole, by noise: then they share it.
    data_wait = min(data_wait, end_to_end)
    step = min(cached, end_to_end - data_wait)
    alone = sum(times.values())
    times = {name: s * min(1.0, step / alone) for name, s in times.items()}
    times["overhead"] = max(0.0, step - alone)
    times["data_wait"] = data_wait
    times["loader_contention"] = max(0.0, end_to_end - data_wait - cached)
    return {name: s * per_step if name in PER_STEP else s for name, s in times.items()}


def estimate_run(
    setup: BenchSetup,
    config: TrainConfig,
    stages: Mapping[str, Stage],
    step_time: Mapping[str, float],
) -> Expected | None:
    """Return the time of an epoch and of the run, None where a stage failed.

    A validation takes the longer of network and loader, and with EMA weights the network twice. Once all
    teacher targets are cached, the teacher's time goes; the loader still bounds the rate.
    """
    loader, evaluation, view = (
        stages[name].seconds for name in ("loader", "evaluation", "eval_view")
    )
    if not step_time or loader is None or evaluation is None or view is None:
        return None
    workers = setup.num_workers
    if not workers:
        loader = 0.0  # images are rendered in the step's own process, which counts as data_wait
    train = max(sum(step_time.values()), loader)
    evaluation *= 2 if config.recipe.ema_decay else 1
    validate = max(evaluation, view / workers) if workers else evaluation + view
    validate *= setup.num_val_images
    images = setup.num_train_images
    epochs, epoch = setup.epochs, images * train + validate
    cached_after = count_teacher_epochs(config)
    if cached_after is None or cached_after >= epochs:
        return Expected(images_per_second=1 / train, epoch_s=epoch, run_s=epochs * epoch)
    later = images * max(train - step_time["teacher"], loader) + validate
    return Expected(
        images_per_second=1 / train,
        epoch_s=epoch,
        run_s=cached_after * epoch + (epochs - cached_after) * later,
        teacher_epochs=cached_after,
        later_epoch_s=later,
    )


def count_teacher_epochs(config: TrainConfig) -> int | None:
    """Return the epochs until all teacher targets are cached, None where they never are."""
    distill = config.distill
    if distill is None or distill.teacher_input != "unmixed" or not distill.views:
        return None
    if distill.teacher_cache == NO_CACHE:
        return None
    return math.ceil(distill.views / config.recipe.augment.repeated_aug)


def find_bottlenecks(
    setup: BenchSetup,
    config: TrainConfig,
    peak: PeakThroughput,
    stages: Mapping[str, Stage],
    step_time: Mapping[str, float],
) -> Iterator[Hint]:
    """Yield at most one hint each for data, teacher and compute."""
    if step_time:
        total = sum(step_time.values())
        yield from _hint_data(setup, peak, stages, step_time["data_wait"] / total)
        yield from _hint_teacher(config, step_time.get("teacher", 0.0) / total)
    yield from _hint_compute(setup, peak)


def _hint_data(
    setup: BenchSetup, peak: PeakThroughput, stages: Mapping[str, Stage], wait: float
) -> Iterator[Hint]:
    view, loader, step = (
        stages[name].images_per_second for name in ("train_view", "loader", "step_cached_batch")
    )
    if wait < MIN_DATA_WAIT or view is None or loader is None or step is None:
        return
    # a worker renders as one core does
    workers, changes, pack_side = (
        math.ceil(step / view),
        [],
        round(PACK_SCALE * long_side(setup.img_size_px)),
    )
    if setup.num_workers < workers <= peak.num_cores:
        changes.append(f"--workers {workers}")
    if setup.median_side_px >= MIN_SHRINK * pack_side:
        changes.append(f"deitctl pack DATA OUT --max-size {pack_side}, for smaller images")
    yield Hint(
        bottleneck="data",
        message=(
            f"Training waits for data {100 * wait:.0f} % of its time: the loader gives {loader:.3g} images/s, "
            f"a step takes {step:.3g}, a core renders {view:.3g}."
        ),
        change="; or ".join(changes) or f"more than the {peak.num_cores} cores here: {workers}",
    )


def _hint_teacher(config: TrainConfig, share: float) -> Iterator[Hint]:
    if share < MIN_TEACHER_SHARE or config.distill is None:
        return
    epochs = count_teacher_epochs(config)
    if epochs is None:
        change = "--teacher-input unmixed --views 8, whose targets are cached"
    elif epochs < config.recipe.epochs:
        change = f"deitctl cache-teacher computes its targets in advance, else {epochs} epochs do"
    else:
        change = f"fewer --views: with {config.distill.views} it computes targets in every epoch"
    message = f"The teacher takes {100 * share:.0f} % of the training's time."
    yield Hint(bottleneck="teacher", message=message, change=change)


def _hint_compute(setup: BenchSetup, peak: PeakThroughput) -> Iterator[Hint]:
    """Compare matrix products in other precisions; else name a variable that keeps cores idle."""
    flops, threads = peak.flops_per_second, os.environ.get("OMP_NUM_THREADS")
    fastest = max(flops, key=lambda precision: flops[precision])
    # matrix products are most of a step
    speedup = flops[fastest] / flops[setup.precision]
    if speedup >= MIN_SPEEDUP:
        message = (
            f"Matrix products are {speedup:.2g} times as fast in {fastest} as in {setup.precision}."
        )
        yield Hint(bottleneck="compute", message=message, change=f"--precision {fastest}")
    elif threads and peak.num_threads < peak.num_cores and setup.device.startswith("cpu"):
        message = (
            f"OMP_NUM_THREADS={threads}: torch uses {peak.num_threads} of {peak.num_cores} cores."
        )
        yield Hint(bottleneck="compute", message=message, change="unset OMP_NUM_THREADS")
