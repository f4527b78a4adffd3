"""From what was measured to where the time goes, what is to be expected, and what to do about it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

from deitctl.data.samplers import steps_per_epoch
from deitctl.device import Device
from deitctl.distillation.preflight import NO_CACHE
from deitctl.profiling.bench_data import small_side
from deitctl.profiling.bench_result import Advice, Stage
from deitctl.profiling.peak import PeakThroughput
from deitctl.profiling.trial_run import TrialRun

WAITING = 0.1
"""Share of the training's time in waiting for images from which it is worth mending."""
TEACHING = 0.15
"""Share of a step that the teacher takes, likewise."""
FASTER = 1.2
"""Times as fast as another way must be."""
LARGER = 1.05
"""Times as many images/s as twice the batch must give."""
OF_A_STEP = ("teacher", "forward", "backward", "optimizer", "average")
ONCE = ("optimizer", "average")


def parts_of(job: TrialRun, stages: Mapping[str, Stage]) -> dict[str, float]:
    """Return the seconds an image of the training by where they go; empty where the loop was not measured.

    What a step does once whatever its size (optimizer, average) is divided by the recipe's batch, not by the measured one.
    `loop` is what the loop takes with a batch at hand beyond the parts that were measured on their own: moving, mixing and
    erasing, the loss, the log. `slowed` is what the training takes with the loader at work beyond that and the waiting: the
    processes share the cores with it. Both may be below 0: parts and loops are measured at different moments.
    """
    at_hand, whole, waited = (
        stages["loop_at_hand"].timing,
        stages["loop"].timing,
        stages["loop"].waited,
    )
    known = {name: stages[name] for name in OF_A_STEP if name in stages}
    timings = {name: stage.timing for name, stage in known.items()}
    if at_hand is None or whole is None or None in timings.values():
        return {}
    parts = {name: t.seconds for name, t in timings.items() if t is not None}
    parts["loop"] = at_hand.seconds - sum(parts.values())
    parts["waiting"] = waited
    parts["slowed"] = whole.seconds - waited - at_hand.seconds
    for name in ONCE:
        if name in parts:
            parts[name] *= job.plan.recipe.batch_size / min(
                job.config.recipe.batch_size, len(job.train.labels)
            )
    return parts


def expected_of(
    job: TrialRun, stages: Mapping[str, Stage], parts: Mapping[str, float]
) -> dict[str, float]:
    """Return images/s and the seconds of an epoch and of the recipe; empty where the training was not measured.

    An evaluation goes at the pace of its network or its views, whichever is slower, and is done twice where there is an
    average. Once the teacher has said all its words it is not asked any more, and the loader is the only limit.
    """
    if not parts or any(
        stages[name].timing is None for name in ("loader", "evaluation", "eval_transform")
    ):
        return {}
    recipe, images = job.config.recipe, len(job.train.labels)
    seconds = {name: s.timing.seconds for name, s in stages.items() if s.timing is not None}
    batch = min(recipe.batch_size, images)
    loader = seconds["loader"] if job.workers else 0.0
    training = max(sum(parts.values()), loader)
    validation = max(seconds["evaluation"], seconds["eval_transform"] / max(1, job.workers))
    if not job.workers:
        validation = seconds["evaluation"] + seconds["eval_transform"]
    validated = len(job.val.labels) * validation * (2 if recipe.ema_decay else 1)
    trained = steps_per_epoch(images, batch) * batch
    epoch = trained * training + validated
    found = {
        "images_per_second": 1 / training,
        "epoch_seconds": epoch,
        "recipe_seconds": recipe.epochs * epoch,
    }
    if (taught := epochs_with_teacher(job)) is not None and taught < recipe.epochs:
        later = trained * max(training - parts["teacher"], loader) + validated
        found |= {
            "epochs_with_teacher": taught,
            "later_epoch_seconds": later,
            "recipe_seconds": taught * epoch + (recipe.epochs - taught) * later,
        }
    return found


def epochs_with_teacher(job: TrialRun) -> int | None:
    """Return after how many epochs a teacher has seen all its views, None where there is no end to them, or no teacher."""
    distill, repeats = job.config.distill, job.config.recipe.augment.repeated_aug
    if (
        distill is None
        or distill.teacher_input != "unmixed"
        or not distill.views
        or distill.teacher_cache == NO_CACHE
    ):
        return None
    return math.ceil(distill.views / repeats)


