"""The end of a run: its saved weights are evaluated, and its result is written."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deitctl.device import choose_device
from deitctl.errors import ConfigError
from deitctl.evaluation.bootstrap import bootstrap_evenly
from deitctl.evaluation.intervals import Z
from deitctl.evaluation.multilabel import count_classes
from deitctl.evaluation.multilabel_bootstrap import bootstrap_multilabel
from deitctl.evaluation.multilabel_result import MultilabelResult, Result
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.thresholds import fit_by_head, store_thresholds
from deitctl.models.checkpoint_io import WEIGHTS, load_model_config, load_tensors
from deitctl.models.tasks import DEFAULT_THRESHOLD
from deitctl.paths import write_json
from deitctl.records import to_object
from deitctl.training.result import BestEpoch, FinalEpoch, TrainResult
from deitctl.training.selection import choose_headline, get_score, is_uneven, list_metrics
from deitctl.training.trend import Trend, judge_trend

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer

FINAL_METRICS = ("top1", "top5", "balanced_accuracy", "macro_f1", "map", "val_loss")
"""Of an epoch's record, what the last one is summarized by; null of what it has not."""


def finish_run(trainer: Trainer) -> TrainResult:
    """Evaluate the saved weights in fp32, and write the result."""
    run, setup, progress = trainer.run, trainer.setup, trainer.state.progress
    fp32 = choose_device(trainer.config.device, "fp32")
    # Read by the main process, which has written them, and passed on once the weights are there too.
    own = list(run.records("epoch")) if trainer.world.is_main else []
    epochs = trainer.world.broadcast_object(own)
    if not epochs or epochs[-1]["epoch"] != progress.epoch:
        raise ConfigError(
            f"{run.root} cannot be evaluated again: {run.metrics_file} has no record of its last epoch.",
            f"Restore that file, or score its weights: deitctl eval {shlex.quote(trainer.config.data)} "
            f"--model {run.quoted}",
        )
    last = epochs[-1]
    final = {name: last.get(name) for name in FINAL_METRICS}
    if trainer.device.precision != "fp32" and progress.best_epoch != progress.epoch:
        final = _summarize(trainer.validation.score_last(fp32, last["weights"]))
    trainer.state.load_weights(load_tensors(run.root / WEIGHTS))
    evaluation = trainer.validation.score(fp32, "evaluate the saved weights")
    if progress.best_epoch == progress.epoch:
        final = _summarize(evaluation)
    reasons = progress.unreadable | dict(evaluation.read_errors)
    if reasons:
        trainer.reporter.warn(
            f"{len(reasons)} image(s) could not be read and were left out, the first: "
            f"{next(iter(reasons.values()))}"
        )
    result = TrainResult(
        run=run.root,
        epochs=progress.epoch,
        images_seen=progress.images_seen,
        num_val_images=evaluation.num_images,
        best=_describe_best(trainer, evaluation),
        final=FinalEpoch(epoch=progress.epoch, **final),  # type: ignore[arg-type]
        trend=_judge_trend(trainer, epochs, evaluation),
        heads=evaluation.heads,
        head_agreement=evaluation.head_agreement,
        teacher_agreement=evaluation.teacher_agreement,
        has_uneven_classes=is_uneven(setup.val),
        thresholds=keep_thresholds(trainer, evaluation),
        teacher=setup.teacher.preflight if setup.teacher else None,
        more_teachers=setup.teacher.preflights[1:] if setup.teacher else [],
        unreadable=sorted(reasons),
        stopped=progress.stopped or None,
        seconds=round(time.monotonic() - trainer.start_time, 2),
        evaluation=evaluation,
        unreadable_reasons=reasons,
    )
    if trainer.world.is_main:
        write_json(run.result_file, to_object(result))
    trainer.world.barrier()
    return result


def _summarize(evaluation: Result) -> dict[str, float | None]:
    metrics = list_metrics(evaluation)
    return {name: metrics.get(name) for name in FINAL_METRICS}


def _describe_best(trainer: Trainer, evaluation: Result) -> BestEpoch:
    progress, metrics = trainer.state.progress, list_metrics(evaluation)
    names = ("top1", "top5", "balanced_accuracy", "macro_f1", "map", "micro_f1", "sample_f1")
    return BestEpoch(
        epoch=progress.best_epoch,
        select=trainer.metric,
        score=get_score(evaluation, trainer.metric),
        top1_interval=evaluation.top1_interval if isinstance(evaluation, EvalResult) else None,
        weights=progress.best_weights,
        **{name: metrics.get(name) for name in names},  # type: ignore[arg-type]
    )


def _judge_trend(
    trainer: Trainer, epochs: Sequence[Mapping[str, Any]], evaluation: Result
) -> Trend:
    """Judge the trend of the metric that the run selects by; of a loss that of `auto`."""
    metric = choose_headline(trainer.metric, trainer.setup.model_config.task)
    error = None if metric == "top1" else compute_standard_error(evaluation, metric)
    return judge_trend(epochs, evaluation.num_images, metric, error)


def compute_standard_error(evaluation: Result, metric: str) -> float:
    """Return the standard error of a metric, in points, by bootstrap over the images."""
    if isinstance(evaluation, MultilabelResult):
        interval = bootstrap_multilabel(evaluation)["map" if metric == "map" else "macro_f1"]
    else:
        labels, preds = evaluation.labels.numpy(), evaluation.data_preds.numpy()
        balanced, f1 = bootstrap_evenly(labels, preds, evaluation.num_classes)
        interval = balanced if metric == "balanced" else f1
    return (interval.upper - interval.lower) / (2 * Z)


def keep_thresholds(trainer: Trainer, evaluation: Result) -> dict[str, float] | None:
    """Keep the thresholds that are fitted to the validation images with the saved weights, for each head
    rule, and say so.

    Returns:
        Those of the model's own rule, by class; None of one label an image.
    """
    if not isinstance(evaluation, MultilabelResult):
        return None
    root = trainer.run.root
    # Of weights that an earlier run saved, which may have been calibrated since.
    thresholds = fit_by_head(evaluation, load_model_config(root).temperatures)
    if trainer.world.is_main:
        store_thresholds(root, thresholds)
    values = thresholds[evaluation.head]
    trainer.reporter.note(describe_thresholds(evaluation, values))
    return dict(zip(evaluation.fitted.thresholds, values, strict=True))


def describe_thresholds(evaluation: MultilabelResult, values: Sequence[float]) -> str:
    """Return in a line which thresholds were fitted, to how many images, and how well such ones do.

    Args:
        evaluation: of the images.
        values: the threshold of each class.
    """
    fitted = evaluation.fitted
    at_half = count_classes(evaluation.labels, evaluation.probs >= DEFAULT_THRESHOLD).macro_f1
    without = fitted.classes_without_images
    shared = (
        f"; {len(without)} without images take that of all, {without[0]!r} for example"
        if without
        else ""
    )
    return (
        f"The thresholds of {len(values)} classes ({min(values):.2f} to {max(values):.2f}) are fitted to "
        f"{fitted.num_images} validation images and kept in the model's config.json{shared}: macro F1 "
        f"{fitted.macro_f1:.2f} %, cross-fitted, against {100 * at_half:.2f} % at {DEFAULT_THRESHOLD}."
    )
