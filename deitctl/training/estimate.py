"""Expected duration of a run, from the speed of a few images measured before its first step."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from deitctl.cores import count_cores
from deitctl.data.batch_transforms import normalize, to_model_channels
from deitctl.data.draws import count_draws
from deitctl.data.loader import Batch, TrainViews, ViewPlan, collate
from deitctl.data.samplers import EpochOrder
from deitctl.device import ran_out_of_memory
from deitctl.distributed import SINGLE_PROCESS
from deitctl.events import SilentReporter
from deitctl.free_memory import read_free_memory
from deitctl.models.compiled import is_compiled
from deitctl.models.heads import forward_heads
from deitctl.sizes import height_width
from deitctl.training.build import TrainSetup
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import place_batch
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.engine import build_engine
from deitctl.training.freezing import count_trained, get_layers, set_train_mode
from deitctl.training.head_init import MAX_IMAGES
from deitctl.training.optim import build_optimizer
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import OutOfMemory, forward_backward, optimizer_step

MEASURED_S = 0.5
"""Duration of one measurement, about; two images of a large model take longer."""
MAX_REPEATS = 4
"""Times that a measurement is repeated at most."""
MAX_NAMED = 5
"""Classes that are named."""
MAX_MEASURED = 32
"""Images of a step that is measured on a CPU, where a larger one is not faster."""
MAX_LOADED = 8
"""Images that are decoded and augmented."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds that the parts of a run take on this machine."""

    load_image: float
    """Decoding and augmenting an image, in one loader process."""
    train_image: float
    """Forward and backward pass of an image."""
    step: float
    """The optimizer's update, and that of the moving average."""
    evaluate_image: float
    """Forward pass of an image."""
    teacher_image: float = 0.0
    """The teacher's forward pass of an image."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is left of a run, in images of one process."""

    num_steps: int
    num_trained: float
    """Images of all steps; one of smaller size counts by its pixels."""
    num_evaluated: int
    """Images of all validations, those that new heads are fitted to included."""
    num_evaluated_twice: int = 0
    """Of these, those that the weights and their average score, each loaded once."""
    num_taught: int = 0
    """Images that the teacher computes targets of."""


def expect_seconds(
    speed: Speed, work: Work, *, workers: int, cores: int, shares_cores: bool
) -> float:
    """Return the seconds that a work takes.

    Args:
        speed: measured with all cores, but loading, which is one process's.
        work: what is to be done.
        workers: loader processes; 0: the images are loaded between the steps.
        cores: of this machine that the process has.
        shares_cores: whether the network runs on them too, as on a CPU.
    """

    def pass_images(count: float, compute: float) -> float:
        load = speed.load_image
        if not workers:
            return count * (load + compute)
        # Loader processes take cores from a network on the CPU; beside an accelerator they only
        # must keep up with it.
        shared = compute + load / cores if shares_cores else compute
        return count * max(load / min(workers, cores), shared)

    return (
        pass_images(work.num_trained, speed.train_image)
        + pass_images(work.num_evaluated - work.num_evaluated_twice, speed.evaluate_image)
        + pass_images(work.num_evaluated_twice, 2 * speed.evaluate_image)
        + work.num_taught * speed.teacher_image
        + work.num_steps * speed.step
    )


def estimate_seconds(
    setup: TrainSetup, *, pause: Callable[[], None] = lambda: None
) -> float | None:
    """Return the expected duration of what is left of a run, measured on copies of its parts.

    Args:
        setup: the run.
        pause: called between measurements; may raise to stop.

    Returns:
        Seconds. None if it cannot be measured: there is no memory for a copy, none of the first
        images can be read, or the model is to be compiled first, or is divided among processes.
    """
    device = setup.context.device
    if setup.state.sharding is not None:  # there is no copy of a part
        return None
    if setup.config.compile == "on" or is_compiled(setup.state.model):
        return None
    if not fits_copy(setup, read_free_memory(device)):
        return None
    try:
        speed = measure_speed(setup, pause=pause)
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not (isinstance(error, OutOfMemory) or ran_out_of_memory(error)):
            raise
        return None
    finally:
        device.empty_cache()  # the run begins with the memory that it would have had
    if speed is None:
        return None
    return expect_seconds(
        speed,
        count_work(setup),
        workers=setup.workers,
        cores=count_cores(),
        shares_cores=device.is_synchronous,
    )