def advise(
    job: TrialRun,
    device: Device,
    ceilings: PeakThroughput,
    stages: Mapping[str, Stage],
    parts: Mapping[str, float],
) -> Iterator[Advice]:
    """Yield what is worth changing, each with the numbers that were measured and say so."""
    whole = sum(parts.values())
    if parts:
        yield from _feeding(job, ceilings, stages, parts["waiting"] / whole)
        yield from _teaching(job, parts, whole)
    yield from _precision(device, ceilings)
    yield from _threads(device, ceilings)
    yield from _batch(job, stages)


def _feeding(
    job: TrialRun, ceilings: PeakThroughput, stages: Mapping[str, Stage], share: float
) -> Iterator[Advice]:
    view, loader, at_hand = (stages[n].timing for n in ("view", "loader", "loop_at_hand"))
    if share < WAITING or view is None or loader is None or at_hand is None:
        return
    needed = math.ceil(view.seconds / at_hand.seconds)
    numbers = {
        "waiting": share,
        "loader_per_second": loader.rate,
        "step_per_second": at_hand.rate,
        "view_per_second": view.rate,
        "processes_needed": needed,
        "cores": ceilings.cores,
    }
    text = (
        f"Training waits for images {100 * share:.0f} % of its time: the loader gives {loader.rate:.3g} images/s, a step could take "
        f"{at_hand.rate:.3g}. A core renders {view.rate:.3g}, so {needed} loader process{'es' if needed != 1 else ''} would feed it"
    )
    if job.workers < needed <= ceilings.cores:
        yield Advice(f"{text}: --workers {needed}.", numbers)
    else:
        yield Advice(
            f"{text}, on {ceilings.cores} core{'s' if ceilings.cores != 1 else ''}.", numbers
        )
    small = stages["small_view"].timing if "small_view" in stages else None
    if small is not None and small.rate >= FASTER * view.rate:
        times, side = small.rate / view.rate, small_side(job)
        yield Advice(
            f"Stored {side} pixels high the same images are rendered {times:.2g} times as fast: "
            f"deitctl pack DATA OUT --max-size {side}.",
            {"times_as_fast": times, "side": side},
        )


def _teaching(job: TrialRun, parts: Mapping[str, float], whole: float) -> Iterator[Advice]:
    share = parts.get("teacher", 0.0) / whole
    if share < TEACHING or job.config.distill is None:
        return
    taught, numbers = epochs_with_teacher(job), {"teacher": share}
    if taught is None:
        ways = "with --teacher-sees view --views 8 its words are kept, and it is asked about each image 8 times in all"
    elif taught < job.config.recipe.epochs:
        ways = f"after {taught} epochs it has said all and goes; deitctl teach hears it out before"
        numbers["epochs"] = taught
    else:
        ways = f"fewer views end that sooner: with --views {job.config.distill.views} it is asked in every epoch"
    yield Advice(f"The teacher takes {100 * share:.0f} % of the training's time: {ways}.", numbers)


def _precision(device: Device, ceilings: PeakThroughput) -> Iterator[Advice]:
    ours = ceilings.flops[device.precision]
    best = max(ceilings.flops, key=lambda name: ceilings.flops[name])
    times = ceilings.flops[best] / ours
    if times >= FASTER:
        yield Advice(
            f"Matrix products are {times:.2g} times as fast in {best} as in {device.precision}: --precision {best}.",
            {"times_as_fast": times},
        )


def _threads(device: Device, ceilings: PeakThroughput) -> Iterator[Advice]:
    if ceilings.all_cores is None:
        return
    times = ceilings.all_cores / ceilings.flops[device.precision]
    if times >= FASTER:
        said = os.environ.get("OMP_NUM_THREADS")
        why = (
            f"OMP_NUM_THREADS is {said}: unset it, or set it to"
            if said
            else "set OMP_NUM_THREADS to"
        )
        yield Advice(
            f"torch uses {ceilings.threads} of {ceilings.cores} cores, with all a matrix product is {times:.2g} times as fast: "
            f"{why} {ceilings.cores}.",
            {"times_as_fast": times, "threads": ceilings.threads, "cores": ceilings.cores},
        )


def _batch(job: TrialRun, stages: Mapping[str, Stage]) -> Iterator[Advice]:
    if "double_step" not in stages or job.plan.recipe.batch_size < job.config.recipe.batch_size:
        return
    once, twice = stages["step"].timing, stages["double_step"].timing
    if once is not None and twice is not None and twice.rate >= LARGER * once.rate:
        gain, size = twice.rate / once.rate - 1, job.plan.recipe.batch_size
        yield Advice(
            f"Steps of {2 * size} images do {100 * gain:.0f} % more images/s than of {size}: --batch-size {2 * size}, or auto; "
            "the learning rate follows.",
            {"gain": gain, "batch_size": 2 * size},
        )
