"""When a run ends before its last epoch."""

from __future__ import annotations

from deitctl.config import TrainConfig
from deitctl.training.selection import METRIC_TITLES
from deitctl.training.state import Progress

PATIENCE = "patience"
"""`Progress.stopped` of a run whose epochs were no better for too long."""
CALLBACK = "callback"
"""The same of a run that a callback of the caller's ended."""


def count_stale_epochs(config: TrainConfig, progress: Progress) -> int:
    """Return the epochs since the selected metric was better than ever before.

    None counts before a thaw, or before the schedule of the learning rate began again: what comes then
    is another training.
    """
    recipe, epochs = config.recipe, progress.epoch
    started, _ = recipe.schedule_of(max(0, epochs - 1))
    thawed = recipe.thaw_epoch - 1  # epochs before it
    return max(0, epochs - max(progress.improved_epoch, started, thawed))


def is_out_of_patience(config: TrainConfig, progress: Progress) -> bool:
    """Return whether a run ends after the epochs that are done, because none of the last was better."""
    if not config.patience or progress.epoch >= config.recipe.epochs:
        return False
    return count_stale_epochs(config, progress) >= config.patience


def describe_stop(config: TrainConfig, progress: Progress, command: str) -> str:
    """Return why a run has stopped and how it goes on, as a sentence; `command` resumes it."""
    metric = METRIC_TITLES.get(progress.best_select, "score")
    count = config.patience
    return (
        f"Stopped after epoch {progress.epoch} of {config.recipe.epochs}: {count} "
        f"{'epoch' if count == 1 else 'epochs'} without a better {metric} than that of epoch "
        f"{progress.improved_epoch} (--patience). To train on: {command} --more-epochs N"
    )
