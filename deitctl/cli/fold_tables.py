"""What `train` and `distill` print of folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deitctl.cli.console import print_json, print_next, print_table, print_values
from deitctl.records import to_object

if TYPE_CHECKING:
    from deitctl.training.folds import FoldsResult
    from deitctl.training.plan import FoldPlan

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "sample_f1": "sample F1",
    "map": "mAP",
    "micro_ap": "micro AP",
    "loss": "loss",
}


def print_fold_sizes(folds: Sequence[FoldPlan]) -> None:
    """Print the number of images of each fold's run."""
    print_table(
        "folds",
        ("fold", "training images", "held out"),
        [(str(f.fold), f"{f.num_train_images:,}", f"{f.num_val_images:,}") for f in folds],
    )


def finish_folds(result: FoldsResult, *, shape: str, quiet: bool) -> None:
    """Print what the runs of folds end with, by the main process, and what is useful next."""
    from deitctl.distributed import is_main_process

    if not is_main_process():
        return
    print_json(to_object(result)) if shape == "json" else _print_tables(result)
    # One whose score is not defined comes last.
    # One whose score is not defined is better than none.
    scores = [next(iter(fold.scores.values())) for fold in result.folds]
    best = max(range(len(scores)), key=lambda n: -1 if math.isnan(scores[n]) else scores[n])
    print_next(["eval", str(result.folds[best].run)], shape=shape, quiet=quiet)


def _print_tables(result: FoldsResult) -> None:
    names = list(result.metrics)
    has_teacher = any(fold.teacher_top1 is not None for fold in result.folds)

    def format_score(name: str, value: float | None) -> str:
        if value is None or math.isnan(value):
            return "-"
        return f"{value:.3f}" if name == "loss" else f"{value:.2f}"

    rows = [
        (
            f"fold {fold.fold}",
            f"{fold.num_val_images:,}",
            *(format_score(name, fold.scores[name]) for name in names),
            *(
                [f"{fold.teacher_top1:.2f}"]
                if fold.teacher_top1 is not None
                else [""] * has_teacher
            ),
        )
        for fold in result.folds
    ]
    count, blank = f"{result.num_images:,}", [""] * has_teacher
    spread = result.metrics
    rows.append(("mean", "", *(format_score(n, spread[n].mean) for n in names), *blank))
    rows.append(("std", "", *(format_score(n, spread[n].std) for n in names), *blank))
    rows.append(("all pooled", count, *(format_score(n, result.pooled[n]) for n in names), *blank))
    groups = (
        "" if result.group_by is None else f", {result.num_groups:,} groups by {result.group_by}"
    )
    print_table(
        f"{result.model} on {result.data}: {result.num_folds} folds{groups}; held-out images, %",
        ("", "images", *(TITLES[name] for name in names), *(["teacher"] if has_teacher else [])),
        rows,
    )
    interval = result.pooled_top1_interval
    values = {
        "runs": result.output,
        "out-of-fold predictions": result.predictions,
        "95 % interval of the pooled top-1": interval and interval.format(".1f"),
        "time": f"{result.seconds:.0f} s",
    }
    print_values("folds", values)
