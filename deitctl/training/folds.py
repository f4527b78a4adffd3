"""Runs of all folds: trained in turn, each an ordinary run, and summarized with out-of-fold predictions."""

from __future__ import annotations

import csv
import io
import math
import shlex
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.config import MACHINE_SETTINGS, TrainConfig
from deitctl.data.folds import FoldedData
from deitctl.data.splits import list_relative_paths
from deitctl.data.stores.store_settings import reading_stores
from deitctl.device import choose_device, choose_run_device
from deitctl.distributed import World, process_group
from deitctl.errors import ConfigError, DataError, Interrupted, Signalled
from deitctl.evaluation.intervals import Interval, wilson_interval
from deitctl.events import Reporter
from deitctl.paths import read_text, require_creatable, write_bytes, write_json
from deitctl.records import to_object
from deitctl.settings import from_dict, list_differences, override, read_toml, write_toml
from deitctl.training.configure import add_tags
from deitctl.training.earlier_runs import settle_as
from deitctl.training.extensions import NO_EXTENSIONS, Extensions
from deitctl.training.launch import name_run, train_or_find
from deitctl.training.out_of_fold import (
    Outputs,
    choose_predictions,
    predict_fold,
    score,
    write_predictions,
)
from deitctl.training.run_dir import Run, create_run_folder

SETTINGS, ASSIGNMENT = "folds.toml", "folds.csv"
RESULT, PREDICTIONS = "folds.json", "out_of_fold.csv"
MAX_ASSIGNMENT = 1 << 31
"""Bytes of folds.csv, which has some fifty an image."""


@dataclass(frozen=True)
class FoldSpread:
    """A metric over the folds."""

    mean: float | None
    """Mean over the folds where it is defined, as mAP is not where no held-out image has a label; null if it
    is in none."""
    std: float | None
    """Sample standard deviation over the same folds; null if they are fewer than two."""


@dataclass(frozen=True, kw_only=True)
class FoldScore:
    """The run of one fold, scored on the images that it held out."""

    fold: int
    """Counted from 1."""
    run: Path
    """The run folder."""
    num_train_images: int
    """Images that it was trained on."""
    num_val_images: int
    """Images that it held out."""
    best_epoch: int
    """Epoch whose weights were saved, counted from 1."""
    scores: Mapping[str, float]
    """Metrics of the saved weights on the held-out images, in percent but for `loss`; null where one is not
    defined."""
    teacher_top1: float | None
    """Top-1 accuracy of its teacher on the held-out images, percent; null without one."""
    seconds: float
    """Duration of the run."""


@dataclass(frozen=True, kw_only=True)
class FoldsResult:
    """What the runs of all folds end with; metrics in percent but for `loss`."""

    output: Path
    """Folder of the runs fold1, fold2 ..., and of folds.json."""
    data: str
    """Data, as it was named."""
    model: str
    """Model, as it was named."""
    task: str
    """`classification` or `multilabel`."""
    num_folds: int
    """Runs, each of which held out another part of the images."""
    group_by: str | None
    """What kept images on one side: a column, a folder's level, a pattern; null for none."""
    num_groups: int | None
    """Groups by that; null for none."""
    num_images: int
    """Images of all folds, each of which was held out once."""
    folds: Sequence[FoldScore]
    """The runs, by fold."""
    metrics: Mapping[str, FoldSpread]
    """Mean and standard deviation of each metric over the folds."""
    pooled: Mapping[str, float]
    """The same metrics of the out-of-fold predictions of all images together."""
    pooled_top1_interval: Interval | None
    """95 % interval of the pooled top-1 (Wilson 1927); null where an image has several labels."""
    thresholds: Mapping[str, float] | None
    """Of several labels an image: the probability from which each class is predicted, fitted to all images.
    Predictions of a fold are by thresholds fitted to the other folds. Null for one label an image."""
    predictions: Path
    """Table of the out-of-fold predictions of all images."""
    unreadable: Sequence[str]
    """Images that could not be read and were left out."""
    seconds: float
    """Duration of all runs."""


def is_folds(root: Path) -> bool:
    """Return whether a folder has the runs of folds."""
    return (root / SETTINGS).is_file()


