"""`--batch-size auto`: how many images a step can take on this device, found by taking some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from deitctl.config import TrainConfig
from deitctl.data.dataset import Source
from deitctl.data.open import open_for_training
from deitctl.device import Device, choose_device
from deitctl.distributed import is_distributed
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.profiling.clock import measure
from deitctl.profiling.memory import MemoryMeter, free_bytes
from deitctl.profiling.trial_run import TrialRun, rehearse
from deitctl.training.configure import check
from deitctl.training.optim import peak_learning_rate
from deitctl.training.step import at_a_time

SMALLEST = 8
"""Images of the first try; the second has twice as many."""
USED = 0.8
"""Share of the free memory that a step may take: other things want some of it too."""
LARGEST = 4
"""Times the recipe's batch, which its accuracy is known for."""
FEWEST_STEPS = 50
"""Of an epoch, below which a batch is not made larger than the recipe's: a short run would learn less in fewer steps."""
GAIN = 0.03
"""By which images/s must rise with twice the images."""
SECONDS = 1.0
"""Of a try."""
DEAR = 8.0
"""Seconds of a try beyond which larger batches are not tried, nor taken if they are larger than the recipe's."""


@dataclass(frozen=True)
class Trial:
    """Real steps on batches of one size."""

    size: int
    rate: float
    """Images a second."""
    memory: int | None
    """Bytes that a step takes beyond what stays: weights, moments, average, teacher."""


@dataclass(frozen=True)
class BatchSizeChoice:
    """A batch size, and what led to it."""

    size: int
    why: str
    rate: float
    """The learning rate at its highest."""
    tries: tuple[Trial, ...]

    @property
    def sentence(self) -> str:
        """Say what was chosen, why, and what follows for the learning rate."""
        return f"Batch size {self.size}, chosen here: {self.why}. The learning rate is {self.rate:.3g} at its highest."


def with_chosen_batch(
    config: TrainConfig, sources: tuple[Source, Source] | None, reporter: Reporter
) -> TrainConfig:
    """Return a configuration with the batch size that suits this machine, and say which and why.

    Nothing else of a run changes by it: the same number, named, gives the same run.

    Args:
        config: the run; its batch size is the usual one.
        sources: the data, if it is open already.
        reporter: told of progress and of the choice.

    Raises:
        ConfigError: several processes would have to choose together.
        DataError: no image can be read.
    """
    if is_distributed():
        raise ConfigError(
            "--batch-size auto chooses for one process.", "Under torchrun name the number."
        )
    check(config)
    sources = sources or open_for_training(config.data, seed=config.data_seed, reporter=reporter)
    choice = choose_batch_size(
        config, sources, choose_device(config.device, config.precision), reporter
    )
    reporter.note(choice.sentence)
    return replace(config, recipe=replace(config.recipe, batch_size=choice.size))


def choose_batch_size(
    config: TrainConfig, sources: tuple[Source, Source], device: Device, reporter: Reporter
) -> BatchSizeChoice:
    """Find the largest batch whose step fits into `USED` of the free memory, and is worth its size.

    Steps of 8 and 16 images, of the real recipe, model and teacher but of random weights, give the memory of a step by
    a straight line. Twice as many are tried as long as that is cheap; where images/s rises by less than `GAIN`, larger
    batches gain nothing, and the recipe's own size is taken, or the last one that gained, if it is larger. Never more than
    `LARGEST` times the recipe's, nor so many that an epoch has fewer than `FEWEST_STEPS`.
    """
    recipe, images = config.recipe, len(sources[0].labels)
    rehearsal = rehearse(config, sources, device)
    size, why, tries = search(
        lambda size: _try(rehearsal.at(size)),
        recipe.batch_size,
        images,
        _room(rehearsal),
        reporter,
        at_a_time(rehearsal.plan, rehearsal.state),
    )
    return BatchSizeChoice(size, why, peak_learning_rate(recipe.optim, size), tuple(tries))


def _room(rehearsal: TrialRun) -> int | None:
    """Return the bytes that a step may take, once everything that stays is there."""
    small = rehearsal.at(2)
    small.step(small.batch())
    rehearsal.device.empty_cache()
    free = free_bytes(rehearsal.device)
    return None if free is None else int(USED * free)


