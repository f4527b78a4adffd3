"""`--batch-size auto`: the largest batch that fits and is faster, by trial steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import count_draws
from deitctl.data.epoch_steps import fit_batch_size
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.training_data import Source, open_for_training
from deitctl.device import Device, choose_run_device
from deitctl.distributed import is_distributed
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.free_memory import read_free_memory
from deitctl.profiling.measure import MemoryMeter, measure_time
from deitctl.profiling.trial_run import TrialRun, build_trial
from deitctl.training.configure import check
from deitctl.training.schedule import compute_peak_lr

FIRST_SIZE = 8
"""Images of the first trial; each further trial doubles them."""
MEMORY_SHARE = 0.8
"""Of the free memory that a step may take: other programs need some too."""
MAX_SCALE = 4
"""Times the recipe's batch size, for which its accuracy is known."""
MIN_STEPS = 50
"""Of an epoch: fewer, larger steps would train a small data set less."""
MIN_GAIN = 0.03
"""By which images/s must rise with a doubled batch."""
TRIAL_SECONDS = 1.0
MAX_TRIAL_SECONDS = 8.0
"""Expected time of a trial above which no larger batch is tried, nor taken above the recipe's."""


@dataclass(frozen=True)
class Trial:
    """Real steps on batches of one size."""

    batch_size: int
    images_per_second: float
    memory_bytes: int | None
    """Taken by a step beyond what stays: weights, optimizer state, EMA, teacher."""


class Limit(NamedTuple):
    """The largest batch size so far allowed, and why no more."""

    batch_size: int
    reason: str


@dataclass(frozen=True)
class BatchSizeChoice:
    """A batch size, and what led to it."""

    batch_size: int
    reason: str
    peak_lr: float
    """Learning rate at its highest, which follows the batch size."""
    trials: tuple[Trial, ...]

    @property
    def message(self) -> str:
        """The choice, its reason, and the learning rate that follows."""
        return f"Batch size {self.batch_size} chosen: {self.reason}. Peak learning rate: {self.peak_lr:.3g}."


def with_chosen_batch_size(
    config: TrainConfig, datasets: tuple[ImageDataset, ImageDataset] | None, reporter: Reporter
) -> TrainConfig:
    """Return a configuration with the batch size that suits this machine, and report which and why.

    Nothing else of a run changes: naming the same number gives the same run.

    Args:
        config: the run, with its recipe's batch size.
        datasets: training and validation, if they are open already.
        reporter: shows progress and the choice.

    Raises:
        ConfigError: several processes, which would have to choose together.
        DataError: no image can be read.
    """
    if is_distributed():
        raise ConfigError("--batch-size auto is for one process.", "Under torchrun pass a number.")
    check(config)
    datasets = datasets or open_for_training(Source.of(config), reporter=reporter)
    device = choose_run_device(config)
    with reading_stores(config.cache_dir, config.cache_size, reporter):
        choice = choose_batch_size(config, datasets, device, reporter)
    reporter.note(choice.message)
    return replace(config, recipe=replace(config.recipe, batch_size=choice.batch_size))


def choose_batch_size(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    device: Device,
    reporter: Reporter,
) -> BatchSizeChoice:
    """Choose by steps of the real recipe, model and teacher; see `search_batch_size`."""
    recipe, num_images = config.recipe, count_draws(datasets[0])
    with device.computing():
        trial = build_trial(config, datasets, device)
        size, reason, trials = search_batch_size(
            lambda batch_size: _try(trial.with_batch_size(batch_size)),
            recipe.batch_size,
            num_images,
            _measure_free_memory(trial),
            reporter,
            trial.context.micro_batch_size(trial.state),
        )
    peak_lr = compute_peak_lr(recipe.optim, fit_batch_size(num_images, size))
    return BatchSizeChoice(size, reason, peak_lr, tuple(trials))


def _measure_free_memory(trial: TrialRun) -> int | None:
    """Return the bytes that a step may take, once everything that stays is allocated."""
    smallest = trial.with_batch_size(2)
    # the first step allocates gradients and optimizer state
    smallest.step(smallest.batch())
    trial.context.device.empty_cache()
    free = read_free_memory(trial.context.device)
    return None if free is None else int(MEMORY_SHARE * free)


def _try(trial: TrialRun) -> Trial | None:
    """Measure steps; None where memory runs out, which shows in a halved micro-batch."""
    batch, progress = trial.batch(), trial.state.progress
    micro_batch = progress.micro_batch_size
    meter = MemoryMeter(trial.context.device)
    meter.start()
    # the fastest step is the least disturbed by other programs
    times = measure_time(lambda: trial.step(batch), seconds=TRIAL_SECONDS).times
    memory = meter.growth()
    halved, progress.micro_batch_size = progress.micro_batch_size != micro_batch, micro_batch
    return None if halved else Trial(trial.batch_size, trial.batch_size / min(times), memory)