def read_folds_config(root: Path, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of the runs of folds in a folder, on other hardware if `settings` say so.

    Args:
        root: the folder.
        settings: by dotted name; None stands for what the folder has.

    Raises:
        ConfigError: a setting that decides what is learned differs.
    """
    path = root / SETTINGS
    config = from_dict(TrainConfig, read_toml(path), str(path))
    changes = {k: v for k, v in settings.items() if v is not None}
    changed = override(config, changes)
    if differences := list_differences(add_tags(config), add_tags(changed)):
        raise ConfigError(
            f"{root} has folds of other settings: {'; '.join(differences)}.",
            "Leave them out, or name another --output.",
        )
    machine = {k: v for k, v in changes.items() if k in MACHINE_SETTINGS}
    return replace(override(config, machine), output_dir=str(root))


def find_folds(config: TrainConfig, reporter: Reporter) -> TrainConfig:
    """Return the configuration with the folder of its newest folds that are not finished, if there is one."""
    roots = [Path(config.output_dir)] if config.output_dir else Path("runs").glob("*")
    for root in sorted(roots, key=lambda root: root.stat().st_mtime if root.exists() else 0)[::-1]:
        if not is_folds(root) or (root / RESULT).is_file():
            continue
        began = from_dict(TrainConfig, read_toml(root / SETTINGS), str(root / SETTINGS))
        if not list_differences(add_tags(began), add_tags(config)):
            reporter.note(f"Going on with the folds in {root}.")
            return replace(config, output_dir=str(root))
    reporter.note("No unfinished folds of this configuration: new ones begin.")
    return config


def train_folds(
    config: TrainConfig,
    folded: FoldedData,
    *,
    extensions: Extensions = NO_EXTENSIONS,
    reporter: Reporter,
    choose: Callable[[TrainConfig], TrainConfig] | None = None,
) -> FoldsResult:
    """Train a run of each fold, or go on where that was stopped, and summarize them.

    Finished runs are kept, so that a kill at any moment costs what a kill of one run does.

    Args:
        config: of every run, with `folds` and without `fold`.
        folded: the images.
        extensions: what the caller adds to each run.
        reporter: receives progress.
        choose: chooses the batch size of new runs.

    Raises:
        ConfigError: the output folder holds other runs.
        DataError: the images are others than when the first run began.
        DeitctlError: as a run.
        Interrupted: stopped by a signal, after the finished steps were saved.
    """
    device = choose_run_device(config)
    with (
        process_group(device.torch_device) as world,
        device.computing(),
        reading_stores(config.cache_dir, config.cache_size, reporter),
    ):
        config = world.broadcast_object(_begin(config, folded, choose) if world.is_main else config)
        root = Path(config.output_dir)
        with _naming_all_folds(root):
            records = [
                _train_fold(config, folded, fold, extensions, reporter)
                for fold in range(1, config.folds + 1)
            ]
            return _summarize(config, folded, records, reporter, world)


def _train_fold(
    config: TrainConfig,
    folded: FoldedData,
    fold: int,
    extensions: Extensions,
    reporter: Reporter,
) -> Mapping[str, Any]:
    """Train the run of a fold, or go on with it, or find it finished; return its result record."""
    train, val = folded.split(fold)
    root = Path(config.output_dir) / f"fold{fold}"
    config = replace(config, fold=fold, output_dir=str(root))
    if Run(root).config_file.is_file():
        existing = Run.open(root)[1]
        requested = settle_as(config, existing)
        if differences := list_differences(add_tags(existing), add_tags(requested)):
            raise ConfigError(
                f"{root} holds a run of another configuration: {'; '.join(differences)}.",
                "Name another --output, or leave out what differs.",
            )
    is_finished = Run(root).result() is not None
    reporter.note(
        f"Fold {fold} of {config.folds}: {len(train.labels):,} training and {len(val.labels):,} "
        f"validation images, {root}{', which is finished already' if is_finished else ''}."
    )
    return train_or_find(config, (train, val), reporter, extensions=extensions)


def _begin(
    config: TrainConfig,
    folded: FoldedData,
    choose: Callable[[TrainConfig], TrainConfig] | None,
) -> TrainConfig:
    """Return the configuration with its folder, in which it and the folds of the images are written."""
    if not config.output_dir:
        root = create_run_folder(*name_run(config), f"folds{config.folds}")
    elif is_folds(root := Path(config.output_dir)):
        if choose is not None:  # a batch size that was measured before
            then = from_dict(TrainConfig, read_toml(root / SETTINGS), str(root / SETTINGS))
            recipe = replace(config.recipe, batch_size=then.recipe.batch_size)
            config = replace(config, recipe=recipe)
        return _go_on(root, config, folded)
    else:
        if Run(root).config_file.is_file():
            raise ConfigError(f"{root} holds a run.", "Name another --output for the folds.")
        require_creatable(root / SETTINGS, within=root)
    config = replace(choose(config) if choose else config, output_dir=str(root))
    write_bytes(root / ASSIGNMENT, _write_assignment(folded).encode("utf-8", "surrogateescape"))
    write_bytes(root / SETTINGS, write_toml(config).encode())
    return config


def _go_on(root: Path, config: TrainConfig, folded: FoldedData) -> TrainConfig:
    """Return the configuration of folds that have begun; raise if it, or the images, are others now."""
    path = root / SETTINGS
    began = from_dict(TrainConfig, read_toml(path), str(path))
    if differences := list_differences(add_tags(began), add_tags(config)):
        raise ConfigError(
            f"{root} has folds of other settings: {'; '.join(differences)}.",
            "Name another --output, or leave out what differs.",
        )
    try:
        text = read_text(root / ASSIGNMENT, MAX_ASSIGNMENT)
    except (OSError, ValueError) as error:
        raise DataError(f"{root / ASSIGNMENT} cannot be read.", "Restore it.") from error
    if text != _write_assignment(folded):
        raise DataError(
            f"{folded.name} has other images, labels or groups than when {root} began: its folds would be "
            "others.",
            "Put them back, or name another --output.",
        )
    return config


def _write_assignment(folded: FoldedData) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    groups = folded.group_names
    rows.writerow(["image", "fold", *(["group"] if groups else [])])
    for index, path in enumerate(list_relative_paths(folded.images)):
        rows.writerow([path, int(folded.fold_of[index]), *([groups[index]] if groups else [])])
    return text.getvalue()


@contextmanager
def _naming_all_folds(root: Path) -> Iterator[None]:
    """Let an interruption name the command that goes on with all folds, not with the one alone."""
    command = f"deitctl train --resume {shlex.quote(str(root))}"
    try:
        yield
    except (KeyboardInterrupt, Signalled, Interrupted) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
        saved = stop.saved if isinstance(stop, Interrupted) else ""
        raise Interrupted(signum, command, saved or "Finished folds are kept.") from stop


def _summarize(
    config: TrainConfig,
    folded: FoldedData,
    records: Sequence[Mapping[str, Any]],
    reporter: Reporter,
    world: World,
) -> FoldsResult:
    """Predict every image by the run that held it out, score that, and write table and result."""
    root, images = Path(config.output_dir), folded.images
    device = choose_device(config.device, "fp32")
    workers = device.choose_num_workers(config.workers, in_memory=images.is_in_memory)
    outputs = Outputs.empty(images)
    for fold in range(1, folded.num_folds + 1):
        predict_fold(
            root / f"fold{fold}",
            folded,
            fold,
            outputs,
            device=device,
            workers=workers,
            reporter=reporter,
            world=world,
        )
    preds, thresholds = choose_predictions(folded, outputs)
    folds = [
        _score_fold(
            root, folded, fold, record, score(images.labels, preds, outputs, folded.fold_of == fold)
        )
        for fold, record in enumerate(records, start=1)
    ]
    everything = np.ones(len(images.labels), np.bool_)
    read = outputs.is_read
    interval = None
    if not images.is_multilabel:
        hits = int((preds[read] == images.labels[read]).sum())
        interval = wilson_interval(hits, int(read.sum())).scale(100)
    result = FoldsResult(
        output=root,
        data=config.data,
        model=config.model,
        task=config.task,
        num_folds=folded.num_folds,
        group_by=config.group_by or None,
        num_groups=None if folded.group_names is None else len(set(folded.group_names)),
        num_images=len(images.labels),
        folds=folds,
        metrics={
            name: compute_spread([fold.scores[name] for fold in folds]) for name in folds[0].scores
        },
        pooled=score(images.labels, preds, outputs, everything),
        pooled_top1_interval=interval,
        thresholds=None
        if thresholds is None
        else dict(zip(images.class_names, thresholds.tolist(), strict=True)),
        predictions=root / PREDICTIONS,
        unreadable=[images.name(index) for index in sorted(outputs.read_errors)],
        seconds=round(sum(fold.seconds for fold in folds), 2),
    )
    if world.is_main:
        write_predictions(root / PREDICTIONS, folded, preds, outputs)
        write_json(root / RESULT, to_object(result))
    world.barrier()
    return result


def _score_fold(
    root: Path,
    folded: FoldedData,
    fold: int,
    record: Mapping[str, Any],
    scores: Mapping[str, float],
) -> FoldScore:
    train, val = folded.split(fold)
    teacher = record["teacher"]
    return FoldScore(
        fold=fold,
        run=root / f"fold{fold}",
        num_train_images=len(train.labels),
        num_val_images=len(val.labels),
        best_epoch=int(record["best"]["epoch"]),
        scores=scores,
        teacher_top1=None if teacher is None else teacher.get("top1"),
        seconds=float(record["seconds"]),
    )


def compute_spread(values: Sequence[float]) -> FoldSpread:
    """Summarize a metric of the folds, NaN where it is not defined."""
    defined = [value for value in values if math.isfinite(value)]
    return FoldSpread(
        statistics.fmean(defined) if defined else None,
        statistics.stdev(defined) if len(defined) > 1 else None,
    )
