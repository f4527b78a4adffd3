"""Whether a run's validation images are new to its models, and the same in each of its processes."""

from __future__ import annotations

import shlex

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import fingerprint_split
from deitctl.data.open import EvalData
from deitctl.data.run_match import match_run
from deitctl.data.value_range import NO_RANGE, OPTION, describe_range
from deitctl.distributed import World
from deitctl.errors import DataError
from deitctl.evaluation.images import find_run, find_train_images
from deitctl.events import Reporter


def require_same_images(data: str, train: ImageDataset, val: ImageDataset, world: World) -> None:
    """Raise `DataError` if the processes of a run see other images, hold out others, or scale them otherwise.

    What the main process opened is the same in all. A program passes data that each process has opened,
    of which some would train on images that others validate on, or on darker ones.
    """
    if world.size == 1:
        return
    counts = f"{len(train.labels):,} + {len(val.labels):,}"
    views = world.all_gather_object((fingerprint_split(train, val), counts, train.value_range))
    if len({fingerprint for fingerprint, _, _ in views}) > 1:
        raise DataError(
            f"The processes see different training and validation images of {data}: "
            f"{', '.join(sorted({counts for _, counts, _ in views}))}.",
            "All machines of a run need the same files, which do not change while it starts.",
        )
    if len(ranges := {value_range for _, _, value_range in views}) > 1:
        names = ["none" if r is None or r == NO_RANGE else describe_range(r) for r in ranges]
        raise DataError(
            f"The processes scale the images of {data} otherwise: {', '.join(sorted(names))}.",
            f"Some could not be read everywhere. Start again, or set one range: {OPTION}.",
        )


def warn_of_trained_images(config: TrainConfig, val: ImageDataset, reporter: Reporter) -> None:
    """Warn if a run that this one begins with, or learns from, was trained on validation images."""
    models = {"--model" if config.distill is None else "--student": config.model}
    models["--weights"] = config.weights
    if config.distill is not None:
        models["--teacher"] = config.distill.teacher
        models["--teacher-weights"] = config.distill.teacher_weights
    part = "" if val.is_held_out else "val"
    for option, model in models.items():
        if (run := find_run(model)) is None:
            continue
        match = match_run(config.data, {part: val}, run)
        mask = find_train_images(EvalData(config.data, "val", val, (part,)), match)
        if mask is None or not mask.any():
            continue
        way_on = (
            f"Use its split: --split-seed {run.split_seed}."
            if run.split_seed != config.split_seed
            else "Validate on images that it has not seen."
        )
        reporter.warn(
            f"{mask.sum()} of the {len(mask)} validation images are training images of "
            f"{option} {shlex.quote(model)}: accuracies on them say nothing about new images. {way_on}"
        )
