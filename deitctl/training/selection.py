"""By which metric a run's best weights are selected, and how its metrics are logged and described."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import count_images
from deitctl.errors import ConfigError
from deitctl.evaluation.multilabel_result import Result
from deitctl.evaluation.result import EvalResult
from deitctl.models.tasks import MULTILABEL

METRIC_TITLES = {
    "top1": "top-1",
    "balanced": "balanced accuracy",
    "f1": "macro F1",
    "map": "mAP",
    "loss": "validation loss",
}
"""What `--select` selects by, in words."""
METRIC_KEYS = {"top1": "top1", "balanced": "balanced_accuracy", "f1": "macro_f1", "map": "map"}
"""Their keys in an epoch's record; of a loss, which is better where it is lower, see `val_loss`."""
NO_SCORE = -1e15
"""Score of weights that have none, lower than any other."""
MIN_IMBALANCE = 2
"""Images of the largest class for each of the smallest, from which classes are uneven."""


def choose_metric(select: str, task: str) -> str:
    """Return the metric that the best weights are selected by, which is never auto.

    Args:
        select: the setting; `auto` is top-1, of several labels an image mAP.
        task: a name of `TASKS`, or `auto`, which is taken for one label an image.

    Raises:
        ConfigError: the metric is of the other task.
    """
    several = task == MULTILABEL
    if select == "auto":
        return "map" if several else "top1"
    others = ("top1", "balanced") if several else ("map",)
    if select in others:
        kind = "several labels" if several else "one label"
        choices = "map, f1, loss" if several else "top1, balanced, f1, loss"
        raise ConfigError(
            f"--select {select} does not go with {kind} an image.", f"It can be: {choices}."
        )
    return select


def choose_headline(metric: str, task: str) -> str:
    """Return the metric that a run is judged and drawn by: the one it selects by, but of a loss, which
    is drawn by itself, that of `auto`."""
    return choose_metric("auto", task) if metric == "loss" else metric


def get_score(result: Result, metric: str) -> float:
    """Return a result's score by a metric, higher is better; `NO_SCORE` where it is no number."""
    score = result.get_score(metric)
    return max(score, NO_SCORE) if math.isfinite(score) else NO_SCORE


def choose_weights(metrics: Mapping[str, Result], metric: str) -> str:
    """Return whether `model` or `ema` validated better; of equals the EMA, which varies less."""
    return max(metrics, key=lambda kind: (get_score(metrics[kind], metric), kind == "ema"))


def is_uneven(dataset: ImageDataset) -> bool:
    """Whether one class has at least twice the images of another that has some."""
    counts = count_images(dataset)
    counts = counts[counts > 0]
    return len(counts) > 1 and bool(counts.max() >= MIN_IMBALANCE * counts.min())


def list_metrics(result: Result) -> dict[str, float | None]:
    """Return the metrics of a result that its epoch logs, in percent, and the loss."""
    if isinstance(result, EvalResult):
        names = ["top1", "top5", "balanced_accuracy", "macro_f1"]
    else:
        names = ["map", "micro_ap", "macro_f1", "micro_f1", "sample_f1"]
    return {**{name: getattr(result, name) for name in names}, "val_loss": result.loss}


def describe_metrics(result: Result, *, uneven: bool) -> str:
    """Return the metrics of a result in the words of an epoch's line.

    Args:
        result: of the better weights.
        uneven: whether its classes are, see `is_uneven`.
    """
    if isinstance(result, EvalResult):
        heads = result.heads
        by_head = heads and f" (cls {heads['cls']:.2f}, dist {heads['dist']:.2f})"
        even = f", balanced accuracy {result.balanced_accuracy:.2f} %, macro F1 {result.macro_f1:.2f} %"
        return f"top-1 {result.top1:.2f} %{by_head or ''}{even if uneven else ''}"
    by_head = ""
    if result.heads is not None:
        cls, dist = (_format_percent(result.heads[head]) for head in ("cls", "dist"))
        by_head = f" (cls {cls}, dist {dist})"
    return (
        f"mAP {_format_percent(result.map)} %{by_head}, macro F1 {result.macro_f1:.2f} %, "
        f"micro F1 {result.micro_f1:.2f} %"
    )


def _format_percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def read_metric(record: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric, percent, of an epoch's record; None if it has none."""
    value = record.get(METRIC_KEYS[metric])
    return None if value is None else float(value)
