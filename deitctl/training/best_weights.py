"""The weights of a run's best epoch: saved, scored again, and read again after a kill.

They are written as soon as an epoch has been better, and the checkpoint later. After a kill they may
be of an epoch that the checkpoint has not seen; its epochs are then trained again, to the same weights.
Until then the file is better than what the checkpoint knows: it stays, and its score is kept apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deitctl.config import MAX_COUNT
from deitctl.errors import ModelError
from deitctl.evaluation.multilabel_result import Result
from deitctl.models.checkpoint_io import (
    WEIGHTS,
    load_model_config,
    load_tensors,
    read_metadata,
    save_model,
)
from deitctl.models.introspect import describe_layers
from deitctl.training.run_dir import Run
from deitctl.training.selection import NO_SCORE, choose_weights, get_score

if TYPE_CHECKING:
    from deitctl.training.state import Progress
    from deitctl.training.trainer import Trainer

SCORE_KEY = "deitctl"
"""Metadata key of a run's weights: the epoch that they are of, and its score."""
MIN_COMPARABLE = 0.9
"""Of the validation images of the best epoch, that another must have read to be a better one."""


@dataclass(frozen=True)
class SavedScore:
    """What the file of the best weights says of itself."""

    epoch: int
    score: float
    select: str
    """Metric of the score."""
    weights: str
    """`model` or `ema`."""
    num_images: int
    """Validation images that could be read; 0: not known."""


def keep_best(trainer: Trainer, metrics: Mapping[str, Result]) -> None:
    """Save the weights of the epoch that is done, in the model's format, if none before were better.

    Args:
        trainer: of the run.
        metrics: results of the `model`, and of its `ema` if there is one.
    """
    progress, kind = trainer.state.progress, choose_weights(metrics, trainer.metric)
    score, num_images = get_score(metrics[kind], trainer.metric), metrics[kind].num_images
    is_comparable = progress.best_num_images in (0, num_images) or rescore_best(trainer, num_images)
    # Of equals the later epoch, which has seen more.
    if is_comparable and score >= progress.best_score:
        if score > progress.best_score:
            progress.improved_epoch = progress.epoch
        progress.best_score, progress.best_select = score, trainer.metric
        progress.best_epoch, progress.best_weights = progress.epoch, kind
        progress.best_num_images = num_images
        ahead = trainer.ahead
        if ahead is None or (score, progress.epoch) >= (ahead.score, ahead.epoch):
            trainer.ahead = None
            weights = trainer.state.gather_weights(kind, keep=trainer.world.is_main)
            if trainer.world.is_main:
                save_best(trainer, weights)
    if trainer.ahead is not None and progress.epoch >= trainer.ahead.epoch:
        adopt_ahead(trainer)  # of another machine perhaps, where the epochs came out otherwise


def save_best(trainer: Trainer, weights: Mapping[str, Tensor]) -> None:
    """Write weights as they are, with the score that the progress has."""
    progress = trainer.state.progress
    record = {
        "epoch": progress.best_epoch,
        "select": progress.best_select,
        "score": progress.best_score,
        "weights": progress.best_weights,
        "images": progress.best_num_images,
    }
    save_model(
        trainer.run.root,
        weights,
        trainer.setup.model_config,
        describe_layers(trainer.state.model),
        {SCORE_KEY: json.dumps(record)},
    )


def rescore_best(trainer: Trainer, num_images: int) -> bool:
    """Score the best weights so far on the validation images that can be read now, `num_images` of them.

    Scores of other images are not compared. Return whether there are enough to choose by.
    """
    adopt_ahead(trainer)  # it is the saved weights that are scored
    progress = trainer.state.progress
    change = (
        f"{num_images} of {len(trainer.setup.val.labels)} validation images could be read, "
        f"{progress.best_num_images} in epoch {progress.best_epoch}, the best so far"
    )
    if num_images < MIN_COMPARABLE * progress.best_num_images:
        trainer.reporter.warn(f"{change}: too few to choose a better one by.")
        return False
    trainer.reporter.warn(f"{change}, which is scored again on these.")
    try:
        weights = load_tensors(trainer.run.root / WEIGHTS)
    except ModelError as error:  # damaged or deleted meanwhile: this epoch takes its place
        trainer.reporter.warn(str(error))
        progress.best_score = NO_SCORE
        return True
    with trainer.state.swap_weights(weights):
        best = trainer.validation.score(trainer.device, f"epoch {progress.best_epoch}, score again")
    progress.best_score = get_score(best, trainer.metric)
    progress.best_num_images = best.num_images
    return True