def fits_copy(setup: TrainSetup, free: int | None) -> bool:
    """Whether a copy of the model, with what trains it, takes at most half of the free memory.

    The other half is for activations: a CPU's memory that runs out raises no error, it kills.

    Args:
        setup: the run.
        free: bytes that are free; None: not known.
    """
    model, ema = setup.state.model, setup.state.ema
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained, moments = count_trained(setup.state, setup.context.recipe)
    return free is None or 2 * (weights * (1 if ema is None else 2) + trained + moments) <= free


def describe_training(setup: TrainSetup, expected_seconds: float | None) -> str:
    """Return what a run is about to do, as a sentence."""
    context, progress, names = setup.context, setup.state.progress, list(setup.train.class_names)
    epochs, steps = context.recipe.epochs, context.steps_per_epoch
    more = len(names) - MAX_NAMED
    classes = ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")
    unlabeled = f" ({setup.num_unlabeled:,} without labels)" if setup.num_unlabeled else ""
    text = (
        f"Training {setup.config.model} on {len(setup.train.labels):,} images{unlabeled} of {len(names):,} "
        f"classes ({classes}), validating on {len(setup.val.labels):,}: "
        f"{'at most ' if setup.config.patience else ''}{epochs:,} "
        f"{'epoch' if epochs == 1 else 'epochs'} of {steps:,} steps of {context.recipe.batch_size:,} "
        f"images, {epochs * steps:,} steps in all"
    )
    if progress.step:
        text += f", of which {progress.step:,} are done"
    if expected_seconds is None:
        return f"{text}."
    return f"{text}; about {format_duration(expected_seconds)}."


def count_work(setup: TrainSetup) -> Work:
    """Return what is left of a run for one of its processes."""
    context, progress, recipe = setup.context, setup.state.progress, setup.context.recipe
    steps_left = recipe.epochs * context.steps_per_epoch - progress.step
    epochs_left = recipe.epochs - progress.epoch
    num_images = count_draws(setup.train)
    early, full = (
        math.prod(height_width(size)) for size in (setup.early_size, context.preprocessing.img_size)
    )
    pixels = early / full if early else 1.0
    early_left = max(0, recipe.early_epochs - progress.epoch)
    images_left = steps_left / context.steps_per_epoch * num_images
    trained = images_left - (1 - pixels) * early_left * num_images
    num_val = len(setup.val.labels)
    num_averaged = 0 if setup.state.ema is None else epochs_left * num_val
    fitted = (
        min(len(setup.train.labels) - setup.num_unlabeled, MAX_IMAGES)
        if setup.fits_head and not progress.step
        else 0
    )
    taught = 0
    if (teacher := setup.teacher) is not None:
        cache = teacher.cache
        taught = round(images_left) if cache is None else cache.count_missing(teacher.total_views)
    processes = context.world.size
    return Work(
        num_steps=steps_left,
        num_trained=max(0.0, trained) / processes,
        # by the saved weights too
        num_evaluated=round(((epochs_left + 1) * num_val + fitted) / processes),
        num_evaluated_twice=round(num_averaged / processes),
        num_taught=round(taught / processes),
    )