def search_batch_size(
    try_size: Callable[[int], Trial | None],
    recipe_size: int,
    num_images: int,
    free: int | None,
    reporter: Reporter,
    micro_batch_size: int = 0,
) -> tuple[int, str, list[Trial]]:
    """Find the largest batch that fits and gains; return it, the reason, and the trials.

    Two trials give the memory of larger steps by a straight line. Sizes are doubled as long as a
    trial is cheap. Where images/s rises by less than `MIN_GAIN`, the recipe's size is taken, or the
    last that gained, if it is larger. Never more than `MAX_SCALE` times the recipe's, nor fewer
    than `MIN_STEPS` steps an epoch.

    Args:
        try_size: tries a size, None where memory runs out.
        recipe_size: the recipe's batch size.
        num_images: of the training set.
        free: bytes that a step may take, None where they are not known.
        reporter: shows progress.
        micro_batch_size: images above which a step takes no more memory; 0: none.
    """
    limit = _limit_by_recipe(recipe_size, num_images)
    recipe_size = min(recipe_size, num_images)
    size, trials = min(FIRST_SIZE, limit.batch_size), list[Trial]()
    with reporter.task("choose the batch size", None, "steps") as task:
        while size <= limit.batch_size:
            slow = len(trials) > 1 and 2 * size / trials[-1].images_per_second > MAX_TRIAL_SECONDS
            if slow and recipe_size < limit.batch_size:
                return recipe_size, "steps of more images take too long to try", trials
            if slow:
                break
            trial = try_size(size)
            if trial is None:
                limit = Limit(max(2, size // 2), f"memory runs out with {size}")
                break
            trials.append(trial)
            task.advance(1, size=size, speed=f"{trial.images_per_second:.0f} images/s")
            limit = _limit_by_memory(free, trials, limit, micro_batch_size)
            if (
                len(trials) > 1
                and trial.images_per_second < (1 + MIN_GAIN) * trials[-2].images_per_second
            ):
                limit = _limit_by_gain(trials, recipe_size, limit)
                break
            size *= 2
    return *limit, trials


def _limit_by_recipe(recipe_size: int, num_images: int) -> Limit:
    """Return the largest batch for recipe and data: the recipe's own, or a larger power of two."""
    if num_images <= recipe_size:
        return Limit(num_images, f"the data has {num_images} training images")
    by_steps = num_images // MIN_STEPS
    largest = max(recipe_size, floor_power_of_two(max(1, min(MAX_SCALE * recipe_size, by_steps))))
    if by_steps < 2 * largest and largest < floor_power_of_two(MAX_SCALE * recipe_size):
        return Limit(
            largest,
            f"larger batches of {num_images} images are fewer than {MIN_STEPS} steps an epoch",
        )
    return Limit(
        largest,
        f"it is the largest power of two within {MAX_SCALE} times the recipe's {recipe_size}"
        if largest > recipe_size
        else f"no power of two above the recipe's {recipe_size} is within {MAX_SCALE} times it",
    )


def _limit_by_memory(
    free: int | None, trials: list[Trial], limit: Limit, micro_batch_size: int
) -> Limit:
    """Lower the limit to what fits into `free` bytes, by the line through the last two trials."""
    if free is None or len(trials) < 2:
        return limit
    before, last = trials[-2:]
    if before.memory_bytes is None or last.memory_bytes is None:
        return limit
    num_bytes, num_images = last.memory_bytes, last.batch_size
    bytes_per_image = max(0.0, (num_bytes - before.memory_bytes) / (num_images - before.batch_size))

    def predict_bytes(batch_size: int) -> float:
        # micro-batches bound the memory of activations
        at_once = min(batch_size, max(num_images, micro_batch_size or batch_size))
        return num_bytes + bytes_per_image * (at_once - num_images)

    size, reason = limit
    while size > 2 and predict_bytes(size) > free:
        step_gib, free_gib = predict_bytes(size) / 2**30, free / 2**30
        reason = (
            f"a step of {size} images would take {step_gib:.2g} GiB, of {free_gib:.2g} GiB it may"
        )
        size = max(2, size // 2)
    return Limit(size, reason)


def _limit_by_gain(trials: list[Trial], recipe_size: int, limit: Limit) -> Limit:
    """Take the last size that gained, or the recipe's where it is larger."""
    before, last = trials[-2:]
    size = max(before.batch_size, recipe_size)
    if size >= limit.batch_size:
        return limit
    gain = 100 * (last.images_per_second / before.images_per_second - 1)
    reason = (
        f"larger batches are not faster (from {before.batch_size} to {last.batch_size} images, "
        f"images/s changes by {gain:+.0f} %)"
    )
    return Limit(size, reason + ("; it is the recipe's" if size > before.batch_size else ""))


def floor_power_of_two(number: int) -> int:
    """Return the largest power of two that is not above a number of 1 or more."""
    return 1 << (number.bit_length() - 1)