def adopt_ahead(trainer: Trainer) -> None:
    """Take saved weights of an epoch after the checkpoint's for the best, where no epoch writes over them.

    They are the best epoch's of a run that a callback ends before that epoch comes again, too.
    """
    ahead, trainer.ahead = trainer.ahead, None
    if ahead is None:
        return
    progress = trainer.state.progress
    progress.best_epoch, progress.best_score, progress.best_select = (
        ahead.epoch,
        ahead.score,
        ahead.select,
    )
    progress.best_weights, progress.best_num_images = ahead.weights, ahead.num_images


def load_best(trainer: Trainer) -> None:
    """Find what the saved weights are, where they are newer than the checkpoint's best epoch."""
    progress = trainer.state.progress
    if progress.best_epoch > progress.epoch:  # by `adopt_ahead`
        find_best_so_far(progress, trainer.run, trainer.metric)
    saved = read_score(trainer.run)
    if saved is None or saved.select != trainer.metric or saved.epoch <= progress.best_epoch:
        return
    trainer.ahead = saved
    if saved.epoch <= progress.epoch:
        adopt_ahead(trainer)


def find_best_so_far(progress: Progress, run: Run, metric: str) -> None:
    """Set the best of the epochs that are done, by the run's log, in place of one that is to come."""
    progress.best_epoch, progress.best_score, progress.best_num_images = 0, NO_SCORE, 0
    progress.best_select, progress.best_weights = "", "model"
    for record in run.records("epoch"):
        score = read_record(record)
        if score is None or score.select != metric or not 0 < score.epoch <= progress.epoch:
            continue
        if score.score > progress.best_score:
            progress.improved_epoch = score.epoch
        if score.score >= progress.best_score:
            progress.best_epoch, progress.best_score = score.epoch, score.score
            progress.best_select, progress.best_weights = metric, score.weights


def read_score(run: Run) -> SavedScore | None:
    """Return what the saved weights say of themselves; None if that is nothing, or cannot be."""
    try:
        return read_record(json.loads(read_metadata(run.root / WEIGHTS).get(SCORE_KEY, "{}")))
    except (ValueError, RecursionError):
        return None


def read_record(record: Any) -> SavedScore | None:
    """Return the score in a record of an epoch, or of saved weights; None if there is none, or cannot be."""
    try:
        saved = SavedScore(
            epoch=int(record["epoch"]),
            score=float(record["score"] if "score" in record else record["top1"]),
            select=str(record.get("select", "top1")),
            weights=str(record["weights"]),
            num_images=int(record.get("images", 0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    is_possible = saved.epoch <= MAX_COUNT and NO_SCORE <= saved.score <= 100
    is_possible = is_possible and 0 <= saved.num_images <= MAX_COUNT
    return saved if is_possible and saved.weights in ("model", "ema") else None


def keeps_best(trainer: Trainer) -> bool:
    """Return whether the saved weights can be loaded; forget their score if not, while epochs are left."""
    progress, run = trainer.state.progress, trainer.run
    is_saved = progress.best_epoch > 0 or (run.root / WEIGHTS).exists()
    if not is_saved or progress.epoch >= trainer.context.recipe.epochs:
        return is_saved
    try:  # now, rather than when they are scored, after the epochs that are left
        load_tensors(run.root / WEIGHTS)
        load_model_config(run.root)
    except ModelError as error:
        trainer.reporter.warn(
            f"{error.message} The best weights so far, of epoch {progress.best_epoch}, are lost: those of the best "
            "epoch to come are kept."
        )
        progress.best_epoch, progress.best_score, progress.best_num_images = 0, NO_SCORE, 0
        return False
    return True