def _try(rehearsal: TrialRun) -> Trial | None:
    """Take steps; None where memory runs out."""
    size, batch, meter, enough = (
        rehearsal.plan.recipe.batch_size,
        rehearsal.batch(),
        MemoryMeter(rehearsal.device),
        True,
    )

    def work() -> int:
        nonlocal enough
        enough = enough and rehearsal.step(batch)
        return size

    meter.start()
    timing = measure(work, seconds=SECONDS, wait=rehearsal.device.synchronize, most=5)
    return Trial(size, 1 / min(timing.samples), meter.growth()) if enough else None


def search(
    attempt: Callable[[int], Trial | None],
    usual: int,
    num_images: int,
    room: int | None,
    reporter: Reporter,
    at_a_time: int = 0,
) -> tuple[int, str, list[Trial]]:
    """Choose a size by trying some; return it, why it is the one, and the tries.

    Args:
        attempt: tries a size, None where memory runs out.
        usual: the recipe's batch size.
        images: of the data.
        room: bytes that a step may take, None if nobody knows.
        reporter: shows progress.
        at_a_time: images of a micro-batch, above which a step takes no more memory; 0: all of a step.
    """
    most, why = _largest(usual, num_images)
    usual = min(usual, num_images)
    size, tries = min(SMALLEST, most), list[Trial]()
    with reporter.task("choose the batch size", None, "steps") as task:
        while size <= most:
            if len(tries) > 1 and 2 * size / tries[-1].rate > DEAR:
                return *(
                    (usual, "steps of more images take too long to try")
                    if usual < most
                    else (most, why)
                ), tries
            found = attempt(size)
            if found is None:
                most, why = max(2, size // 2), f"memory runs out with {size}"
                break
            tries.append(found)
            task.advance(1, size=size, speed=f"{found.rate:.0f} images/s")
            most, why = _within(room, tries, most, why, at_a_time)
            if len(tries) > 1 and found.rate < (1 + GAIN) * tries[-2].rate:
                return *_flat(tries, usual, most, why), tries
            size *= 2
    return most, why, tries


def _largest(usual: int, num_images: int) -> tuple[int, str]:
    """Return the largest batch that recipe and data allow: the recipe's own, or a power of two above it; and why no more."""
    if num_images <= usual:
        return num_images, f"the data has {num_images} training images"
    most = max(usual, power_of_two(max(1, min(LARGEST * usual, num_images // FEWEST_STEPS))))
    if num_images // FEWEST_STEPS < 2 * most and most < power_of_two(LARGEST * usual):
        return (
            most,
            f"of {num_images} images, larger batches would make less than {FEWEST_STEPS} steps an epoch",
        )
    return (
        most,
        f"no power of two above it is within {LARGEST} times the recipe's {usual}, and no more is asked of a recipe",
    )


def _within(
    room: int | None, tries: list[Trial], most: int, why: str, at_a_time: int
) -> tuple[int, str]:
    """Bring the largest size down to what fits into `room`, by the line through the last two tries."""
    if room is None or len(tries) < 2:
        return most, why
    (a, less), (b, more) = ((t.size, t.memory) for t in tries[-2:])
    if less is None or more is None:
        return most, why
    slope = max(0.0, (more - less) / (b - a))

    def takes(size: int) -> float:
        return more + slope * (
            min(size, max(b, at_a_time or size)) - b
        )  # no more than a micro-batch at a time

    while most > 2 and takes(most) > room:
        why = f"a step of {most} images would take {takes(most) / 2**30:.2g} GiB, of the {room / 2**30:.2g} GiB it may"
        most = max(2, most // 2)
    return most, why


def _flat(tries: list[Trial], usual: int, most: int, why: str) -> tuple[int, str]:
    """Choose where the last doubling gained little: what gained last, or the recipe's own size, which costs nothing."""
    before, last = tries[-2], tries[-1]
    size = max(before.size, usual)
    if size >= most:
        return most, why
    gain = 100 * (last.rate / before.rate - 1)
    rises = f"from {before.size} to {last.size} images images/s changes by {gain:+.0f} %"
    return size, f"{rises}, so larger batches gain nothing" + (
        "; it is the recipe's" if size > before.size else ""
    )


def power_of_two(number: int) -> int:
    """Return the largest power of two that is not above a number of 1 or more."""
    return 1 << (number.bit_length() - 1)