def measure_speed(setup: TrainSetup, *, pause: Callable[[], None] = lambda: None) -> Speed | None:
    """Measure a run's speed on a copy of its model, so that nothing of the run changes.

    Args:
        setup: the run.
        pause: called between measurements; may raise to stop.

    Returns:
        None if none of the first images can be read, or there is only one.
    """
    context = replace(setup.context.without_teacher(), world=SINGLE_PROCESS)
    recipe, device = context.recipe, context.device
    load_image, batch = load_batch(setup, pause)
    if batch is None or recipe.batch_size < len(batch.keys):
        return None
    model = copy.deepcopy(setup.state.model)
    set_train_mode(model, recipe.frozen_part(setup.state.progress.epoch)[0], recipe.freeze_bn_stats)
    ema = ExponentialMovingAverage(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    optimizer = build_optimizer(model, recipe.optim, get_layers(model, recipe))
    micro_batch_size = setup.state.progress.micro_batch_size
    progress = Progress(micro_batch_size=micro_batch_size)
    state = TrainState(model, optimizer, device.grad_scaler(), ema, progress)

    def run(step: Callable[[Batch], object], images: Batch) -> float:
        pause()
        device.synchronize()
        start = time.perf_counter()
        step(images)
        device.synchronize()
        return time.perf_counter() - start

    def run_again(step: Callable[[Batch], object], images: Batch) -> float:
        # The least of a few times: the others are also those of what else this machine does.
        start, least = time.perf_counter(), run(step, images)
        for _ in range(MAX_REPEATS):
            if time.perf_counter() - start > MEASURED_S:
                break
            least = min(least, run(step, images))
        return least

    engine = build_engine(context, state)

    def train(images: Batch) -> None:
        forward_backward(engine, place_batch(context, state, images, 0), SilentReporter())

    # Two images, the fewest: the first time is also that of preparing kernels and memory.
    seconds = run(train, batch)
    if seconds < MEASURED_S:
        seconds = run(train, batch)
    largest = context.micro_batch_size(state) or recipe.batch_size
    if device.is_synchronous:
        largest = min(largest, MAX_MEASURED)
    size = min(largest, recipe.batch_size, int(2 * MEASURED_S / seconds) * 2)
    if size > len(batch.keys):
        batch = repeat_batch(batch, size)
        seconds = run_again(train, batch)
    count = len(batch.keys)
    step_seconds = run_again(lambda _: _update(context, state), batch)
    model.eval()
    evaluate_seconds = run_again(lambda images: _evaluate(context, state, images), batch)
    return Speed(
        load_image=load_image,
        train_image=seconds / count,
        step=step_seconds,
        evaluate_image=evaluate_seconds / count,
        teacher_image=_measure_teacher(setup, run_again, batch),
    )


def load_batch(
    setup: TrainSetup, pause: Callable[[], None] = lambda: None
) -> tuple[float, Batch | None]:
    """Return the seconds an image takes to load, and a batch of two; None if none can be read."""
    augment, size = setup.context.recipe.augment, setup.context.preprocessing.img_size
    plan = ViewPlan(setup.config.seed, in_chans=setup.context.view_chans)
    views = TrainViews(setup.train, augment, size, plan)
    order = EpochOrder(
        len(setup.train.labels), seed=setup.config.seed, epoch=0, windows=setup.windows
    )
    samples, durations = [], list[float]()
    for key in order[:MAX_LOADED]:
        pause()
        start = time.perf_counter()
        sample = views[key]
        if sample.pixels is not None:
            samples.append(sample)
            durations.append(time.perf_counter() - start)
        if sum(durations) > MEASURED_S:
            break
    if not samples:
        return 0.0, None
    return statistics.median(durations), collate([samples[0], samples[-1]])


def repeat_batch(batch: Batch, size: int) -> Batch:
    """Return a batch of the images of a smaller one, again and again."""
    rows = [n % len(batch.keys) for n in range(size)]
    return batch._replace(
        images=batch.images[rows],
        labels=batch.labels[rows],
        keys=[batch.keys[row] for row in rows],
        slots=list(range(size)),
    )


def _update(context: TrainContext, state: TrainState) -> None:
    parameter = next(state.model.parameters())
    optimizer_step(context, state, context.lr_at(0), torch.ones((), device=parameter.device))


@torch.no_grad()
def _evaluate(context: TrainContext, state: TrainState, batch: Batch) -> None:
    with context.device.autocast():
        images = normalize(context.device.to_device(batch.images), context.preprocessing)
        images = to_model_channels(images, context.preprocessing.in_chans)
        forward_heads(state.model, images)


def _measure_teacher(
    setup: TrainSetup, run: Callable[[Callable[[Batch], object], Batch], float], batch: Batch
) -> float:
    """Return the seconds of the teacher's forward pass of an image, 0 if it has nothing to do."""
    teacher, device = setup.teacher, setup.context.device
    if teacher is None or not count_work(setup).num_taught:
        return 0.0
    networks = teacher.get_network().networks
    count = min(len(batch.keys), MAX_LOADED)
    inputs = [network.model_config.preprocessing for network in networks]
    pixels = [
        device.to_device(torch.zeros(count, own.in_chans, *own.hw, dtype=torch.uint8))
        for own in inputs
    ]

    def compute(_: Batch) -> None:
        with device.autocast():
            for network, images in zip(networks, pixels, strict=True):
                network.forward_views(images)

    return run(compute, batch) / count


def format_duration(seconds: float) -> str:
    """Return a duration as a person says it: `40 s`, `12 min`, `3 h 20 min`, `2 days 5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds)) if seconds < 20 else round(seconds / 5) * 5} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes / 60
    if hours < 48:
        tens = round(minutes / 10) * 10
        return f"{tens // 60} h" + (f" {tens % 60} min" if tens % 60 else "")
    days, rest = divmod(round(hours), 24)
    return f"{days} days" + (f" {rest} h" if rest else "")
