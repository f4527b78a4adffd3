"""When a run ends before its last epoch."""

from __future__ import annotations

from deitctl.config import Recipe
from deitctl.training.selection import METRIC_TITLES
from deitctl.training.state import Progress

PATIENCE = "patience"
"""`Progress.stopped` of a run whose epochs were no better for too long."""
CALLBACK = "callback"
"""The same of a run that a callback of the caller's ended."""


def count_stale_epochs(recipe: Recipe, progress: Progress) -> int:
    """Return the epochs since the selected metric was better than ever before.

    None counts before a thaw, or before the schedule of the learning rate began again: what comes then
    is another training.
    """
    epochs = progress.epoch
    started, _ = recipe.schedule_of(max(0, epochs - 1))
    thawed = recipe.thaw_epoch - 1  # epochs before it
    return max(0, epochs - max(progress.improved_epoch, started, thawed))


def is_out_of_patience(recipe: Recipe, patience: int, progress: Progress) -> bool:
    """Return whether a run ends after the epochs that are done, because none of the last was better.

    Not where its schedule begins again: it ended there already, and goes on.
    """
    if not patience or progress.epoch in (*recipe.restart_epochs, recipe.epochs):
        return False
    return count_stale_epochs(recipe, progress) >= patience


def describe_stop(recipe: Recipe, patience: int, progress: Progress, command: str) -> str:
    """Return why a run has stopped and how it goes on, as a sentence; `command` resumes it."""
    metric = METRIC_TITLES.get(progress.best_select, "score")
    return (
        f"Stopped after epoch {progress.epoch} of {recipe.epochs}: {patience} "
        f"{'epoch' if patience == 1 else 'epochs'} without a better {metric} than that of epoch "
        f"{progress.improved_epoch} (--patience). To train on: {command} --more-epochs N"
    )
